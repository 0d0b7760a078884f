"""L6: the models, each in one file that reads in its paper's order."""

from models import vit
from models.registry import create_model, list_models

__all__ = ["create_model", "list_models", "vit"]
