"""A small model of each family, and images for it."""

import pytest

from minigrad import Tensor
from models.compare import formula
from models.convnext import ConvNeXt
from models.convnextv2 import ConvNeXtV2
from models.deit import DeiT3, VisionTransformerDistilled
from models.dinov2 import DINOv2, SwiGLUPacked
from models.hybrid import HybridVisionTransformer
from models.model import ImageModel
from models.swin import SwinTransformer
from models.swinv2 import SwinTransformerV2
from models.vit import VisionTransformer

_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3}
_REGISTERS = {"reg_tokens": 2, "no_embed_class": True}
_SWIN = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
_CONVNEXT = {"depths": (1, 2, 1), "dims": (8, 12, 16)}
_FAMILIES = {
    "vit": (VisionTransformer, {"patch_size": 8, **_VIT}),
    "distilled": (VisionTransformerDistilled, {"patch_size": 8, **_VIT}),
    "deit3": (DeiT3, {"patch_size": 8, **_VIT}),
    "dinov2": (DINOv2, {"patch_size": 8, **_VIT, **_REGISTERS, "mlp_ratio": 2 * 2.66667, "mlp_layer": SwiGLUPacked}),
    "hybrid": (HybridVisionTransformer, {"layers": (1, 1), "channels": (128, 128), "stem_chs": 32, **_VIT}),
    "swin": (SwinTransformer, _SWIN),
    "swinv2": (SwinTransformerV2, _SWIN),
    "convnext": (ConvNeXt, _CONVNEXT),
    "convnextv2": (ConvNeXtV2, _CONVNEXT),
}
FAMILIES = list(_FAMILIES)
each_family = pytest.mark.parametrize("family", FAMILIES)


def small(family: str, **overrides) -> ImageModel:
    cls, config = _FAMILIES[family]
    return cls(**({"img_size": 32, "num_classes": 7} | config | overrides))


def images(count: int = 2, size: int = 32) -> Tensor:
    return Tensor(formula.stream("images", count, 3, size, size))
