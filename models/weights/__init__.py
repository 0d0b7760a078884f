"""L6: files of weights: other projects' names and layouts, and this project's checkpoints."""

from models.weights.load import Loaded, MisfitError, load_weights

__all__ = ["Loaded", "MisfitError", "load_weights"]
