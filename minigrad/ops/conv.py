"""L2: 2-D convolution, which is cross-correlation in every deep-learning framework, and its transpose.

Inside, images are channels-last, (N, H, W, C). The output (N, O, OH, OW) is a view of channels-last memory too: if the
next layer wants tokens (N, OH·OW, O), they need no copy. Letters: KH × KW taps, OH × OW windows, G groups, each of
C' = C / G input and O' = O / G output channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, gemm, promote
from minigrad.backend.dtypes import is_half
from minigrad.backend.sums import sum_over
from minigrad.ops import checks
from minigrad.ops.windows import Pair, Windows, blocks, span


class Conv2d(Function):
    """y = x ⋆ weight + bias: the inner product of each window of the padded image with the weight.  LeCun et al. 1989,
    "Backpropagation applied to handwritten zip code recognition"; groups: Krizhevsky, Sutskever, Hinton 2012.

        y[n,o,i,j]       = bias[o] + Σ_c,k,l  weight[o,c,k,l] · x[n,c,h,w]
                           h = i · stride + k · dilation - padding,  w likewise from j and l;  x = 0 beyond the edge
        ∂x[n,c,h,w]      = Σ_o,i,j,k,l  ∂y[n,o,i,j] · weight[o,c,k,l],  over all i,j,k,l that give this h and w
        ∂weight[o,c,k,l] = Σ_n,i,j  ∂y[n,o,i,j] · x[n,c,h,w]
        ∂bias[o]         = Σ_n,i,j  ∂y[n,o,i,j]

    An output channel depends only on the C' input channels of its group. The sums are computed by `Columns`, or by
    `Depthwise` if G = C > 1.

    Shapes: x (N, C, H, W); weight (O, C', KH, KW); bias (O,) or None; y (N, O, OH, OW).  Saves x and weight.
    """

    def forward(
        self, x: Array, weight: Array, bias: Array | None, *, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Array:
        windows = _windows(x, weight, bias, stride, padding, dilation, groups)
        self.x, self.weight = x.transpose(0, 2, 3, 1), weight  # (N, C, H, W) -> (N, H, W, C)
        self.method = self.method_for(windows, groups, x.shape[1])
        return self.correlate(bias).transpose(0, 3, 1, 2)  # (N, OH, OW, O) -> (N, O, OH, OW)

    def method_for(self, windows: Windows, groups: int, channels: int) -> Any:
        """The object that computes the sums: it has the methods `correlate`, `grad_x` and `grad_weight`."""
        return _method(windows, groups, channels)

    def correlate(self, bias: Array | None) -> Array:
        """Compute y (N, OH, OW, O), including the bias."""
        y = self.method.correlate(self.x, self.weight)
        if bias is not None:
            y += bias
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        grad_x, grad_y = None, grad_output.transpose(0, 2, 3, 1)  # (N, O, OH, OW) -> (N, OH, OW, O)
        if self.needs_input_grad[0]:  # (N, H, W, C) -> (N, C, H, W)
            grad_x = self.grad_x(grad_y).transpose(0, 3, 1, 2)
        return grad_x, *self.grad_parameters(grad_y)

    def grad_x(self, grad_y: Array) -> Array:
        """∂x (N, H, W, C), from ∂y (N, OH, OW, O)."""
        grad_x: Array = self.method.grad_x(grad_y, self.weight, self.x.shape)
        return grad_x

    def grad_parameters(self, grad_y: Array) -> tuple[Array | None, Array | None]:
        """∂weight and ∂bias, None if not wanted, from ∂y (N, OH, OW, O)."""
        _, want_weight, want_bias = self.needs_input_grad
        grad_weight = self.method.grad_weight(grad_y, self.x, self.weight.shape) if want_weight else None
        return grad_weight, sum_over(grad_y, (0, 1, 2)) if want_bias else None


class ConvTranspose2d(Function):
    """The transpose of `Conv2d` as a linear map, plus a bias: y is the ∂x of the convolution whose ∂y is this x.

        y[n,o,h,w] = bias[o] + Σ_c,i,j,k,l  x[n,c,i,j] · weight[c,o,k,l],   over all i,j,k,l that give this h and w,
                     h = i · stride + k · dilation - padding,  w likewise from j and l
        ∂x       = ∂y ⋆ weight, the convolution
        ∂weight  = that of the convolution, with x for its ∂y and ∂y for its x;   ∂bias[o] = Σ_n,h,w  ∂y[n,o,h,w]

    Shapes: x (N, C, H, W); weight (C, O', KH, KW); bias (O,) or None; y (N, O, OH, OW), O = groups · O',
    OH = (H - 1) · stride - 2 · padding + dilation · (KH - 1) + output_padding + 1.  Saves x and weight.
    Zeiler et al. 2010, "Deconvolutional networks".
    """

    def forward(
        self, x: Array, weight: Array, bias: Array | None, *,
        stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: int,
    ) -> Array:  # fmt: skip
        windows, size = _transposed_windows(x, weight, stride, padding, output_padding, dilation, groups)
        outputs = groups * weight.shape[1]
        checks.affine(bias, (outputs,), "bias", "conv_transpose2d")
        self.x, self.weight = x.transpose(0, 2, 3, 1), weight  # (N, C, H, W) -> (N, H, W, C)
        self.method = _method(windows, groups, outputs)
        y = self.method.grad_x(self.x, weight, (len(x), *size, outputs))
        if bias is not None:
            y += bias
        return y.transpose(0, 3, 1, 2)  # (N, OH, OW, O) -> (N, O, OH, OW)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        want_x, want_weight, want_bias = self.needs_input_grad
        grad_y = grad_output.transpose(0, 2, 3, 1)  # (N, O, OH, OW) -> (N, OH, OW, O)
        grad_x = self.method.correlate(grad_y, self.weight).transpose(0, 3, 1, 2) if want_x else None
        grad_weight = self.method.grad_weight(self.x, grad_y, self.weight.shape) if want_weight else None
        return grad_x, grad_weight, sum_over(grad_y, (0, 1, 2)) if want_bias else None


def promote_images(xs: Sequence[Any], op: str) -> list[Any]:
    """x, weight and bias promoted to one dtype; if x is 16-bit, weight and bias keep their dtypes. Integer images are
    a TypeError: they are probably pixels that were not normalised."""
    checks.floating(xs[0], op)
    return list(xs) if is_half(xs[0].dtype) else promote(xs)


@dataclass(frozen=True)
class Columns:
    """Convolution as matrix products.  Chellapilla, Puri, Simard 2006, "High performance convolutional neural
    networks for document processing".

    Let each window be a row of X (N·OH·OW, KH·KW·C') and let W (KH·KW·C', O') be the weight. Then convolution is a
    linear layer for each group, with three matrix products:

        Y = X W,   ∂X = ∂Y Wᵀ,   ∂W = Xᵀ ∂Y

    X is up to KH·KW times as large as x, so X is built for a few images at a time, and built again in backward.
    """

    windows: Windows
    groups: int

    def correlate(self, x: Array, weight: Array) -> Array:
        y = array_module(x).empty((len(x), *self.windows.out, len(weight)), x.dtype)
        W = self._matrix(weight)
        for block in self._blocks(x, weight.shape):
            self._rows(y[block])[...] = gemm(self.unfold(x[block]), W)
        return y

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        grad_x = array_module(grad_y).empty(shape, grad_y.dtype)
        W = self._matrix(weight)
        for block in self._blocks(grad_y, weight.shape):
            grad_x[block] = self.fold(gemm(self._rows(grad_y[block]), W.swapaxes(1, 2)), grad_x[block].shape)
        return grad_x

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        G, grouped = self.groups, shape[0] // self.groups
        grad_W = array_module(x).zeros((G, prod(shape[1:]), grouped), x.dtype)
        for block in self._blocks(x, shape):
            grad_W += gemm(self.unfold(x[block]).swapaxes(1, 2), self._rows(grad_y[block]))
        # (G, KH·KW·C', O') -> (G, KH, KW, C', O') -> (G, O', C', KH, KW) -> (O, C', KH, KW)
        return grad_W.reshape(G, *shape[2:], shape[1], grouped).transpose(0, 4, 3, 1, 2).reshape(shape)

    def unfold(self, x: Array) -> Array:
        """X, with each window as a row (im2col): (N, H, W, C) -> (G, N·OH·OW, KH·KW·C').

            X[(n,i,j), (k,l,c)] = x[n,h,w,c],   h and w as in `Conv2d`

        A view if the windows do not overlap and the strides of x allow it, as for a 1 × 1 kernel; else a copy.
        """
        pixels = self._by_group(self.windows.view(self.windows.pad(x)))  # (G, N, OH, OW, KH, KW, C')
        return pixels.reshape(self.groups, prod(pixels.shape[1:4]), prod(pixels.shape[4:]))

    def fold(self, grad_X: Array, shape: tuple[int, ...]) -> Array:
        """∂x from ∂X (col2im): (G, N·OH·OW, KH·KW·C') -> (N, H, W, C).

            ∂x[n,h,w,c] = Σ ∂X[(n,i,j), (k,l,c)],   over all i,j,k,l that give this h and w

        At a given tap, no two windows read the same pixel. So KH·KW additions to slices suffice: no scatter-add.
        """
        padded = array_module(grad_X).zeros(self.windows.padded_shape(shape), grad_X.dtype)
        by_group = self._by_group(padded)  # (G, N, H, W, C'), a view
        grad_pixels = grad_X.reshape(self.groups, shape[0], *self.windows.out, *self.windows.kernel, -1)
        for tap, where in self.windows.taps():
            by_group[:, *where] += grad_pixels[:, :, :, :, *tap]
        return self.windows.unpad(padded)

    def _by_group(self, x: Array) -> Array:
        """The channels split by group, (..., C) -> (G, ..., C'): a view."""
        return array_module(x).moveaxis(x.reshape(*x.shape[:-1], self.groups, -1), -2, 0)

    def _rows(self, y: Array) -> Array:
        """y with a row for each window: (N, OH, OW, O) -> (G, N·OH·OW, O')."""
        return self._by_group(y.reshape(prod(y.shape[:3]), y.shape[3]))

    def _matrix(self, weight: Array) -> Array:
        """W, its columns contiguous: (O, C', KH, KW) -> (O, KH, KW, C') -> (G, O', KH·KW·C') -> (G, KH·KW·C', O').

        Matrix products read contiguous columns as fast as rows, and copying the filters to columns is faster.
        """
        filters = weight.transpose(0, 2, 3, 1).reshape(self.groups, len(weight) // self.groups, prod(weight.shape[1:]))
        return filters.swapaxes(1, 2)

    def _blocks(self, x: Array, weight_shape: tuple[int, ...]) -> Iterator[slice]:
        """Slices of the batch in which X has a bounded size."""
        return blocks(x, prod(self.windows.out) * self.groups * prod(weight_shape[1:]))


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution, tap by tap: as a matrix product, each channel's W would have only O / C columns.

    At tap (k, l), the windows read one strided slice x' (N, OH, OW, C) of the padded image. Summed over all taps,

        y += x' · weight[k,l],   ∂x' += ∂y · weight[k,l],   ∂weight[k,l] = Σ_n,i,j ∂y · x'

    With O = M · C outputs (a depth multiplier M), channel c has the outputs c · M + m, computed for one m at a time.
    """

    windows: Windows

    def correlate(self, x: Array, weight: Array) -> Array:
        xp, filters = array_module(x), self._filters(weight, x.shape[3])
        y = xp.zeros((len(filters), len(x), *self.windows.out, x.shape[3]), x.dtype)
        for block in self._blocks(x):
            padded, scratch = xp.ascontiguousarray(self.windows.pad(x[block])), xp.empty_like(y[0, block])
            for y_m, weight_m in zip(y[:, block], filters, strict=True):
                for tap, where in self.windows.taps():
                    y_m += xp.multiply(padded[where], weight_m[tap], out=scratch)
        return xp.moveaxis(y, 0, -1).reshape(*y.shape[1:4], len(weight))  # (M, N, OH, OW, C) -> (N, OH, OW, C·M)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        xp, filters = array_module(grad_y), self._filters(weight, shape[3])
        grad_x = xp.empty(shape, grad_y.dtype)
        for block in self._blocks(grad_x):
            padded = xp.zeros(self.windows.padded_shape(grad_x[block].shape), grad_y.dtype)
            for grad_m, weight_m in zip(self._multiples(grad_y[block], len(filters)), filters, strict=True):
                scratch = xp.empty_like(grad_m)
                for tap, where in self.windows.taps():
                    padded[where] += xp.multiply(grad_m, weight_m[tap], out=scratch)
            grad_x[block] = self.windows.unpad(padded)
        return grad_x

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        xp, C = array_module(x), x.shape[3]
        grad_filters = xp.zeros((shape[0] // C, *self.windows.kernel, C), x.dtype)
        for block in self._blocks(x):
            padded = xp.ascontiguousarray(self.windows.pad(x[block]))
            for grad_m, total in zip(self._multiples(grad_y[block], len(grad_filters)), grad_filters, strict=True):
                scratch = xp.empty_like(grad_m)
                for tap, where in self.windows.taps():
                    xp.multiply(padded[where], grad_m, out=scratch)
                    total[tap] += sum_over(scratch, (0, 1, 2))  # Σ_n,i,j
        # (M, KH, KW, C) -> (C, M, KH, KW) -> (O, 1, KH, KW)
        return grad_filters.transpose(3, 0, 1, 2).reshape(shape)

    def _filters(self, weight: Array, C: int) -> Array:
        """The weight, M first: (O, 1, KH, KW) -> (C, M, KH, KW) -> (M, KH, KW, C)."""
        return array_module(weight).ascontiguousarray(weight.reshape(C, -1, *weight.shape[2:]).transpose(1, 2, 3, 0))

    def _multiples(self, grad_y: Array, multiplier: int) -> Array:
        """∂y for each m: (N, OH, OW, C·M) -> (N, OH, OW, C, M) -> (M, N, OH, OW, C)."""
        by_multiple = grad_y.reshape(*grad_y.shape[:3], -1, multiplier)
        return array_module(grad_y).ascontiguousarray(by_multiple.transpose(4, 0, 1, 2, 3))

    def _blocks(self, x: Array) -> Iterator[slice]:
        """Slices of the batch of bounded size; one image counts as four: x, padded x, y and scratch."""
        return blocks(x, 4 * prod(x.shape[1:]))


def _method(windows: Windows, groups: int, channels: int) -> Any:
    """The object that computes the sums of a convolution with this number of input channels."""
    return Depthwise(windows) if groups == channels > 1 else Columns(windows, groups)


def _transposed_windows(
    x: Array, weight: Array, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: int
) -> tuple[Windows, Pair]:
    """Check the arguments of conv_transpose2d. Returns the windows of its convolution, from y to x, and (OH, OW)."""
    op = "conv_transpose2d"
    checks.rank(x, 4, "(N, C, H, W)", op)
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"{op}: weight must be (C, O / groups, KH, KW), each at least 1, got shape {weight.shape}")
    if x.shape[1] != len(weight) or groups < 1 or len(weight) % groups:
        raise ValueError(
            f"{op}: x must have the {len(weight)} channels of weight.shape[0], in groups of equal size: got "
            f"x {x.shape}, weight {weight.shape}, groups {groups}"
        )
    stride, dilation = (checks.pair(v, n, op, minimum=1) for v, n in ((stride, "stride"), (dilation, "dilation")))
    padding = checks.pair(padding, "padding", op, minimum=0)
    extra = checks.pair(output_padding, "output_padding", op, minimum=0)
    if any(extra[a] >= max(stride[a], dilation[a]) for a in (0, 1)):
        raise ValueError(f"{op}: output_padding {extra} must be smaller than stride {stride} or dilation {dilation}")
    kernel, inputs = (weight.shape[2], weight.shape[3]), (x.shape[2], x.shape[3])
    extent = span(kernel, dilation)
    OH, OW = ((inputs[a] - 1) * stride[a] - 2 * padding[a] + extent[a] + extra[a] for a in (0, 1))
    if min(OH, OW) < 1:
        raise ValueError(f"{op}: the output would be {OH} x {OW} pixels; use less padding, got {padding}")
    return Windows(kernel, stride, dilation, padding, padding, inputs), (OH, OW)


def _windows(x: Array, weight: Array, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Windows:
    """Check the arguments of conv2d and compute its windows."""
    checks.rank(x, 4, "(N, C, H, W)", "conv2d")
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"conv2d: weight must be (O, C / groups, KH, KW), each at least 1, got shape {weight.shape}")
    outputs, grouped, *kernel = weight.shape
    if not isinstance(groups, int) or groups < 1 or outputs % groups:
        raise ValueError(f"conv2d: groups must divide the {outputs} output channels of the weight, got {groups!r}")
    if x.shape[1] != groups * grouped:
        raise ValueError(
            f"conv2d: weight {weight.shape} with groups={groups} expects x with C = {groups * grouped} "
            f"(groups · weight.shape[1]), got x {x.shape} with C = {x.shape[1]}; is x channels-first?"
        )
    checks.affine(bias, (outputs,), "bias", "conv2d")
    stride = checks.pair(stride, "stride", "conv2d", minimum=1)
    dilation = checks.pair(dilation, "dilation", "conv2d", minimum=1)
    extent = span((kernel[0], kernel[1]), dilation)
    before, after = _padding(padding, stride, extent)
    padded = x.shape[2] + before[0] + after[0], x.shape[3] + before[1] + after[1]
    if padded[0] < extent[0] or padded[1] < extent[1]:
        raise ValueError(
            f"conv2d: the kernel spans {extent} pixels, dilation · (kernel - 1) + 1, but the padded image has {padded};"
            " pad more, or use a smaller kernel or dilation"
        )
    out = (padded[0] - extent[0]) // stride[0] + 1, (padded[1] - extent[1]) // stride[1] + 1
    return Windows((kernel[0], kernel[1]), stride, dilation, before, after, out)


def sides_of_padding(padding: Any) -> tuple[Pair, Pair]:
    """(above, below) and (left, right), from an integer, a pair (height, width), or these two pairs."""
    if isinstance(padding, Sequence) and len(padding) == 2 and all(isinstance(side, Sequence) for side in padding):
        above_below, left_right = (checks.pair(side, "padding", "conv2d", minimum=0) for side in padding)
        return above_below, left_right
    height, width = checks.pair(padding, "padding", "conv2d", minimum=0)
    return (height, height), (width, width)


def _padding(padding: Any, stride: Pair, extent: Pair) -> tuple[Pair, Pair]:
    """The padding (above, left) and (below, right), for windows that span `extent` pixels.

    "same" keeps H and W; of an odd total, the larger half is below or to the right.
    """
    if padding == "valid":
        padding = 0
    if padding != "same":
        if isinstance(padding, str):
            raise ValueError(f"conv2d: padding must be a size, 'valid' or 'same', got {padding!r}")
        (above, below), (left, right) = sides_of_padding(padding)
        return (above, left), (below, right)
    if stride != (1, 1):
        raise ValueError(f"conv2d: padding='same' needs stride 1, for an output as large as the input; got {stride}")
    above, left = (extent[0] - 1) // 2, (extent[1] - 1) // 2
    return (above, left), (extent[0] - 1 - above, extent[1] - 1 - left)
