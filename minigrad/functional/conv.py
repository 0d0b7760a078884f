"""L4: linear layers and convolutions."""

from typing import Any

from minigrad._tensor import Tensor
from minigrad.functional.arguments import Pair, batched
from minigrad.ops import checks
from minigrad.ops.conv import Conv2d, ConvTranspose2d, sides_of_padding
from minigrad.ops.fold import Fold, Unfold
from minigrad.ops.matmul import Linear


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
    return batched(lambda x: Tensor.apply(Conv2d, x, weight, bias, **options), input)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] | str = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
) -> Tensor:
    """1-D convolution: `conv2d` of images of height 1, with the same arguments.

    Shapes: input (N, C, L) or (C, L), weight (O, C / groups, K), bias (O,), y (N, O, OL) or (O, OL), OL as OW.
    """
    if weight.ndim != 3 or input.ndim not in (2, 3):
        raise ValueError(
            "conv1d: input must be (N, C, L) or (C, L), and weight (O, C / groups, K), got shapes "
            f"{input.shape} and {weight.shape}"
        )
    (S,), (D,) = checks.integers(stride, "stride", "conv1d"), checks.integers(dilation, "dilation", "conv1d")
    sides: Any = padding if isinstance(padding, str) else (0, *checks.integers(padding, "padding", "conv1d"))
    return conv2d(input.unsqueeze(-2), weight.unsqueeze(-2), bias, (1, S), sides, (1, D), groups).squeeze(-2)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Tensor:
    """Transposed 2-D convolution: the gradient of `conv2d` with respect to its input, for the upstream gradient x.

        y[n,o,h,w] = bias[o] + Σ x[n,c,i,j] · weight[c,o,k,l]  over all c,i,j,k,l with h = i · stride + k · dilation -
        padding, and w likewise from j and l
        OH = (H - 1) · stride - 2 · padding + dilation · (KH - 1) + output_padding + 1,  OW likewise

    Shapes: input (N, C, H, W) or (C, H, W), weight (C, O / groups, KH, KW), bias (O,), y (N, O, OH, OW) or (O, OH, OW).

    Args:
        input: as in `conv2d`.
        padding: rows and columns that are removed at each side of y.
        output_padding: rows and columns added below and at the right: fewer than `stride` or `dilation`.
        groups: the number of groups of channels, as in `conv2d`.
    """
    groups = checks.integer(groups, "groups", "conv_transpose2d")
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return batched(lambda x: Tensor.apply(ConvTranspose2d, x, weight, bias, groups=groups, **options), input)


def unfold(input: Tensor, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1) -> Tensor:
    """Each window of the images as a column (im2col): y[n, (c,k,l), (i,j)] = x[n,c,h,w], h and w as in `conv2d`.

    Shapes: input (N, C, H, W) or (C, H, W), floating-point; y (N, C · KH · KW, OH · OW) or without N.
    """
    options = {"kernel_size": kernel_size, "dilation": dilation, "padding": padding, "stride": stride}
    return batched(lambda x: Tensor.apply(Unfold, x, **options), input)


def fold(
    input: Tensor, output_size: Pair, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1
) -> Tensor:
    """The sum of the columns of `unfold`, each at the place of its window (col2im).

    Shapes: input (N, C · KH · KW, OH · OW) or without N, floating-point; y (N, C, *output_size) or without N. There
    are OH · OW windows in images of `output_size`.
    """
    options = {"kernel_size": kernel_size, "dilation": dilation, "padding": padding, "stride": stride}
    y = Tensor.apply(Fold, input if input.ndim == 3 else input.unsqueeze(0), output_size=output_size, **options)
    return y if input.ndim == 3 else y.squeeze(0)
