training from the command line, `python -m train`."""
