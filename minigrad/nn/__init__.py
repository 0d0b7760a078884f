"""L5: Module, layers and initialisers, with PyTorch's names."""

from minigrad import functional
from minigrad.nn import init
from minigrad.nn.layers import (
    GELU,
    BatchNorm2d,
    Conv2d,
    Dropout,
    DropPath,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    ModuleList,
    ReLU,
    Sequential,
)  # fmt: skip
from minigrad.nn.module import Buffer, Module, Parameter

__all__ = [
    "GELU", "BatchNorm2d", "Buffer", "Conv2d", "DropPath", "Dropout", "GroupNorm", "Identity", "LayerNorm", "Linear",
    "Module", "ModuleList", "Parameter", "ReLU", "Sequential", "functional", "init",
]  # fmt: skip
