"""L6: the conditions of the fast paths, and the operations that blocks share.

Tokens are the rows of a matrix (tokens, C) in ViT and Swin, and the columns of a matrix (C, pixels) in ConvNeXt.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, nn
from minigrad.autograd.grad_mode import mode
from minigrad.backend import Array
from minigrad.kernels.cpu.chunks import is_float32, ones
from minigrad.kernels.cpu.norm import OFFSET
from minigrad.nn.residual import is_plain
from models import swinv2
from models.convnext import LayerNorm2d
from models.convnextv2 import GRN
from models.swin import WindowAttention
from models.vit import Attention, Mlp

CHUNK = 1 << 20  # elements of the hidden layer of an MLP computed at once: 4 MiB
MIN_TOKENS = 512  # with fewer, BLAS copies the weights too often
FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward
    for kind in (
        nn.Conv2d, nn.DropPath, nn.Dropout, nn.LayerNorm, nn.Linear,
        LayerNorm2d, GRN, Attention, Mlp, WindowAttention, swinv2.WindowAttention,
    )
}  # fmt: skip
"""The layers of blocks, with their `forward`. A user may replace the `forward` of a class later."""


def is_inference(x: Any) -> bool:
    """True if no op on x is recorded, observed or autocast, and x is a float32 NumPy array that is not empty."""
    recorded = mode.grad_enabled or mode.observer is not None or mode.autocast is not None
    return not recorded and type(x) is Tensor and is_float32(x.data) and x.data.size > 0


def runs_alone(module: Any, kind: type[nn.Module]) -> bool:
    """True if a call of `module` runs `kind.forward` alone, as defined in this project."""
    return is_plain(module, kind) and kind.forward is FORWARDS[kind]


def has_arrays(module: Any, **shapes: tuple[int, ...]) -> bool:
    """True if these parameters of the module are float32 NumPy arrays of these shapes."""
    return all(is_array(getattr(module, name), shape) for name, shape in shapes.items())


def is_array(parameter: Any, shape: tuple[int, ...]) -> bool:
    """True for a parameter that is a float32 NumPy array of this shape."""
    return parameter is not None and is_float32(parameter.data) and parameter.data.shape == shape


def is_linear(module: Any, inputs: int, outputs: int) -> bool:
    """True for an `nn.Linear` with a bias that runs alone."""
    return runs_alone(module, nn.Linear) and has_arrays(module, weight=(outputs, inputs), bias=(outputs,))


def is_layer_norm(module: Any, C: int, kind: type[nn.LayerNorm] = nn.LayerNorm) -> bool:
    """True for a LayerNorm over C channels, with weight and bias, that runs alone."""
    return runs_alone(module, kind) and module.normalized_shape == (C,) and has_arrays(module, weight=(C,), bias=(C,))


def is_identity(module: Any, kind: type[nn.Module]) -> bool:
    """True for an `nn.Dropout` or `nn.DropPath` that returns its input."""
    return runs_alone(module, kind) and not (module.training and module.p)


def slices(count: int, width: int, each: int = 1) -> Iterator[slice]:
    """Slices of `count` images of `each` tokens, so that the hidden layer, of `width` values for each token, has about
    CHUNK elements, and at least MIN_TOKENS tokens."""
    step = max(CHUNK // width, MIN_TOKENS) // each or 1
    return (slice(start, start + step) for start in range(0, count, step))


def normalize_columns(x: Array, norm: Any, scratch: Array) -> None:
    """LayerNorm of each column of x (C, pixels), in place. `scratch` has the shape of x."""
    C = len(x)
    mean = ones(C) @ x
    mean *= 1 / C
    x -= mean
    std = _std(x, norm.eps, scratch)
    if (np.abs(mean, out=mean) > OFFSET * std).any():
        x -= ones(C) @ x / C
        std = _std(x, norm.eps, scratch)
    x *= np.divide(1, std, out=std)
    x *= norm.weight.data[:, None]
    x += norm.bias.data[:, None]


def _std(x: Array, eps: float, scratch: Array) -> Array:
    """√(mean of x² over axis 0 + eps)"""
    var = ones(len(x)) @ np.multiply(x, x, out=scratch)
    var *= 1 / len(x)
    var += eps
    return np.sqrt(var, out=var)


def normalize_rows(x: Array, norm: Any) -> Array:
    """LayerNorm of each row of x (tokens, C), in a new array."""
    C = x.shape[1]
    mean = x @ ones(C)
    mean *= 1 / C
    y = x - mean[:, None]
    std = np.sqrt(np.vecdot(y, y) / C + np.float32(norm.eps))
    if (np.abs(mean, out=mean) > OFFSET * std).any():
        y -= (y @ ones(C) / C)[:, None]
        std = np.sqrt(np.vecdot(y, y) / C + np.float32(norm.eps))
    y *= np.divide(1, std, out=std)[:, None]
    y *= norm.weight.data
    y += norm.bias.data
    return y
