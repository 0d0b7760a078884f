"""L2: images as columns of windows, and back: im2col and col2im, which are the transposes of each other."""

from typing import Any

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.ops import checks
from minigrad.ops.windows import Pair, Windows, span


class Unfold(Function):
    """Each window of the padded images as a column (im2col).

        y[n, (c,k,l), (i,j)] = x[n,c,h,w],   h = i · stride + k · dilation - padding,  w likewise from j and l
        ∂x[n,c,h,w] = Σ ∂y[n, (c,k,l), (i,j)]  over all i,j,k,l that give this h and w: `Fold`

    Shapes: x (N, C, H, W); y (N, C·KH·KW, OH·OW).  Saves the shape of x.
    """

    def forward(self, x: Array, *, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Array:
        checks.rank(x, 4, "(N, C, H, W)", "unfold")
        checks.floating(x, "unfold")
        self.shape = x.shape
        self.windows = _windows((x.shape[2], x.shape[3]), kernel_size, dilation, padding, stride, "unfold")
        return _columns(x, self.windows)

    def backward(self, grad_output: Array) -> Array:
        return _images(grad_output, self.windows, self.shape)


class Fold(Function):
    """The sum of the windows in the columns, each at its place in the images (col2im).

        y[n,c,h,w] = Σ x[n, (c,k,l), (i,j)]  over all i,j,k,l that give this h and w, as in `Unfold`
        ∂x: `Unfold` of ∂y

    Shapes: x (N, C·KH·KW, OH·OW); y (N, C, *output_size).  Saves nothing but the geometry.
    """

    def forward(
        self, x: Array, *, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any
    ) -> Array:
        checks.floating(x, "fold")
        size = checks.pair(output_size, "output_size", "fold", minimum=1)
        self.windows = _windows(size, kernel_size, dilation, padding, stride, "fold")
        (KH, KW), (OH, OW) = self.windows.kernel, self.windows.out
        if x.ndim != 3 or x.shape[1] % (KH * KW) or x.shape[2] != OH * OW:
            raise ValueError(
                f"fold: the input must be (N, C · {KH} · {KW}, {OH} · {OW}) for kernel_size {KH, KW} and {OH} x {OW} "
                f"windows in an output of {size}, got shape {x.shape}"
            )
        return _images(x, self.windows, (len(x), x.shape[1] // (KH * KW), *size))

    def backward(self, grad_output: Array) -> Array:
        return _columns(grad_output, self.windows)


def _columns(x: Array, windows: Windows) -> Array:
    """(N, C, H, W) -> (N, C·KH·KW, OH·OW), as a copy."""
    pixels = windows.view(windows.pad(x.transpose(0, 2, 3, 1)))  # (N, OH, OW, KH, KW, C)
    (KH, KW), (OH, OW) = windows.kernel, windows.out
    # (N, OH, OW, KH, KW, C) -> (N, C, KH, KW, OH, OW) -> (N, C·KH·KW, OH·OW)
    return pixels.transpose(0, 5, 3, 4, 1, 2).copy().reshape(len(x), x.shape[1] * KH * KW, OH * OW)


def _images(columns: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    """(N, C·KH·KW, OH·OW) -> (N, C, H, W), of this shape. At a given tap, no two windows share a pixel."""
    N, C, H, W = shape
    pixels = columns.reshape(N, C, *windows.kernel, *windows.out).transpose(0, 4, 5, 2, 3, 1)  # (N, OH, OW, KH, KW, C)
    padded = array_module(columns).zeros(windows.padded_shape((N, H, W, C)), columns.dtype)
    for (k, l), where in windows.taps():  # noqa: E741
        padded[where] += pixels[:, :, :, k, l]
    return windows.unpad(padded).transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


def _windows(size: Pair, kernel: Any, dilation: Any, padding: Any, stride: Any, op: str) -> Windows:
    """Check the arguments and compute the windows of images of this size."""
    kernel = checks.pair(kernel, "kernel_size", op, minimum=1)
    dilation = checks.pair(dilation, "dilation", op, minimum=1)
    padding = checks.pair(padding, "padding", op, minimum=0)
    stride = checks.pair(stride, "stride", op, minimum=1)
    extent = span(kernel, dilation)
    OH, OW = ((size[a] + 2 * padding[a] - extent[a]) // stride[a] + 1 for a in (0, 1))
    if min(OH, OW) < 1:
        raise ValueError(
            f"{op}: a window spans {extent} pixels, but the padded image has only "
            f"{size[0] + 2 * padding[0], size[1] + 2 * padding[1]}; use a smaller kernel_size, or pad more"
        )
    return Windows(kernel, stride, dilation, padding, padding, (OH, OW))
