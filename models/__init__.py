"""L6: the models, each in one file in the order of its paper."""

from models import (
    convnext,
    convnextv2,
    cpu,  # noqa: F401 (its import registers the fast paths of the blocks)
    deit,
    dinov2,
    hybrid,
    roadmap,
    swin,
    swinv2,
    vit,
)
from models.model import ImageModel, param_groups
from models.pretrained import create_model, list_models
from models.weights.load import load_weights
from models.weights.table import list_pretrained

__all__ = [
    "ImageModel",
    "convnext",
    "convnextv2",
    "create_model",
    "deit",
    "dinov2",
    "hybrid",
    "list_models",
    "list_pretrained",
    "load_weights",
    "param_groups",
    "roadmap",
    "swin",
    "swinv2",
    "vit",
]
