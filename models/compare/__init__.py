"""L6: models compared with the public implementations of them, layer by layer: `python -m models.compare --help`."""
