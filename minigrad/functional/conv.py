"""L4: linear layers and convolutions."""

from minigrad._tensor import Tensor
from minigrad.functional.arguments import Pair, batched
from minigrad.ops import checks
from minigrad.ops.conv import Conv2d
from minigrad.ops.matmul import Linear


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b, for x = input. Shapes: x (..., D), weight (O, D), bias (O,), y (..., O)."""
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
    """2-D convolution, which is cross-correlation: y[n,o,i,j] = bias[o] + Σ_c,k,l weight[o,c,k,l] · x[n,c,h,w],

        h = i · stride + k · dilation - padding,  w likewise from j and l;   x = 0 outside the image
        OH = ⌊(H + 2 · padding - dilation · (KH - 1) - 1) / stride⌋ + 1,  OW likewise

    Shapes: input (N, C, H, W) or (C, H, W), weight (O, C / groups, KH, KW), bias (O,), y (N, O, OH, OW) or (O, OH, OW).

    Args:
        input: floating-point. If it is 16-bit, so is y, whatever the dtypes of `weight` and `bias`.
        padding: zeros on both sides of H and W; also "valid" (0), or "same" (y is as large as x; stride 1 only).
        groups: the number of groups of channels; output channels of a group depend only on its input channels.
    """
    groups = checks.integer(groups, "groups", "conv2d")
    padding = padding if isinstance(padding, str) else checks.pair(padding, "padding", "conv2d", minimum=0)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return batched(lambda x: Tensor.apply(Conv2d, x, weight, bias, **options), input)
