"""L7: training from the command line, `python -m train`."""
