"""L6: compare the models with their public implementations, layer by layer: `python -m models.compare --help`."""
