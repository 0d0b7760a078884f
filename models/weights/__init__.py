"""L6: files of weights: other projects' names and layouts, and this project's checkpoints."""
