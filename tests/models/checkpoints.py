"""Write small checkpoints in the format of `python -m train`, and image files."""

from pathlib import Path
from typing import Any

import numpy as np

import models
from minigrad import serialize
from models.compare import formula
from models.model import ImageModel

_DEIT = {"patch_size": 8, "img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit_nano_cifar", "depth": 2},
    "vit_avg": {"name": "vit_nano_cifar", "depth": 1, "global_pool": "avg", "img_size": [24, 40]},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", **_DEIT},
    "deit3": {"name": "deit3_small_patch16_224", **_DEIT, "num_heads": 4, "img_size": [24, 40]},
    "dinov2": {"name": "vit_small_patch14_reg4_dinov2", **_DEIT, "global_pool": "avg"},
    "hybrid": {"name": "hybrid_nano_cifar", "layers": [1, 1], "channels": [128, 128], "depth": 2},
    "swin": {"name": "swin_nano_cifar", "depths": [2, 1], "num_heads": [2, 4], "embed_dim": 8},
    "swinv2": {"name": "swinv2_nano_cifar", "depths": [2, 1], "num_heads": [2, 4], "embed_dim": 8, "window_size": 12},
    "convnext": {"name": "convnext_atto_cifar", "depths": [1, 2], "dims": [8, 72], "kernel_size": 5},
    "convnextv2": {"name": "convnextv2_atto_cifar", "depths": [1, 2], "dims": [8, 72], "kernel_size": 5},
    "roadmap": {"name": "roadmap_00_resnet50", "depths": [1, 1, 1, 1], "img_size": 32, "stem_stride": 2, "width": 8},
}
CLASSES = ["airplane", "car $_1$", "bird", "cat", "deer", "dog", "frog"]
METADATA = {"epoch": 3, "test_acc": 0.5, "classes": CLASSES, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def write(path: Path, family: str, **changes: Any) -> ImageModel:
    """Write a checkpoint with formula weights; `changes` override metadata. Returns the model."""
    arguments = {"num_classes": len(CLASSES)} | FAMILIES[family]
    model = formula.fill(models.create_model(**arguments)).to(dtype=np.float32).eval()
    serialize.save(path, model.state_dict(), {**METADATA, "model": arguments} | changes)
    return model


def write_image(path: Path, size: tuple[int, int] = (32, 32), seed: int = 0) -> np.ndarray:
    """Write a PNG file of noise with this (H, W). Returns the pixels, (C, H, W) uint8."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)
