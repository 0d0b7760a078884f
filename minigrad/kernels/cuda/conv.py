"""L2: convolution: depthwise by a kernel of its own, all others with groups = 1 as a matrix product, in half
precision with few channels without im2col."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import product
from math import prod
from operator import add
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, gemm
from minigrad.backend.dtypes import FLOAT32, cast
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.conv_mma import ImplicitGEMM
from minigrad.kernels.cuda.launch import PACK, STORED, WARP, Kernel, on_gpu, pack_of, sum_rows
from minigrad.ops import conv
from minigrad.ops.matmul import rows, sum_of_rows
from minigrad.ops.windows import Pair, Windows, blocks

# Constants of depthwise.cu.
MAX_KERNEL = 9  # along either axis: backward has a sum for each tap in registers
MAX_RUN = 8  # outputs of a tile, along either axis
THREADS, MAX_IMAGES = 256, 8  # of a block
BLOCKS = 512  # partial sums: enough blocks to fill a GPU, and the same order of sums on every GPU


@fast_path_of(conv.Conv2d)
class CUDAConv2d(conv.Conv2d):
    """The op's formula. `Depthwise` computes depthwise convolutions (stride and dilation 1, as many outputs as inputs,
    kernel up to MAX_KERNEL). With groups = 1, `Pointwise` computes 1 x 1, stride 1, no padding; `ImplicitGEMM` 16-bit
    images of up to 64 channels; `Columns` the rest.

    The bias is added before the sum is cast to the dtype of y. ∂weight and ∂bias are computed in float32: under
    autocast, a 16-bit weight is the copy of a float32 parameter.

    Dtypes: x, weight and bias of one dtype: float32, bfloat16 or float16; sums in float32.
    """

    @staticmethod
    def supports(
        x: Array, weight: Array, bias: Array | None, *, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> bool:
        given = [x, weight] if bias is None else [x, weight, bias]
        if not all(on_gpu(a) and a.dtype == x.dtype and a.dtype.name in STORED for a in given):
            return False
        if not (x.ndim == weight.ndim == 4 and x.size and weight.size):
            return False
        if groups == 1:
            return True
        dense = stride in (1, (1, 1)) and dilation in (1, (1, 1))
        return dense and groups == x.shape[1] == len(weight) and max(weight.shape[2:]) <= MAX_KERNEL

    def method_for(self, windows: Windows, groups: int, channels: int) -> Any:
        if groups > 1:
            return Depthwise(windows)
        one_by_one = windows.kernel == windows.stride == (1, 1) and not any(windows.before + windows.after)
        if one_by_one:
            return Pointwise()
        return ImplicitGEMM(windows) if ImplicitGEMM.supports(windows, self.x, self.weight) else Columns(windows)

    def correlate(self, bias: Array | None) -> Array:
        return self.method.correlate(self.x, self.weight, bias)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        return self.backward_accumulate(grad_output, None)

    def backward_accumulate(
        self, grad_output: Array, total: Array | None
    ) -> tuple[Array | None, Array | None, Array | None]:
        # one copy of ∂y for all sums, (N, O, OH, OW) -> (N, OH, OW, O)
        grad_y = array_module(grad_output).ascontiguousarray(grad_output.transpose(0, 2, 3, 1))
        self.total = None if total is None else total.transpose(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        grads = super().backward(grad_y.transpose(0, 3, 1, 2))
        self.total = None
        return grads

    def grad_x(self, grad_y: Array) -> Array:
        if self.total is None:
            return super().grad_x(grad_y)
        if isinstance(self.method, Depthwise) and self.total.dtype == grad_y.dtype:
            return self.method.grad_x(grad_y, self.weight, self.x.shape, self.total)
        grad_x = cast(super().grad_x(grad_y), self.total.dtype)  # another dtype if x was cast before forward
        grad_x += self.total
        return grad_x

    def grad_parameters(self, grad_y: Array) -> tuple[Array | None, Array | None]:
        _, want_weight, want_bias = self.needs_input_grad
        grad_weight = grad_bias = None  # computed in float32
        if want_weight and isinstance(self.method, Depthwise):  # one kernel computes both
            grad_weight, grad_bias = self.method.grad_parameters(grad_y, self.x, self.weight.shape)
        elif want_weight:
            grad_weight = self.method.grad_weight(grad_y, self.x, self.weight.shape)
        if want_bias and grad_bias is None:
            grad_bias = sum_of_rows(rows(grad_y), FLOAT32)
        return (
            cast(grad_weight, self.grad_dtype(1, FLOAT32)) if want_weight else None,
            cast(grad_bias, self.grad_dtype(2, FLOAT32)) if want_bias else None,
        )


@dataclass(frozen=True)
class Pointwise:
    """1 x 1 convolution: Y = X Wᵀ + bias, ∂X = ∂Y W, ∂W = ∂Yᵀ X, with a row of X for each pixel."""

    def correlate(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return gemm(rows(x), weight[:, :, 0, 0].T, bias=bias).reshape(*x.shape[:3], -1)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        return gemm(rows(grad_y), weight[:, :, 0, 0]).reshape(shape)

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        return gemm(rows(grad_y).T, rows(x), dtype=FLOAT32).reshape(shape)


@dataclass(frozen=True)
class Columns:
    """`Columns` of ops/conv.py for groups = 1. The kernels of im2col.cu compute X from x, and ∂x from ∂X:

        Y = X Wᵀ + bias,   ∂X = ∂Y W,   ∂W = ∂Yᵀ X

    Tensor cores need rows that are multiples of 16 bytes, and 3 x 3 pixels of 3 16-bit channels are 54 bytes. So the
    rows of X and W are padded with zeros for Y and ∂W.

    Shapes: X (N·OH·OW, KH·KW·C + padding); W (O, KH·KW·C + padding); Y (N·OH·OW, O).
    """

    windows: Windows

    def correlate(self, x: Array, weight: Array, bias: Array | None) -> Array:
        W = _matrix(weight)
        if W.shape[1] < self._columns(x):
            padded = array_module(x).zeros((len(W), self._columns(x)), W.dtype)
            padded[:, : W.shape[1]], W = W, padded
        parts = [gemm(self.unfold(x[some]), W.T, bias=bias) for some in self._blocks(x, weight.shape)]
        y = parts[0] if len(parts) == 1 else array_module(x).concatenate(parts)
        return y.reshape(len(x), *self.windows.out, -1)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        grad_x, W = array_module(grad_y).empty(shape, grad_y.dtype), _matrix(weight)
        for some in self._blocks(grad_y, weight.shape):
            self.fold(gemm(rows(grad_y[some]), W), grad_x[some])
        return grad_x

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        O, C, KH, KW = shape  # noqa: E741 (the output channels' axis)
        some_images = self._blocks(x, shape)
        parts = (gemm(rows(grad_y[some]).T, self.unfold(x[some]), dtype=FLOAT32) for some in some_images)
        return reduce(add, parts)[:, : KH * KW * C].reshape(O, KH, KW, C).transpose(0, 3, 1, 2)

    def unfold(self, x: Array) -> Array:
        """X from x (N, H, W, C), in any memory layout, in one kernel."""
        N, C = len(x), x.shape[3]
        X = array_module(x).empty((N * prod(self.windows.out), self._columns(x)), x.dtype)
        pack = pack_of(x, C, X) if x.flags.c_contiguous else 1
        *strides, last = (np.int64(step // (pack * x.itemsize)) for step in x.strides)
        last = last if pack == 1 else np.int64(1)
        length = X.shape[1] // pack
        self._launch("unfold", len(X), length, pack, x.shape, x, X, *strides, last, np.int32(length))
        return X

    def fold(self, grad_X: Array, grad_x: Array) -> None:
        """Write ∂x to `grad_x`, from ∂X."""
        N, H, W, C = grad_x.shape
        pack = pack_of(grad_X, C, grad_x)
        self._launch("fold", N * H * W, C // pack, pack, grad_x.shape, grad_X, grad_x)

    def _launch(
        self, name: str, count: int, length: int, pack: int, shape: tuple[int, ...], source: Array, to: Array,
        *more: np.generic,
    ) -> None:  # fmt: skip
        """Launch a kernel that writes `count` rows of `to`, each of `length` packs of `pack` elements."""
        windows, (_, H, W, C) = self.windows, shape
        (KH, KW), (SH, SW), (DH, DW) = windows.kernel, windows.stride, windows.dilation
        constants = {"KH": KH, "KW": KW, "SH": SH, "SW": SW, "DH": DH, "DW": DW, "PACK": pack}
        kernel = Kernel("im2col.cu", name, STORED=STORED[to.dtype.name], **constants)
        across = min(32, 1 << (length - 1).bit_length())
        down = 256 // across
        sizes = (np.int32(n) for n in (count, H, W, C // pack, *windows.out, *windows.before))
        kernel(_ceil(count, down), (across, down), source, to, *sizes, *more)

    def _columns(self, x: Array) -> int:
        """The number of columns of X: a row is a multiple of PACK bytes."""
        step = PACK // x.itemsize
        return _ceil(prod(self.windows.kernel) * x.shape[3], step) * step

    def _blocks(self, x: Array, weight_shape: tuple[int, ...]) -> Iterator[slice]:
        """Slices of the batch in which X has a bounded size."""
        return blocks(x, prod(self.windows.out) * prod(weight_shape[1:]))


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution of stride 1 by depthwise.cu. ∂x is the convolution of ∂y with the flipped weight. Another
    kernel computes partial sums of ∂weight and ∂bias."""

    windows: Windows

    def correlate(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self._correlate(x, weight, bias, self.windows.out, self.windows.before, flipped=False)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...], total: Array | None = None) -> Array:
        """∂x + `total`."""
        (_, H, W, _), (KH, KW), (top, left) = shape, self.windows.kernel, self.windows.before
        return self._correlate(grad_y, weight, None, (H, W), (KH - 1 - top, KW - 1 - left), total, flipped=True)

    def grad_parameters(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """∂weight and ∂bias, in float32."""
        xp, (N, H, W, C), taps = array_module(x), x.shape, prod(self.windows.kernel)
        kernel, block, groups, tiles = self._launch("depthwise_grad_weight", x, self.windows.out, self.windows.before)
        count = min(tiles, _ceil(BLOCKS, groups))
        count = _ceil(tiles, _ceil(tiles, count))  # fewer blocks if these need no more tiles each
        partials = xp.empty((count, C * taps + C), FLOAT32)
        grad_weight, grad_bias = xp.empty(shape, FLOAT32), xp.empty(C, FLOAT32)
        sizes = (np.int32(n) for n in (tiles, N, H, W, *self.windows.out, *self.windows.before))
        arrays = grad_y, xp.ascontiguousarray(x)
        kernel((groups, count), block, *arrays, partials, *sizes)
        sum_rows(kernel, partials, grad_weight, grad_bias)
        return grad_weight, grad_bias

    def _correlate(
        self, x: Array, weight: Array, bias: Array | None, out: Pair, before: Pair, total: Array | None = None,
        *, flipped: bool,
    ) -> Array:  # fmt: skip
        xp, (N, H, W, C) = array_module(x), x.shape
        y = xp.empty((N, *out, C), x.dtype)
        kernel, block, groups, tiles = self._launch("depthwise_correlate", x, out, before)
        sizes = (np.int32(n) for n in (flipped, N, H, W, *out, *before))
        arrays = (None if a is None else xp.ascontiguousarray(a) for a in (x, weight, bias, total))
        kernel(groups * tiles, block, *arrays, y, *sizes)
        return y

    def _launch(self, name: str, x: Array, out: Pair, before: Pair) -> tuple[Kernel, Pair, int, int]:
        """The kernel, its block, the number of groups of channels, and the number of tiles of `out` of each group."""
        (N, _, W, C), (KH, KW), (OH, OW) = x.shape, self.windows.kernel, out
        group = WARP if C % WARP == 0 else _ceil(C, _ceil(C, 2 * WARP))
        images = min(THREADS // group, MAX_IMAGES, N)
        tile_rows, run = _tile((KH, KW), out)
        edge = _edge(KW, W, OW, before[1], run)
        constants = {"C": C, "KH": KH, "KW": KW, "ROWS": tile_rows, "RUN": run, "EDGE": edge, "GROUP": group}
        kernel = Kernel("depthwise.cu", name, STORED=STORED[x.dtype.name], **constants)
        return kernel, (group, images), _ceil(C, group), _ceil(OH, tile_rows) * _ceil(OW, run) * _ceil(N, images)


@cache
def _tile(kernel: Pair, out: Pair) -> Pair:
    """ROWS and RUN with the fewest instructions, estimated: the multiply-adds, 3 for each pixel of x, 300 for the rest.

    The registers of a thread hold 49 outputs and the weights of 49 taps, or 16 outputs and those of more taps.
    """
    (KH, KW), (OH, OW) = kernel, out
    limit = 49 if KH * KW <= 49 else 16
    sizes = (tile for tile in product(range(1, MAX_RUN + 1), repeat=2) if prod(tile) <= limit)

    def instructions(tile: Pair) -> int:
        of_a_tile = KH * KW * prod(tile) + 3 * (tile[0] + KH - 1) * (tile[1] + KW - 1) + 300
        return _ceil(OH, tile[0]) * _ceil(OW, tile[1]) * of_a_tile

    return min(((r, run) for r, run in sizes if r <= OH and run <= OW), key=instructions)


@cache
def _edge(KW: int, W: int, OW: int, left: int, run: int) -> int:
    """EDGE: KW // 2 if on either side of each tile 0 or KW // 2 pixels are outside the image, else the whole row."""
    first = [min(j, OW - run) - left for j in range(0, OW, run)]
    outside = {max(n, 0) for w in first for n in (-w, w + run + KW - 1 - W)}
    return KW // 2 if outside <= {0, KW // 2} else run + KW - 1


def _matrix(weight: Array) -> Array:
    """W: (O, C, KH, KW) -> (O, KH, KW, C) -> (O, KH·KW·C)."""
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)


def _ceil(count: int, size: int) -> int:
    """count / size, rounded up."""
    return -(-count // size)
