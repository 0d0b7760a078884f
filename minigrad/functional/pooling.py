"""L4: pooling."""

from typing import Any

from minigrad._tensor import Tensor
from minigrad.autograd.function import run
from minigrad.backend.dtypes import upcast
from minigrad.functional.arguments import Pair, batched
from minigrad.ops import checks
from minigrad.ops.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window: y[n,c,i,j] = max_k,l x[n,c,h,w], h and w as in `conv2d`, x = -∞ in the padding.

    Shapes: input (N, C, H, W) or (C, H, W), floating-point; y with OH and OW as in `conv2d`.

    Args:
        stride: by default `kernel_size`, so that windows do not overlap.
        padding: at most half of `kernel_size`.
        ceil_mode: round OH and OW up, so that the last window may extend beyond the padding.
        return_indices: return y and the position h · W + w of each maximum in its image, int64, of y's shape.
    """
    stride = kernel_size if stride is None else stride
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    y = batched(lambda x: Tensor.apply(MaxPool2d, x, ceil_mode=ceil_mode, **options), input)
    if not return_indices:
        return y
    images = input.data if input.ndim == 4 else input.data[None]
    (images,) = upcast([images])
    op, _ = run(MaxPool2d, (False,), images, ceil_mode=ceil_mode, **options)
    return y, Tensor(op.indices().reshape(y.shape))  # type: ignore[attr-defined]


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
    return batched(lambda x: Tensor.apply(AvgPool2d, x, **options, **counting), input)


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """The means of OH x OW windows that cover the image: window i has rows ⌊i · H / OH⌋ to ⌈(i + 1) · H / OH⌉ - 1.

    Shapes: input (N, C, H, W) or (C, H, W), floating-point; y (N, C, OH, OW) or (C, OH, OW). `output_size` is OH = OW,
    or a pair (OH, OW), in which None keeps the size of the input.
    """
    return batched(lambda x: Tensor.apply(AdaptiveAvgPool2d, x, output_size=output_size), input)


def max_pool1d(
    input: Tensor, kernel_size: int, stride: int | None = None, padding: int = 0, dilation: int = 1,
    ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """`max_pool2d` of rows: input (N, C, L) or (C, L)."""
    step = kernel_size if stride is None else stride
    images = input.unsqueeze(-2)  # (N, C, 1, L)
    return max_pool2d(images, (1, kernel_size), (1, step), (0, padding), (1, dilation), ceil_mode).squeeze(-2)


def avg_pool1d(
    input: Tensor, kernel_size: int, stride: int | None = None, padding: int = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """`avg_pool2d` of rows: input (N, C, L) or (C, L)."""
    step = kernel_size if stride is None else stride
    images = input.unsqueeze(-2)  # (N, C, 1, L)
    return avg_pool2d(images, (1, kernel_size), (1, step), (0, padding), ceil_mode, count_include_pad).squeeze(-2)


def adaptive_avg_pool1d(input: Tensor, output_size: int) -> Tensor:
    """`adaptive_avg_pool2d` of rows: input (N, C, L) or (C, L)."""
    return adaptive_avg_pool2d(input.unsqueeze(-2), (1, output_size)).squeeze(-2)
