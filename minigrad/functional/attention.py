"""L4: attention, dropout and residual connections."""

from collections.abc import Sequence
from typing import Any

from minigrad._tensor import Tensor
from minigrad.ops import checks
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.dropout import Dropout
from minigrad.ops.residual import Residual, ResidualLayerNorm
from minigrad.ops.window_attention import WindowAttention


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
    return _dropout(input, p, training, input.ndim, "dropout")


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`dropout` of entire channels of (N, C, L)."""
    return dropout2d(input, p, training)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`dropout` of entire channels of (N, C, H, W)."""
    return _dropout(input, p, training, 2, "dropout")


def drop_path(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Stochastic depth: `dropout` of entire samples, the slices along axis 0.

    Shapes: input and result (N, ...), floating-point. p is from 0 to 1.
    """
    return _dropout(input, p, training, 1, "drop_path")


def _dropout(input: Tensor, p: float, training: bool, axes: int, op: str) -> Tensor:
    """Dropout with a mask along the first `axes` axes, broadcast along the others."""
    checks.probability(p, op)
    mask_shape = input.shape[:axes] + (1,) * (input.ndim - axes)
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
