"""L4: normalization."""

from collections.abc import Sequence

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend.dtypes import finfo, is_half
from minigrad.methods import numpy_names, raw_array
from minigrad.ops import checks
from minigrad.ops.norm import BatchNorm, GroupNorm, GroupNormReLU, LayerNorm, StandardizeWeight
from minigrad.ops.response_norm import GlobalResponseNorm


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """y = (x - μ) / √(σ² + eps) · weight + bias, mean μ and variance σ² (divided by n) over the last axes.

    Shapes: input, y (..., *normalized_shape), floating-point; weight and bias `normalized_shape`, or None for 1 and 0.
    """
    shape = checks.integers(normalized_shape, "normalized_shape", "layer_norm")
    return Tensor.apply(LayerNorm, input, weight, bias, shape=shape, eps=eps)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """y = (x - μ) / √(σ² + eps) · weight + bias, mean μ and variance σ² (divided by n) over each image's groups of
    channels.

    Shapes: input, y (N, C, ...), floating-point; weight, bias (C,), or None for 1 and 0. `num_groups` divides C.
    """
    num_groups = checks.integer(num_groups, "num_groups", "group_norm")
    return Tensor.apply(GroupNorm, input, weight, bias, num_groups=num_groups, eps=eps)


def group_norm_relu(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    shortcut: Tensor | None = None,
) -> Tensor:
    """`relu(group_norm(input, num_groups, weight, bias, eps) + shortcut)` by one op, without `shortcut` by default.

    Shapes: as for `group_norm`; the shortcut has the shape of the input.
    """
    num_groups = checks.integer(num_groups, "num_groups", "group_norm")
    return Tensor.apply(GroupNormReLU, input, weight, bias, shortcut, num_groups=num_groups, eps=eps)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y = (x - μ) / √(σ² + eps) · weight + bias for each channel, with mean μ and variance σ².

    In training, μ and σ² (divided by n) are computed from the batch, and the running statistics, if given, are updated
    in place: running <- (1 - momentum) · running + momentum · batch, with the batch variance divided by n - 1. In
    evaluation, μ and σ² are `running_mean` and `running_var`, which must be given. If threads or processes share the
    batch (`minigrad.parallel.Shards`), μ, σ² and n are those of the whole batch, as in PyTorch's SyncBatchNorm.

    Shapes: input, y (N, C, ...), floating-point; all others (C,); weight and bias may be None for 1 and 0. In training
    each channel needs more than one value.
    """
    statistics = {"running_mean": running_mean, "running_var": running_var}
    running = {name: x if x is None else raw_array(x, name, "batch_norm") for name, x in statistics.items()}
    return Tensor.apply(BatchNorm, input, weight, bias, training=training, momentum=momentum, eps=eps, **running)


def standardize_weight(weight: Tensor, eps: float = 1e-8) -> Tensor:
    """(w - μ) / √(σ² + eps), with mean μ and variance σ² of each filter w.

    Shapes: weight, result (O, ...), a filter for each output channel of a convolution; floating-point.
    """
    return Tensor.apply(StandardizeWeight, weight, eps=eps)


def global_response_norm(input: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """y = x + weight · x · G / (mean G + eps) + bias, with G the norm of each channel over all positions of an image,
    and its mean over the channels: ConvNeXt V2's GRN, arXiv:2301.00808.

    Shapes: input, y (B, ..., C), channels last, floating-point; weight, bias (C,).
    """
    return Tensor.apply(GlobalResponseNorm, input, weight, bias, eps=eps)


@numpy_names
def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """y = x / max(‖x‖, eps), with the `p`-norm of the vectors along `dim`; floating-point."""
    checks.floating(input, "normalize")
    eps = checks.not_negative(eps, "eps", "normalize")
    x = input.float() if is_half(input.dtype) else input  # in float16, squares and eps under- or overflow
    minimum = max(eps, float(np.finfo(x.dtype).tiny)) if eps else 0.0  # a positive eps is not rounded to 0
    return (x / x.norm(p, dim, keepdim=True).clamp(min=minimum)).to(dtype=input.dtype)


@numpy_names
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """y = Σ x1 · x2 / (max(‖x1‖₂, eps) · max(‖x2‖₂, eps)) along `dim`; floating-point.

    Shapes: x1 and x2 broadcast; y without `dim`. In backward, a norm below eps is not a constant, as in PyTorch.
    """
    checks.floating(x1, "cosine_similarity")
    eps = checks.not_negative(eps, "eps", "cosine_similarity")
    shape = np.broadcast_shapes(x1.shape, x2.shape)
    units = []
    for x in (x1, x2):
        x = (x.float() if is_half(x.dtype) else x).expand(shape)
        norm = x.norm(2, dim, keepdim=True)
        units.append(x / (norm + (norm.clamp(min=eps) - norm).detach()))
    y = (units[0] * units[1]).sum(dim)
    return y.to(dtype=x1.dtype) if x1.dtype == x2.dtype else y


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """y = ‖x1 - x2 + eps‖, the `p`-norm along the last axis; floating-point."""
    return (x1 - x2 + eps).norm(p, -1, keepdim)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """y = x / √(mean x² + eps) · weight, the mean over the axes of `normalized_shape`, the last of the input.

    eps: by default that of the dtype. Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    shape = tuple(normalized_shape)
    if input.shape[-len(shape) :] != shape:
        raise ValueError(f"rms_norm: the input must end with the shape {shape}, got {input.shape}")
    x = input.float() if is_half(input.dtype) else input
    eps = float(finfo(input.dtype).eps) if eps is None else eps
    y = (x * (x.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + eps).rsqrt()).to(dtype=input.dtype)
    return y if weight is None else y * weight


def instance_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`group_norm` with a group for each channel. Shapes: input (N, C, ...)."""
    return group_norm(input, input.shape[1], weight, bias, eps)
