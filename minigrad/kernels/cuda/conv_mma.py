"""L2: convolution in half precision (float16, bfloat16) on tensor cores, without im2col."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.cublas import pointer
from minigrad.backend.dtypes import FLOAT32, is_half
from minigrad.kernels.cuda.attention import most_shared
from minigrad.kernels.cuda.attention_mma import MIN_CAPABILITY, capability
from minigrad.kernels.cuda.launch import PACK, STORED, WARP, Kernel, sum_rows
from minigrad.ops.windows import Pair, Windows

CHUNK = 32  # channels in shared memory at a time, in conv_mma.cu
MAX_CHANNELS = 64  # of x and of y: beyond, im2col and cuBLAS are expected to be as fast (conv_mma.cu, "Cost")
MAX_TAPS, MAX_STRIDE = 9, 2
TILE_H, TILE_WIDTHS = 8, (16, 8)  # windows of a tile, likewise; the second width for narrow images
PADDING = 8  # elements between two rows in shared memory, as in mma.cuh
WARPS = 2048  # that sum ∂W: enough to fill a GPU, and the same on every GPU, so that the order of sums is the same


@dataclass(frozen=True)
class ImplicitGEMM:
    """Convolution as the matrix products of `Columns`, by `conv_mma.cu`: X is not written to memory.

    Shapes: x, ∂x (N, H, W, C); y, ∂y (N, OH, OW, O), 16-bit; weight (O, C, KH, KW), 16-bit; ∂weight likewise, float32.
    """

    windows: Windows

    @staticmethod
    def supports(windows: Windows, x: Array, weight: Array) -> bool:
        """x: (N, H, W, C)."""
        (KH, KW), (S, across), (O, C, _, _) = windows.kernel, windows.stride, weight.shape  # noqa: E741
        if not (is_half(x.dtype) and 1 < KH * KW <= MAX_TAPS and S == across <= MAX_STRIDE):
            return False
        if windows.dilation != (1, 1) or C % CHUNK or O % CHUNK or max(C, O) > MAX_CHANNELS:
            return False
        if x.size > np.iinfo(np.int32).max or capability(x) < MIN_CAPABILITY:
            return False
        kernels = ("correlate", O, False), ("correlate", C, True), ("grad_weight", O, False)
        return max(shared_bytes(windows.kernel, S, TILE_WIDTHS[0], *each) for each in kernels) <= most_shared(x)

    def correlate(self, x: Array, weight: Array, bias: Array | None) -> Array:
        y = array_module(x).empty((len(x), *self.windows.out, len(weight)), x.dtype)
        bias = None if bias is None else array_module(bias).ascontiguousarray(bias)
        self._correlate(x, weight.transpose(0, 2, 3, 1), bias, y, grad_x=False)
        return y

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        grad_x = array_module(grad_y).empty(shape, grad_y.dtype)
        self._correlate(grad_y, weight.transpose(1, 2, 3, 0), None, grad_x, grad_x=True)
        return grad_x

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        xp, (O, C, KH, KW) = array_module(x), shape  # noqa: E741
        tiles, tile_w = self._tiles(self.windows.out)
        parts = C // CHUNK  # of W, each summed by a block
        count = min(len(x) * tiles, max(1, WARPS // (parts * (O // 8))))
        partials, grad_weight = xp.empty((count, O * KH * KW * C), FLOAT32), xp.empty((O, KH, KW, C), FLOAT32)
        kernel = self._kernel("grad_weight", x.dtype, tile_w, O, False)
        kernel(
            (1, parts, count), (WARP, O // 8),
            _packed(grad_y), _packed(x), partials,
            *map(np.int32, (*x.shape, *grad_y.shape[1:], *self.windows.before)),
            shared=shared_bytes((KH, KW), self.windows.stride[0], tile_w, "grad_weight", O, False),
        )  # fmt: skip
        sum_rows(kernel, partials, grad_weight)
        return grad_weight.transpose(0, 3, 1, 2)

    def _correlate(self, source: Array, weight: Array, bias: Array | None, result: Array, *, grad_x: bool) -> None:
        """Write the convolution of `source` with `weight` (channels of the result, KH, KW, channels of the source)."""
        (N, RH, RW, out), S = result.shape, self.windows.stride[0]
        spread, classes = (S, S * S) if grad_x else (1, 1)  # blockIdx.z is a pair of remainders of a pixel of ∂x
        tiles, tile_w = self._tiles((_ceil(RH, spread), _ceil(RW, spread)))
        kernel = self._kernel("correlate", result.dtype, tile_w, out, grad_x)
        kernel(
            (N * tiles, 1, classes), (WARP, TILE_H * tile_w // 32 * (out // 32)),
            _packed(source), _packed(weight), bias, result,
            *map(np.int32, (*source.shape[1:], RH, RW, *self.windows.before)),
            shared=shared_bytes(self.windows.kernel, S, tile_w, "correlate", out, grad_x),
        )  # fmt: skip

    def _tiles(self, windows: Pair) -> tuple[int, int]:
        """The tiles of an image, and the width of a tile."""
        tile_w = TILE_WIDTHS[0] if windows[1] > TILE_WIDTHS[1] else TILE_WIDTHS[1]
        return _ceil(windows[0], TILE_H) * _ceil(windows[1], tile_w), tile_w

    def _kernel(self, name: str, dtype: np.dtype, tile_w: int, out: int, grad_x: bool) -> Kernel:
        return _kernel(
            f"conv_mma_{name}", STORED[dtype.name], self.windows.kernel, self.windows.stride[0], tile_w, out, grad_x
        )


@cache
def shared_bytes(kernel: Pair, stride: int, tile_w: int, name: str, out: int, grad_x: bool) -> int:
    """Bytes of shared memory of a block: the patch, and the weights of all taps or the tile of ∂y."""
    step, taps_h, taps_w = (1, *(_ceil(taps, stride) for taps in kernel)) if grad_x else (stride, *kernel)
    patch = ((TILE_H - 1) * step + taps_h) * ((tile_w - 1) * step + taps_w) * (CHUNK + PADDING)
    weights = out * (taps_h * taps_w * CHUNK + PADDING)
    return 2 * (patch + (weights if name == "correlate" else TILE_H * tile_w * (out + PADDING)))


@cache
def _kernel(name: str, stored: str, kernel: Pair, stride: int, tile_w: int, out: int, grad_x: bool) -> Kernel:
    (KH, KW), sizes = kernel, {"TILE_W": tile_w, "OUT": out}
    return Kernel("conv_mma.cu", name, STORED=stored, KH=KH, KW=KW, S=stride, GRAD_X=int(grad_x), **sizes)


def _packed(x: Array) -> Array:
    """x, contiguous and aligned for loads of 16 bytes: x itself, or a copy."""
    x = array_module(x).ascontiguousarray(x)
    return x if pointer(x) % PACK == 0 else x.copy()


def _ceil(count: int, size: int) -> int:
    """count / size, rounded up."""
    return -(-count // size)
