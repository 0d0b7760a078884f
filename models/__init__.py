"""L6: the models, each in one file in the order of its paper."""

from models import (
    convnext,
    cpu,  # noqa: F401 (its import registers the fast paths of the blocks)
    deit,
    dinov2,
    hybrid,
    roadmap,
    swin,
    vit,
)
from models.model import ImageModel, param_groups
from models.registry import create_model, list_models
from models.weights.load import load_weights

__all__ = [
    "ImageModel",
    "convnext",
    "create_model",
    "deit",
    "dinov2",
    "hybrid",
    "list_models",
    "load_weights",
    "param_groups",
    "roadmap",
    "swin",
    "vit",
]
