"""L2: pooling: each window of an image is reduced to one value, channel by channel.

As in `conv.py`, `MaxPool2d` and `AvgPool2d` compute on channels-last images, and return views of channels-last memory.
"""

from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, to_device_of
from minigrad.backend.sums import mean_over
from minigrad.ops import checks
from minigrad.ops.windows import Pair, Windows, span


class MaxPool2d(Function):
    """y = the maximum of each window, with padding of -∞.

        y[n,c,i,j]  = max_k,l  x[n,c,h,w],   h = i · stride + k · dilation - padding;  w likewise from j and l
        ∂x[n,c,h,w] = Σ ∂y[n,c,i,j]  over the windows i,j whose maximum is at this h and w

    Of several equal maxima only the first has a gradient. NaN counts as the maximum; of several NaNs, the last has the
    gradient.

    Shapes: x (N, C, H, W); y (N, C, OH, OW).  Saves the tap k · KW + l of each maximum, as uint8 if KH·KW ≤ 256.
    """

    def forward(
        self, x: Array, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> Array:
        self.windows = windows = _windows(x, kernel_size, stride, padding, dilation, ceil_mode, "max_pool2d")
        x = x.transpose(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        self.shape, padded, xp = x.shape, windows.pad(x, -np.inf), array_module(x)
        y = xp.full((x.shape[0], *windows.out, x.shape[3]), -np.inf, x.dtype)
        self.argmax = xp.empty(y.shape, np.min_scalar_type(windows.kernel[0] * windows.kernel[1] - 1))
        self.argmax[...] = to_device_of(_first_tap(windows), x)[:, :, None]  # for windows in which all values are -∞
        for tap, (_, where) in enumerate(windows.taps()):
            values = padded[where]
            self.argmax[(values > y) | xp.isnan(values)] = tap
            xp.maximum(y, values, out=y)
        return y.transpose(0, 3, 1, 2)  # (N, OH, OW, C) -> (N, C, OH, OW)

    def indices(self) -> Array:
        """The position h · W + w of each maximum in its image, (N, C, OH, OW) int64; after `forward`."""
        windows, xp = self.windows, array_module(self.argmax)
        (SH, SW), (DH, DW), (top, left), (OH, OW) = windows.stride, windows.dilation, windows.before, windows.out
        tap = self.argmax.astype(np.int64)
        h = xp.arange(OH)[:, None, None] * SH + tap // windows.kernel[1] * DH - top
        w = xp.arange(OW)[:, None] * SW + tap % windows.kernel[1] * DW - left
        return (h * self.shape[2] + w).transpose(0, 3, 1, 2)  # (N, OH, OW, C) -> (N, C, OH, OW)

    def backward(self, grad_output: Array) -> Array:
        grad_y, xp = grad_output.transpose(0, 2, 3, 1), array_module(grad_output)
        padded = xp.zeros(self.windows.padded_shape(self.shape), grad_y.dtype)
        for tap, (_, where) in enumerate(self.windows.taps()):
            padded[where] += xp.where(self.argmax == tap, grad_y, 0)
        return self.windows.unpad(padded).transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class AvgPool2d(Function):
    """y = the mean of each window, with padding of 0.

        y[n,c,i,j]  = Σ_k,l  x[n,c,h,w] / D[i,j],   h = i · stride + k - padding;  w likewise from j and l
        ∂x[n,c,h,w] = Σ ∂y[n,c,i,j] / D[i,j]  over the windows i,j that contain this h and w

    D[i,j] is `divisor_override` if given, else the number of pixels of the window in the image, or with
    `count_include_pad` in the image or its padding. With `ceil_mode`, pixels beyond the padding are not counted.

    Shapes: x (N, C, H, W); y (N, C, OH, OW); D (OH, OW, 1) or ().  Saves D.
    """

    def forward(
        self,
        x: Array,
        *,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Array:
        self.windows = windows = _windows(x, kernel_size, stride, padding, 1, ceil_mode, "avg_pool2d")
        if divisor_override == 0:
            raise ValueError("avg_pool2d: divisor_override must not be 0")
        x = x.transpose(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        self.shape, padded, xp = x.shape, windows.pad(x), array_module(x)
        if divisor_override is None:
            rows, columns = _counts(windows, x.shape[1:3], count_include_pad)
            self.divisor = to_device_of((rows[:, None, None] * columns[:, None]).astype(x.dtype), x)
        else:
            self.divisor = xp.full((), divisor_override, x.dtype)
        y = xp.zeros((x.shape[0], *windows.out, x.shape[3]), x.dtype)
        for _, where in windows.taps():
            y += padded[where]
        y /= self.divisor
        return y.transpose(0, 3, 1, 2)  # (N, OH, OW, C) -> (N, C, OH, OW)

    def backward(self, grad_output: Array) -> Array:
        grad_pixel = grad_output.transpose(0, 2, 3, 1) / self.divisor
        padded = array_module(grad_pixel).zeros(self.windows.padded_shape(self.shape), grad_pixel.dtype)
        for _, where in self.windows.taps():
            padded[where] += grad_pixel
        return self.windows.unpad(padded).transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class AdaptiveAvgPool2d(Function):
    """y = the means of OH × OW windows that cover the image; their heights and widths differ by at most one pixel.

        y[..,i,j] = the mean of x[.., a:b, likewise from j],   a = ⌊i · H / OH⌋,  b = ⌈(i + 1) · H / OH⌉
        ∂x[..,h,w] = Σ ∂y[..,i,j] / (size of window i,j)  over the windows that contain this h and w

    The mean of a rectangle is the mean of the means of its rows, so H and W are averaged one after the other.
    `output_size` is (OH, OW), or one integer for both; None keeps the size of an axis.

    Shapes: x (N, C, H, W); y (N, C, OH, OW).  Saves the shape of x.
    """

    def forward(self, x: Array, *, output_size: Any) -> Array:
        checks.rank(x, 4, "(N, C, H, W)", "adaptive_avg_pool2d")
        checks.floating(x, "adaptive_avg_pool2d")
        _not_empty(x, "adaptive_avg_pool2d")
        pair = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
        sizes = tuple(x.shape[2 + i] if size is None else size for i, size in enumerate(pair))
        height, width = checks.pair(sizes, "output_size", "adaptive_avg_pool2d", minimum=1)
        self.shape = x.shape
        # (N, C, H, W) -> (N, C, W, H) -> (N, C, W, OH) -> (N, C, OH, W) -> (N, C, OH, OW)
        return _means(_means(x.swapaxes(2, 3), height).swapaxes(2, 3), width)

    def backward(self, grad_output: Array) -> Array:
        grad_rows = _means_backward(grad_output, self.shape[3])  # (N, C, OH, OW) -> (N, C, OH, W)
        return _means_backward(grad_rows.swapaxes(2, 3), self.shape[2]).swapaxes(2, 3)  # -> (N, C, H, W)


def _means(x: Array, parts: int) -> Array:
    """The means of `parts` intervals of the last axis: (..., size) -> (..., parts)."""
    means = [mean_over(x[..., a:b], -1) for a, b in _intervals(x.shape[-1], parts)]
    return array_module(x).stack(means, axis=-1)


def _means_backward(grad: Array, size: int) -> Array:
    """∂x of `_means`, (..., parts) -> (..., size): each gradient is divided equally over its interval of x."""
    grad_x = array_module(grad).zeros((*grad.shape[:-1], size), grad.dtype)
    for i, (a, b) in enumerate(_intervals(size, grad.shape[-1])):
        grad_x[..., a:b] += grad[..., i : i + 1] / (b - a)
    return grad_x


def _intervals(size: int, parts: int) -> list[Pair]:
    """Interval i is from ⌊i · size / parts⌋ to ⌈(i + 1) · size / parts⌉; neighbours may share a pixel."""
    return [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]


def _windows(x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, op: str) -> Windows:
    """Check the arguments of a pooling op and compute its windows."""
    checks.rank(x, 4, "(N, C, H, W)", op)
    checks.floating(x, op)
    _not_empty(x, op)
    kernel = checks.pair(kernel, "kernel_size", op, minimum=1)
    stride = checks.pair(stride, "stride", op, minimum=1)
    dilation = checks.pair(dilation, "dilation", op, minimum=1)
    padding = checks.pair(padding, "padding", op, minimum=0)
    extent = span(kernel, dilation)
    if padding[0] > kernel[0] // 2 or padding[1] > kernel[1] // 2:
        raise ValueError(
            f"{op}: padding must be at most half of kernel_size {kernel}, got {padding}; for more padding, use F.pad"
        )
    rows, below = _fit(x.shape[2], extent[0], stride[0], padding[0], ceil_mode)
    columns, right = _fit(x.shape[3], extent[1], stride[1], padding[1], ceil_mode)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"{op}: a window spans {extent} pixels, but the padded image has only "
            f"{x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1]}; use a smaller kernel_size, or pad more"
        )
    return Windows(kernel, stride, dilation, padding, (below, right), (rows, columns))


def _fit(size: int, extent: int, stride: int, padding: int, ceil_mode: bool) -> Pair:
    """The number of windows along one axis, and the number of pixels of the last window after the end of the image.

    `ceil_mode` rounds the number of windows up: the last window may end outside the padding, but must start in the
    image or in the padding before the image.
    """
    last_start = size + 2 * padding - extent
    out = (last_start + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out, max(0, (out - 1) * stride + extent - size - padding)


def _counts(windows: Windows, size: Pair, count_include_pad: bool) -> list[np.ndarray]:
    """The number of counted pixels of each window, along H (OH,) and along W (OW,)."""
    counts = []
    for axis in (0, 1):
        padding = windows.before[axis]
        start = np.arange(windows.out[axis]) * windows.stride[axis] - padding
        end = np.minimum(start + windows.kernel[axis], size[axis] + padding)
        if not count_include_pad:
            start, end = np.maximum(start, 0), np.minimum(end, size[axis])
        counts.append(end - start)
    return counts


def _first_tap(windows: Windows) -> np.ndarray:
    """For each window, the index of its first tap inside the image: (OH, OW)."""
    first = []
    for axis in (0, 1):
        outside = windows.before[axis] - np.arange(windows.out[axis]) * windows.stride[axis]
        first.append(-(-np.maximum(outside, 0) // windows.dilation[axis]))
    return first[0][:, None] * windows.kernel[1] + first[1]


def _not_empty(x: Array, op: str) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: only the batch may be empty, got shape {x.shape}")
