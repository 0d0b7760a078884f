"""L5: Module, layers, losses and initialisers, with PyTorch's names."""

import sys
from typing import Any

from minigrad import absent, functional
from minigrad.nn import init, utils
from minigrad.nn.activation import (
    ELU,
    GELU,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)  # fmt: skip
from minigrad.nn.attention import MultiheadAttention
from minigrad.nn.containers import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from minigrad.nn.conv import Conv1d, Conv2d, ConvTranspose2d, Fold, Unfold
from minigrad.nn.layers import (
    CosineSimilarity,
    Dropout,
    Dropout2d,
    DropPath,
    Embedding,
    Flatten,
    Identity,
    Linear,
    Unflatten,
    Upsample,
)  # fmt: skip
from minigrad.nn.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)  # fmt: skip
from minigrad.nn.module import Buffer, Module, Parameter
from minigrad.nn.norm import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm
from minigrad.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minigrad.nn.transformer import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "ELU", "GELU", "AdaptiveAvgPool2d", "AvgPool2d", "BCELoss", "BCEWithLogitsLoss", "BatchNorm1d", "BatchNorm2d",
    "Buffer", "Conv1d", "Conv2d", "ConvTranspose2d", "CosineSimilarity", "CrossEntropyLoss", "DropPath", "Dropout",
    "Dropout2d", "Embedding", "Flatten", "Fold", "GroupNorm", "Hardsigmoid", "Hardswish", "HuberLoss", "Identity",
    "KLDivLoss", "L1Loss", "LayerNorm", "LeakyReLU", "Linear", "LogSoftmax", "MSELoss", "MaxPool2d", "Module",
    "ModuleDict", "ModuleList", "MultiheadAttention", "NLLLoss", "Parameter", "ParameterDict", "ParameterList",
    "ReLU", "Sequential", "SiLU", "Sigmoid", "SmoothL1Loss", "Softmax", "Softplus", "Tanh", "TransformerEncoder",
    "TransformerEncoderLayer", "Unflatten", "Unfold", "Upsample", "functional", "init", "utils",
]  # fmt: skip

sys.modules["minigrad.nn.functional"] = functional  # `import minigrad.nn.functional as F`


def __getattr__(name: str) -> Any:
    """Explain the names of `torch.nn` that do not exist here."""
    absent.refuse(sys.modules[__name__], "module 'minigrad.nn'", name)
