"""L7: the settings of a run: flags, TOML files, recipes."""
