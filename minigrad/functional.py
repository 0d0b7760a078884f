"""L4: functions of Tensors, with the names, argument order and defaults of torch.nn.functional.

Each checks and translates its arguments, and applies one op of `minigrad/ops/`, where the mathematics stands.
`N C H W` are images, channels, height, width; `O` output channels. An argument that PyTorch has and that is not listed
here is not supported, and Python says so when it is given.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from minigrad.backend import array_module
from minigrad.backend.dtypes import is_half
from minigrad.methods import raw
from minigrad.ops import checks
from minigrad.ops.activation import GELU, GELUTanh, LogSoftmax, ReLU, SiLU, Softmax
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.conv import Conv2d
from minigrad.ops.dropout import Dropout
from minigrad.ops.einsum import Einsum
from minigrad.ops.elementwise import Where
from minigrad.ops.interpolate import Interpolate
from minigrad.ops.loss import CrossEntropy, MSELoss
from minigrad.ops.matmul import Linear
from minigrad.ops.norm import BatchNorm, GroupNorm, LayerNorm, StandardizeWeight
from minigrad.ops.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minigrad.ops.residual import Residual, ResidualLayerNorm
from minigrad.ops.shape import Cat, Pad
from minigrad.ops.window_attention import WindowAttention
from minigrad.tensor import Tensor

Pair = int | tuple[int, int]
Reduction = Literal["mean", "sum", "none"]

# Several tensors into one ---------------------------------------------------------------------------------------------


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors end to end along `dim`; the other sizes must agree."""
    return Tensor.apply(Cat, *tensors, axis=dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis `dim`."""
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"stack: all tensors must have one shape, got {[t.shape for t in tensors]}")
    return cat([t.unsqueeze(dim) for t in tensors], dim)


def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """`input` where the condition holds, else `other`; all three broadcast."""
    return Tensor.apply(Where, condition, input, other)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Einstein summation: `einsum("bhid,bhjd->bhij", q, k)`. Labels, ellipsis and implicit output as in NumPy."""
    if not isinstance(equation, str) or not all(isinstance(x, Tensor) for x in operands):
        raise TypeError('einsum: takes an equation and then Tensors, as in einsum("ij,jk->ik", a, b)')
    return Tensor.apply(Einsum, *operands, equation=equation)


# Linear and convolution -----------------------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b. Shapes: x (..., D), weight (O, D), bias (O,), y (..., O)."""
    return Tensor.apply(Linear, input, weight, bias)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of images with filters.

    Shapes: input (N, C, H, W) or (C, H, W), weight (O, C / groups, KH, KW), bias (O,). `padding` may also be "valid",
    or "same" where the stride is 1.
    """
    groups = checks.integer(groups, "groups", "conv2d")
    padding = padding if isinstance(padding, str) else checks.pair(padding, "padding", "conv2d", minimum=0)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _batched(lambda x: Tensor.apply(Conv2d, x, weight, bias, **options), input)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window; the stride is the window's size if not given."""
    stride = kernel_size if stride is None else stride
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    return _batched(lambda x: Tensor.apply(MaxPool2d, x, ceil_mode=ceil_mode, **options), input)


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window; the stride is the window's size if not given."""
    stride = kernel_size if stride is None else stride
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    if divisor_override is not None:
        divisor_override = checks.integer(divisor_override, "divisor_override", "avg_pool2d")
    counting = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return _batched(lambda x: Tensor.apply(AvgPool2d, x, **options, **counting), input)


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Means of as many windows as make an output of `output_size`; None keeps a size."""
    return _batched(lambda x: Tensor.apply(AdaptiveAvgPool2d, x, output_size=output_size), input)


# Normalisation --------------------------------------------------------------------------------------------------------


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - μ) / √(σ² + eps) · weight + bias, with μ and σ² over the last axes, of shape `normalized_shape`."""
    shape = checks.integers(normalized_shape, "normalized_shape", "layer_norm")
    return Tensor.apply(LayerNorm, input, weight, bias, shape=shape, eps=eps)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(x - μ) / √(σ² + eps) · weight + bias, with μ and σ² over each image's groups of channels; x is (N, C, ...)."""
    num_groups = checks.integer(num_groups, "num_groups", "group_norm")
    return Tensor.apply(GroupNorm, input, weight, bias, num_groups=num_groups, eps=eps)


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
    """(x - μ) / √(σ² + eps) · weight + bias per channel. In training μ and σ² are the batch's, and the running ones are
    moved towards them, in place; otherwise they are the running ones."""
    running = {"running_mean": raw(running_mean), "running_var": raw(running_var)}
    return Tensor.apply(BatchNorm, input, weight, bias, training=training, momentum=momentum, eps=eps, **running)


def standardize_weight(weight: Tensor, eps: float = 1e-8) -> Tensor:
    """The filters of a convolution, each with mean 0 and variance 1: (w - μ) / √(σ² + eps)."""
    return Tensor.apply(StandardizeWeight, weight, eps=eps)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x / max(‖x‖₂, eps) along `dim`."""
    if p != 2:
        raise ValueError(f"normalize: only the Euclidean norm, p=2, is supported, got p={p}")
    checks.floating(input, "normalize")
    eps = checks.not_negative(eps, "eps", "normalize")
    half = is_half(input.dtype)
    x = input.float() if half else input  # squares and eps underflow or overflow in float16
    squares = (x * x).sum(dim, keepdim=True)
    is_zero = squares == 0  # √0 has no gradient: ‖0‖ is a constant, as in PyTorch
    norm = where(is_zero, 0.0, where(is_zero, 1.0, squares).sqrt())
    least = max(eps, float(np.finfo(x.dtype).tiny)) if eps else 0.0  # not rounded to 0
    y = x / norm.clamp(min=least)
    return y.to(dtype=input.dtype) if half else y


# Activations ----------------------------------------------------------------------------------------------------------


def relu(input: Tensor) -> Tensor:
    """max(x, 0)"""
    return Tensor.apply(ReLU, input)


def gelu(input: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """x · Φ(x), Φ the normal distribution; with approximate="tanh" the older formula by tanh."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return Tensor.apply(GELU if approximate == "none" else GELUTanh, input)


def silu(input: Tensor) -> Tensor:
    """x / (1 + e⁻ˣ), also called swish."""
    return Tensor.apply(SiLU, input)


def softmax(input: Tensor, dim: int) -> Tensor:
    """eˣ / Σ eˣ along `dim`."""
    return Tensor.apply(Softmax, input, axis=dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """x - ln Σ eˣ along `dim`."""
    return Tensor.apply(LogSoftmax, input, axis=dim)


# Attention and dropout ------------------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + mask) v.

    Shapes: query (..., L, E), key (..., S, E), value (..., S, V); attn_mask broadcasts to (..., L, S): boolean, True
    where a query may look at a key, or floats that are added. `scale` is 1 / √E if not given. As in PyTorch, dropout
    happens whenever dropout_p is not 0: pass 0 in evaluation.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    checks.probability(dropout_p, "scaled_dot_product_attention")
    options = {"scale": scale, "is_causal": is_causal, "dropout_p": dropout_p}
    return Tensor.apply(ScaledDotProductAttention, query, key, value, attn_mask, **options)


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    num_heads: int,
    window_size: int | Sequence[int],
    shift: int | Sequence[int] = 0,
    dropout_p: float = 0.0,
) -> Tensor:
    """Swin's attention: softmax(q kᵀ / √d + bias) v within each window of a map that has been rolled by `shift`.

    A shift is how far the windows lie below and to the right of where they would be without. Tokens of a window that
    are no neighbours in the map, because it goes on at the other side, do not look at each other (-100 is added).
    Shapes: qkv (B, H, W, 3C), what a linear layer makes of a map; H and W multiples of the window's size M, which
    may be a pair (height, width); bias (num_heads, N, N) for a window of N tokens; the result
    (B, H, W, C), in the map's order.
    """
    checks.probability(dropout_p, "window_attention")
    shift = checks.pair(shift, "shift", "window_attention", minimum=0)
    num_heads = checks.integer(num_heads, "num_heads", "window_attention")
    MH, MW = checks.pair(window_size, "window_size", "window_attention", minimum=0)
    window: Any = MH if MH == MW else (MH, MW)
    options = {"num_heads": num_heads, "window_size": window, "shift": shift, "dropout_p": dropout_p}
    return Tensor.apply(WindowAttention, qkv, bias, **options)


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """In training, each value is zero with probability p, and the others are divided by 1 - p."""
    checks.probability(p, "dropout")
    return Tensor.apply(Dropout, input, p=p, mask_shape=input.shape) if training and p else input


def drop_path(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Stochastic depth: in training, a whole image (of axis 0) is zero with probability p, else divided by 1 - p."""
    checks.probability(p, "drop_path")
    mask_shape = input.shape[:1] + (1,) * (input.ndim - 1)
    return Tensor.apply(Dropout, input, p=p, mask_shape=mask_shape) if training and p else input


def residual(
    x: Tensor, branch: Tensor, scale: Tensor | None = None, drop_path: float = 0.0, training: bool = True
) -> Tensor:
    """x + m · scale ⊙ branch: a residual connection, with layer scale and stochastic depth.

    In training, m is 0 for an image (of axis 0) with probability `drop_path`, and 1 / (1 - drop_path) otherwise.
    Shapes: x, branch (N, ..., C); scale (C,).
    """
    p = checks.probability(drop_path, "residual") if training else 0.0
    return Tensor.apply(Residual, x, branch, scale, p=p)


def residual_layer_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    drop_path: float = 0.0,
    training: bool = True,
) -> tuple[Tensor, Tensor]:
    """`s = residual(x, branch, drop_path=...)`, and `layer_norm(s, C, weight, bias, eps)`: both, in one op."""
    p = checks.probability(drop_path, "residual") if training else 0.0
    return Tensor.apply(ResidualLayerNorm, x, branch, weight, bias, p=p, eps=eps)


# Losses ---------------------------------------------------------------------------------------------------------------


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-ln softmax(x)[target], for logits x.

    Shapes: input (N, C, ...) or (C,); target (N, ...) of class indices, or class probabilities like the input; weight
    (C,). The mean is weighted by the weights of the classes named.
    """
    ignore_index = checks.integer(ignore_index, "ignore_index", "cross_entropy")
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return Tensor.apply(CrossEntropy, input, target, weight, **options)


def mse_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """(x - t)², averaged."""
    return Tensor.apply(MSELoss, input, target, reduction=reduction)


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """1 at the class named, 0 elsewhere, as int64. Shapes: target (...), result (..., num_classes)."""
    index, num_classes = raw(target), checks.integer(num_classes, "num_classes", "one_hot")
    if isinstance(index, np.ndarray) and index.size and not 0 <= index.min() <= index.max() < num_classes:
        raise IndexError(f"one_hot: classes must be from 0 to {num_classes - 1}, got {index.min()} to {index.max()}")
    xp = array_module(index)
    return Tensor((index[..., None] == xp.arange(num_classes)).astype(np.int64))


# Padding and resizing -------------------------------------------------------------------------------------------------


def pad(
    input: Tensor,
    pad: Sequence[int],
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant",
    value: float | None = None,
) -> Tensor:
    """Grow the last axes: `pad` is (before, after) of the last axis, then of the last but one, and so on.

    "constant" fills with `value` (0 if not given); "reflect" mirrors without repeating the edge, "replicate" repeats
    it, "circular" wraps round. Negative widths crop: before "circular" wraps, but "reflect" and "replicate" still see
    what is cropped at the other end, as in PyTorch.
    """
    if not isinstance(pad, Sequence) or len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(f"pad: needs a pair (before, after) for each of at most {input.ndim} axes, got {pad!r}")
    pad = checks.integers(pad, "each width", "pad")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        widths = [(0, 0)] * (input.ndim - len(pairs)) + pairs[::-1]
        return Tensor.apply(Pad, input, widths=widths, value=0 if value is None else value)
    if value is not None:
        raise ValueError(f"pad: a value goes with mode='constant', not with {mode!r}")
    for axis, (before, after) in enumerate(pairs, 1):
        if before or after:
            index = _border_index(input.shape[-axis], before, after, mode)
            input = input.index_select(-axis, Tensor(index, device=input.device))
    return input


def interpolate(
    input: Tensor,
    size: Pair | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: Literal["nearest", "nearest-exact", "bilinear", "bicubic"] = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize images (N, C, H, W) to `size`, or by `scale_factor`. `antialias` widens the filter when shrinking."""
    checks.rank(input, 4, "(N, C, H, W)", "interpolate")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    scales = None
    if scale_factor is not None:
        scales = _scales(scale_factor)
        size = (int(input.shape[2] * scales[0]), int(input.shape[3] * scales[1]))
        if min(size) < 1:
            raise ValueError(f"interpolate: scale_factor {scale_factor} makes images {input.shape[2:]} empty: {size}")
        scales = None if recompute_scale_factor else scales
    options = {"mode": mode, "align_corners": align_corners, "antialias": antialias}
    size = checks.pair(size, "size", "interpolate", minimum=1)
    return Tensor.apply(Interpolate, input, size=size, scales=scales, **options)


def _scales(scale_factor: Any) -> tuple[float, float]:
    """`scale_factor` as two numbers, for rows and columns."""
    both = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor, scale_factor)
    if isinstance(both, str) or any(not isinstance(scale, int | float | np.number) for scale in both):
        raise TypeError(f"interpolate: scale_factor is a number or a pair (height, width), got {scale_factor!r}")
    if len(both) != 2:
        raise ValueError(
            f"interpolate: images have two axes to scale, height and width, but scale_factor names {len(both)}: "
            f"got {scale_factor!r}"
        )
    if not all(0 < scale < np.inf for scale in both):
        raise ValueError(f"interpolate: each scale_factor must be above 0 and finite, got {scale_factor!r}")
    return float(both[0]), float(both[1])


def _batched(op: Any, x: Tensor) -> Tensor:
    """`op` on images (N, C, H, W), or on one image (C, H, W)."""
    return op(x) if x.ndim != 3 else op(x[None])[0]


def _border_index(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """Which entry of an axis stands at each place of the padded one: from -before to size + after - 1, folded back."""
    start, end = max(-before, 0), size - max(-after, 0)  # what cropping leaves
    limits = {"reflect": size - 1, "circular": max(end - start, 0), "replicate": np.inf if size else 0}
    if mode not in limits:
        raise ValueError(f'pad: mode must be "constant", "reflect", "replicate" or "circular", got {mode!r}')
    if max(before, after) > limits[mode]:
        raise ValueError(
            f"pad: in mode {mode!r} widths must be at most {limits[mode]} on an axis of {size}"
            f"{' when it is cropped' if mode == 'circular' and min(before, after) < 0 else ''}, got {(before, after)}"
        )
    if size + before + after < (mode != "circular"):
        raise ValueError(f"pad: widths {(before, after)} crop all of an axis of {size} in mode {mode!r}")
    place = np.arange(-before, size + after)
    if mode == "reflect":
        return size - 1 - abs(size - 1 - abs(place))
    return start + (place - start) % max(end - start, 1) if mode == "circular" else place.clip(0, size - 1)
