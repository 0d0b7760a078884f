"""L5: Module, layers, losses and initialisers, with PyTorch's names."""

import sys

from minigrad import functional
from minigrad.nn import init, utils
from minigrad.nn.activation import GELU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Tanh
from minigrad.nn.attention import MultiheadAttention
from minigrad.nn.containers import ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from minigrad.nn.conv import Conv2d
from minigrad.nn.layers import (
    Dropout,
    Dropout2d,
    DropPath,
    Embedding,
    Flatten,
    Identity,
    Linear,
    Unflatten,
    Upsample,
)
from minigrad.nn.loss import CrossEntropyLoss, MSELoss
from minigrad.nn.module import Buffer, Module, Parameter
from minigrad.nn.norm import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm
from minigrad.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minigrad.nn.transformer import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "GELU", "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Buffer", "Conv2d", "CrossEntropyLoss",
    "DropPath", "Dropout", "Dropout2d", "Embedding", "Flatten", "GroupNorm", "Identity", "LayerNorm", "Linear",
    "LogSoftmax", "MSELoss", "MaxPool2d", "Module", "ModuleDict", "ModuleList", "MultiheadAttention", "Parameter",
    "ParameterDict", "ParameterList", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh", "TransformerEncoder",
    "TransformerEncoderLayer", "Unflatten", "Upsample", "functional", "init", "utils",
]  # fmt: skip

sys.modules["minigrad.nn.functional"] = functional  # `import minigrad.nn.functional as F`
