"""L6: pretrained weights of other projects, under their parameter names, and this project's checkpoints."""

from models.weights.load import Loaded, MisfitError, load_weights

__all__ = ["Loaded", "MisfitError", "load_weights"]
