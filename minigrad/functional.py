"""L4: functions of Tensors, with the names, argument order and defaults of torch.nn.functional.

Each function checks its arguments and applies an op of `minigrad/ops/`, whose docstring has the gradients. Letters:
N images, C channels, H height, W width, O output channels. A `Pair` is one integer for both axes, or (height, width).

For all functions: arguments of different dtypes are promoted to one, as in PyTorch, but a 16-bit input of conv2d,
norms, attention, residual or cross_entropy gives a 16-bit result, whatever float32 arguments it meets; shapes or values
that do not fit raise a ValueError; "floating-point" input of another dtype raises a TypeError. Arguments of PyTorch
that a signature lacks are not supported.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from minigrad.backend import array_module
from minigrad.backend.dtypes import is_half
from minigrad.methods import raw_array
from minigrad.ops import checks
from minigrad.ops.activation import GELU, GELUTanh, LogSoftmax, ReLU, SiLU, Softmax
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.conv import Conv2d, sides_of_padding
from minigrad.ops.dropout import Dropout
from minigrad.ops.einsum import Einsum
from minigrad.ops.elementwise import Where
from minigrad.ops.interpolate import Interpolate
from minigrad.ops.loss import CrossEntropy, MSELoss
from minigrad.ops.matmul import Linear
from minigrad.ops.norm import BatchNorm, GroupNorm, GroupNormReLU, LayerNorm, StandardizeWeight
from minigrad.ops.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minigrad.ops.residual import Residual, ResidualLayerNorm
from minigrad.ops.shape import Cat, Pad
from minigrad.ops.window_attention import WindowAttention
from minigrad.tensor import Tensor

Pair = int | tuple[int, int]
Reduction = Literal["mean", "sum", "none"]

# Joining, selection and sums of products ------------------------------------------------------------------------------


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors along the existing axis `dim`.

    Shapes: equal except along `dim`, where the sizes are added; at least one axis.
    """
    return Tensor.apply(Cat, *tensors, axis=dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors along a new axis; `dim` is its position in the result.

    Shapes: all equal, (...) -> (..., number of tensors, ...).
    """
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"stack: all tensors must have the same shape, got {[t.shape for t in tensors]}")
    return cat([t.unsqueeze(dim) for t in tensors], dim)


def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """y = input where `condition` is True, else other, elementwise.

    Shapes: all three broadcast. `condition` is a Tensor of bool (else TypeError); `input` and `other` are Tensors or
    Python numbers.
    """
    return Tensor.apply(Where, condition, input, other)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Einstein summation: the product of `operands`, summed over the labels that are not in the output.

        einsum("bhid,bhjd->bhij", q, k)     y[b,h,i,j] = Σ_d q[b,h,i,d] · k[b,h,j,d]

    As in PyTorch, a label repeated in one operand selects a diagonal; "..." stands for the axes without a label;
    without "->", the output has the labels that occur once, in alphabetical order.
    """
    if not isinstance(equation, str) or not all(isinstance(x, Tensor) for x in operands):
        raise TypeError('einsum: needs an equation, then Tensors, as in einsum("ij,jk->ik", a, b)')
    return Tensor.apply(Einsum, *operands, equation=equation)


# Linear and convolution -----------------------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b, for x = input. Shapes: x (..., D), weight (O, D), bias (O,), y (..., O)."""
    return Tensor.apply(Linear, input, weight, bias)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | tuple[tuple[int, int], tuple[int, int]] | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution, which is cross-correlation: y[n,o,i,j] = bias[o] + Σ_c,k,l weight[o,c,k,l] · x[n,c,h,w],

        h = i · stride + k · dilation - padding,  w likewise from j and l;   x = 0 outside the image
        OH = ⌊(H + 2 · padding - dilation · (KH - 1) - 1) / stride⌋ + 1,  OW likewise

    Shapes: input (N, C, H, W) or (C, H, W), weight (O, C / groups, KH, KW), bias (O,), y (N, O, OH, OW) or (O, OH, OW).

    Args:
        input: floating-point. If it is 16-bit, so is y, whatever the dtypes of `weight` and `bias`.
        padding: zeros on both sides of H and W; also "valid" (0), or "same" (y is as large as x; stride 1 only). Beyond
            PyTorch's: ((above, below), (left, right)), if the sides differ.
        groups: the number of groups of channels; output channels of a group depend only on its input channels.
    """
    groups = checks.integer(groups, "groups", "conv2d")
    padding = padding if isinstance(padding, str) else sides_of_padding(padding)
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
    """The maximum of each window: y[n,c,i,j] = max_k,l x[n,c,h,w], h and w as in `conv2d`, x = -∞ in the padding.

    Shapes: input (N, C, H, W) or (C, H, W), floating-point; y with OH and OW as in `conv2d`.

    Args:
        stride: by default `kernel_size`, so that windows do not overlap.
        padding: at most half of `kernel_size`.
        ceil_mode: round OH and OW up, so that the last window may extend beyond the padding.
    """
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
    """The mean of each window: y[n,c,i,j] = Σ_k,l x[n,c,h,w] / D, h and w as in `conv2d`, x = 0 in the padding.

    Shapes: input (N, C, H, W) or (C, H, W), floating-point; y with OH and OW as in `conv2d`.

    Args:
        stride, padding, ceil_mode: as in `max_pool2d`.
        count_include_pad: D counts the pixels of the window, padding included; False: padding excluded.
        divisor_override: a fixed D, not 0.
    """
    stride = kernel_size if stride is None else stride
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    if divisor_override is not None:
        divisor_override = checks.integer(divisor_override, "divisor_override", "avg_pool2d")
    counting = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return _batched(lambda x: Tensor.apply(AvgPool2d, x, **options, **counting), input)


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """The means of OH x OW windows that cover the image: window i has rows ⌊i · H / OH⌋ to ⌈(i + 1) · H / OH⌉ - 1.

    Shapes: input (N, C, H, W) or (C, H, W), floating-point; y (N, C, OH, OW) or (C, OH, OW). `output_size` is OH = OW,
    or a pair (OH, OW), in which None keeps the size of the input.
    """
    return _batched(lambda x: Tensor.apply(AdaptiveAvgPool2d, x, output_size=output_size), input)


# Normalisation --------------------------------------------------------------------------------------------------------


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """y = (x - μ) / √(σ² + eps) · weight + bias, with μ and σ² (divided by n) over the last axes.

    Shapes: input, y (..., *normalized_shape), floating-point; weight and bias `normalized_shape`, or None for 1 and 0.
    """
    shape = checks.integers(normalized_shape, "normalized_shape", "layer_norm")
    return Tensor.apply(LayerNorm, input, weight, bias, shape=shape, eps=eps)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """y = (x - μ) / √(σ² + eps) · weight + bias, with μ and σ² (divided by n) over each image's groups of channels.

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
    """y = (x - μ) / √(σ² + eps) · weight + bias for each channel.

    In training, μ and σ² (divided by n) are computed from the batch, and the running statistics, if given, are updated
    in place: running <- (1 - momentum) · running + momentum · batch, with the batch variance divided by n - 1. In
    evaluation, μ and σ² are `running_mean` and `running_var`, which must be given.

    Shapes: input, y (N, C, ...), floating-point; all others (C,); weight and bias may be None for 1 and 0. In training
    each channel needs more than one value.
    """
    statistics = {"running_mean": running_mean, "running_var": running_var}
    running = {name: x if x is None else raw_array(x, name, "batch_norm") for name, x in statistics.items()}
    return Tensor.apply(BatchNorm, input, weight, bias, training=training, momentum=momentum, eps=eps, **running)


def standardize_weight(weight: Tensor, eps: float = 1e-8) -> Tensor:
    """(w - μ) / √(σ² + eps), with μ and σ² over each filter w.

    Shapes: weight, result (O, ...), a filter for each output channel of a convolution; floating-point.
    """
    return Tensor.apply(StandardizeWeight, weight, eps=eps)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """y = x / max(‖x‖₂, eps), with the Euclidean norm of the vectors along `dim`; floating-point. `p` must be 2."""
    if p != 2:
        raise ValueError(f"normalize: only the Euclidean norm, p=2, is supported, got p={p}")
    checks.floating(input, "normalize")
    eps = checks.not_negative(eps, "eps", "normalize")
    half = is_half(input.dtype)
    x = input.float() if half else input  # in float16, squares and eps under- or overflow
    squares = (x * x).sum(dim, keepdim=True)
    is_zero = squares == 0  # the gradient of √ at 0 is infinite: as in PyTorch, ‖0‖ is a constant
    norm = where(is_zero, 0.0, where(is_zero, 1.0, squares).sqrt())
    minimum = max(eps, float(np.finfo(x.dtype).tiny)) if eps else 0.0  # a positive eps is not rounded to 0
    y = x / norm.clamp(min=minimum)
    return y.to(dtype=input.dtype) if half else y


# Activations ----------------------------------------------------------------------------------------------------------


def relu(input: Tensor) -> Tensor:
    """y = max(x, 0), elementwise."""
    return Tensor.apply(ReLU, input)


def gelu(input: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """y = x · Φ(x), elementwise, Φ the standard normal distribution function; floating-point.

    approximate="tanh": y = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), within 5e-4.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return Tensor.apply(GELU if approximate == "none" else GELUTanh, input)


def silu(input: Tensor) -> Tensor:
    """y = x / (1 + e⁻ˣ), elementwise, also called swish; floating-point."""
    return Tensor.apply(SiLU, input)


def softmax(input: Tensor, dim: int) -> Tensor:
    """yᵢ = exp xᵢ / Σⱼ exp xⱼ along `dim`; floating-point. y has the shape of the input."""
    return Tensor.apply(Softmax, input, axis=dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """yᵢ = xᵢ - ln Σⱼ exp xⱼ along `dim`, more accurate than the logarithm of `softmax`; floating-point."""
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
    """y = dropout(softmax(scale · q kᵀ + mask)) v, softmax over the keys.

    Shapes: query (..., L, E), key (..., S, E), value (..., S, V), y (..., L, V), floating-point; other axes broadcast.

    Args:
        attn_mask: broadcasts to (..., L, S): boolean, True where a query may attend to a key, or floating-point, added
            to the scores. A query that may attend to no key gives zeros.
        dropout_p: the probability of dropping an attention weight. As in PyTorch, pass 0 in evaluation.
        is_causal: query i attends to keys 0 to i alone; not together with `attn_mask`.
        scale: by default 1 / √E.
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
    """Swin's attention: softmax(q kᵀ / √d + bias + mask) v within each window of a feature map.

    Shapes: qkv (B, H, W, 3C), floating-point: q, k and v of each token, C channels each; bias (num_heads, N, N) or
    None, for windows of N tokens; the result (B, H, W, C).

    Args:
        window_size: an integer or (height, width), which divide H and W.
        shift: offset of the windows down and right, an integer or a pair, less than the window. Windows that cross the
            border continue at the opposite side; the mask is -100 between tokens that are neighbours only by this
            wrap-around, else 0.
        dropout_p: the probability of dropping an attention weight, as in `scaled_dot_product_attention`.
    """
    checks.probability(dropout_p, "window_attention")
    shift = checks.pair(shift, "shift", "window_attention", minimum=0)
    num_heads = checks.integer(num_heads, "num_heads", "window_attention")
    MH, MW = checks.pair(window_size, "window_size", "window_attention", minimum=0)
    window: Any = MH if MH == MW else (MH, MW)
    options = {"num_heads": num_heads, "window_size": window, "shift": shift, "dropout_p": dropout_p}
    return Tensor.apply(WindowAttention, qkv, bias, **options)


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """In training, set each element to 0 with probability p and divide the others by 1 - p; else return the input.

    Shapes: input and result alike; floating-point. p is from 0 to 1.
    """
    checks.probability(p, "dropout")
    return Tensor.apply(Dropout, input, p=p, mask_shape=input.shape) if training and p else input


def drop_path(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Stochastic depth: `dropout` of entire samples, the slices along axis 0.

    Shapes: input and result (N, ...), floating-point. p is from 0 to 1.
    """
    checks.probability(p, "drop_path")
    mask_shape = input.shape[:1] + (1,) * (input.ndim - 1)
    return Tensor.apply(Dropout, input, p=p, mask_shape=mask_shape) if training and p else input


def residual(
    x: Tensor, branch: Tensor, scale: Tensor | None = None, drop_path: float = 0.0, training: bool = True
) -> Tensor:
    """x + m · scale ⊙ branch: a residual connection with layer scale and stochastic depth.

    In training, m is 0 for a sample (of axis 0) with probability `drop_path`, and 1 / (1 - drop_path) otherwise; in
    evaluation, m is 1. Shapes: x, branch, result (N, ..., C), floating-point; scale (C,), or None for 1.
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
    """`s = residual(x, branch, drop_path=...)` and `layer_norm(s, C, weight, bias, eps)`, both returned by one op.

    Shapes: x, branch and both results (N, ..., C), floating-point; weight, bias (C,).
    """
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
    """lossₙ = -Σ_c weight_c · q_nc · ln softmax(xₙ)_c, for logits x and target probabilities q.

    Shapes: input (N, C, ...) or (C,), floating-point; losses (N, ...) or ().

    Args:
        target: class indices (integers, in the shape of the losses), as one-hot q; or q itself, in the shape of the
            input. A class index out of range is an IndexError (CPU only).
        weight: weights of the classes, (C,); None: all 1.
        ignore_index: targets with this index have loss 0 and do not count in the mean.
        reduction: "none"; "sum"; or "mean", the sum divided by Σₙ weight[targetₙ], or for q by the number of losses.
        label_smoothing: s from 0 to 1: q becomes (1 - s) · q + s / C.
    """
    ignore_index = checks.integer(ignore_index, "ignore_index", "cross_entropy")
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return Tensor.apply(CrossEntropy, input, target, weight, **options)


def mse_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """lossᵢ = (xᵢ - tᵢ)², for x = input and t = target. reduction: "mean" over all elements, "sum", or "none".

    Shapes: input, floating-point, and target alike (they do not broadcast).
    """
    return Tensor.apply(MSELoss, input, target, reduction=reduction)


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """1 at the class index, 0 elsewhere, as int64.

    Shapes: target (...) of integers (else TypeError), result (..., num_classes). A class index out of range is an
    IndexError (CPU only).
    """
    index, num_classes = raw_array(target, "target", "one_hot"), checks.integer(num_classes, "num_classes", "one_hot")
    if index.dtype.kind not in "iu":
        raise TypeError(f"one_hot: target must hold integers, got {index.dtype}")
    if isinstance(index, np.ndarray) and index.size and not 0 <= index.min() <= index.max() < num_classes:
        raise IndexError(
            f"one_hot: class indices must be from 0 to {num_classes - 1}, got {index.min()} to {index.max()}"
        )
    xp = array_module(index)
    return Tensor((index[..., None] == xp.arange(num_classes)).astype(np.int64))


# Padding and resizing -------------------------------------------------------------------------------------------------


def pad(
    input: Tensor,
    pad: Sequence[int],
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant",
    value: float | None = None,
) -> Tensor:
    """Pad the last axes; negative widths crop.

    Args:
        pad: widths (before, after) of the last axis, then of the second to last, and so on. Widths are at most the
            axis size for "circular", and 1 less for "reflect".
        mode: "constant" fills with `value`; "reflect" mirrors at the border elements, "replicate" repeats the border
            elements, "circular" continues at the opposite end. As in PyTorch, "circular" crops before it pads;
            "reflect" and "replicate" pad before they crop.
        value: for mode "constant" only; by default 0. An integer dtype must be able to hold the value.
    """
    if not isinstance(pad, Sequence) or len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(f"pad: needs widths (before, after) for at most {input.ndim} axes, got {pad!r}")
    pad = checks.integers(pad, "each width", "pad")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        widths = [(0, 0)] * (input.ndim - len(pairs)) + pairs[::-1]
        return Tensor.apply(Pad, input, widths=widths, value=0 if value is None else value)
    if value is not None:
        raise ValueError(f"pad: value is only for mode 'constant', got mode {mode!r}")
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
    """Resize images. Shapes: input (N, C, H, W), floating-point; result (N, C, OH, OW).

    Args:
        size: (OH, OW), or one integer for both. Give either `size` or `scale_factor`.
        scale_factor: OH = ⌊H · scale_factor⌋, and OW likewise; a number or a pair.
        mode: "nearest-exact" copies the input pixel at the centre of an output pixel, "nearest" the input pixel at the
            output pixel's upper left corner; "bilinear" and "bicubic" interpolate between 2 x 2 and 4 x 4 input pixels.
        align_corners: for "bilinear" and "bicubic": True aligns the centres of the corner pixels of input and output,
            False (default) the outer edges of these pixels.
        recompute_scale_factor: True: place output pixels by the ratio OH / H of the sizes, not by `scale_factor`.
        antialias: for "bilinear" and "bicubic": when downsampling, widen the filter by the ratio of the sizes.
    """
    checks.rank(input, 4, "(N, C, H, W)", "interpolate")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor, and not both")
    scales = None
    if scale_factor is not None:
        scales = _scales(scale_factor)
        size = (int(input.shape[2] * scales[0]), int(input.shape[3] * scales[1]))
        if min(size) < 1:
            raise ValueError(f"interpolate: scale_factor {scale_factor} of images {input.shape[2:]} gives size {size}")
        scales = None if recompute_scale_factor else scales
    options = {"mode": mode, "align_corners": align_corners, "antialias": antialias}
    size = checks.pair(size, "size", "interpolate", minimum=1)
    return Tensor.apply(Interpolate, input, size=size, scales=scales, **options)


def _scales(scale_factor: Any) -> tuple[float, float]:
    """`scale_factor`, a number or a pair, as a pair of floats (height, width)."""
    both = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor, scale_factor)
    if isinstance(both, str) or any(not isinstance(scale, int | float | np.number) for scale in both):
        raise TypeError(f"interpolate: scale_factor must be a number or a pair (height, width), got {scale_factor!r}")
    if len(both) != 2:
        raise ValueError(
            f"interpolate: scale_factor must be a number or a pair (height, width), got {len(both)} values: "
            f"{scale_factor!r}"
        )
    if not all(0 < scale < np.inf for scale in both):
        raise ValueError(f"interpolate: each scale_factor must be above 0 and finite, got {scale_factor!r}")
    return float(both[0]), float(both[1])


def _batched(op: Any, x: Tensor) -> Tensor:
    """`op(x)`, for `op` a function of images (N, C, H, W), and x images or one image (C, H, W)."""
    return op(x) if x.ndim != 3 else op(x[None])[0]


def _border_index(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """The index of the input element at each position of a padded axis, from -before to size + after - 1."""
    start, end = max(-before, 0), size - max(-after, 0)  # the part of the axis that is not cropped
    limits = {"reflect": size - 1, "circular": max(end - start, 0), "replicate": np.inf if size else 0}
    if mode not in limits:
        raise ValueError(f'pad: mode must be "constant", "reflect", "replicate" or "circular", got {mode!r}')
    if max(before, after) > limits[mode]:
        raise ValueError(
            f"pad: in mode {mode!r} widths must be at most {limits[mode]} for an axis of size {size}"
            f"{' that is cropped' if mode == 'circular' and min(before, after) < 0 else ''}, got {(before, after)}"
        )
    length = size + before + after
    if length < 0 or (length == 0 and mode != "circular"):
        raise ValueError(f"pad: widths {before, after} crop all of an axis of size {size} in mode {mode!r}")
    position = np.arange(-before, size + after)
    if mode == "reflect":
        return size - 1 - abs(size - 1 - abs(position))
    if mode == "replicate":
        return position.clip(0, size - 1)
    return start + (position - start) % max(end - start, 1)
