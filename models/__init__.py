"""L6: the models, each in one file in the order of its paper."""

from models import convnext, convnextv2, hybrid, roadmap, swin, swinv2, vit
from models.model import ImageModel, param_groups
from models.registry import create_model, list_models
from models.weights.load import load_weights

__all__ = [
    "ImageModel",
    "convnext",
    "convnextv2",
    "create_model",
    "hybrid",
    "list_models",
    "load_weights",
    "param_groups",
    "roadmap",
    "swin",
    "swinv2",
    "vit",
]
