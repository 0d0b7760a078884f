"""L7: the files that a run writes."""
