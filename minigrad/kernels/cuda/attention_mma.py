"""L2: attention and window attention in half precision (float16, bfloat16), on tensor cores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend import Array, array_module, device_of
from minigrad.backend.dtypes import FLOAT32, cast
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.attention import empty_like, most_shared, readable, seen
from minigrad.kernels.cuda.launch import STORED, WARP, Kernel, on_gpu, sum_rows
from minigrad.ops import attention, window_attention
from minigrad.ops.checks import sides
from minigrad.ops.window_attention import Window

ROWS = 16  # own rows of a warp at a time, in attention_mma.cu
MAX_WARPS, MORE_WARPS = 8, 16  # of a block; MORE_WARPS backward with up to 128 registers in a thread
MIN_WARPS = 4  # of a block: small windows share one
WIDTH_STEP, MAX_WIDTH = 16, 128  # E and V are multiples of WIDTH_STEP
PADDING = 8  # elements between two rows in shared memory, as in mma.cuh
RESERVED = 1 << 10  # bytes of shared memory that CUDA takes for each block
BLOCKS = 1024  # partial sums of ∂bias, over all heads: the same on every GPU, and so is the order of sums
MIN_CAPABILITY = 80  # compute capability 8.0 has tensor cores for bfloat16


class Map(NamedTuple):
    """The feature map that the windows partition, as in attention_mma.cu. `window` is 0 without windows."""

    window: int = 0
    down: int = 0
    right: int = 0
    shift_down: int = 0
    shift_right: int = 0


NO_WINDOWS = Map()


@dataclass
class Attention:
    """The launches shared by both ops below. `forward` saves y and lse, the logsumexp of each query's scores.

    Shapes: q (..., heads, L, E), k (..., heads, S, E), v (..., heads, S, V), bias (heads, L, S) or None. With windows,
    q, k, v are (N, heads, tokens of the map, ·), and L = S is the number of tokens of a window.
    """

    q: Array
    k: Array
    v: Array
    bias: Array | None
    scale: float
    map: Map = NO_WINDOWS

    def forward(self, keep_lse: bool) -> Array:
        """y (..., heads, L, V), with windows (..., heads, tokens of the map, V), in the memory order of q."""
        heads, entries, L, S, E, V = self.sizes()
        self.y = empty_like(self.q, V)
        self.lse = array_module(self.q).empty((entries, heads, L), FLOAT32) if keep_lse else None
        block = forward_block(entries, L, S, E, V, self.map.window)
        self.kernel("attention_mma_forward", block)(
            entries // block.entries * heads, (WARP, block.warps, block.entries),
            *seen(self.q), *seen(self.k), *seen(self.v), *seen(self.y), self.bias, self.lse,
            np.int32(block.entry_bytes // 2), *self.arguments(),
            shared=block.entries * block.entry_bytes,
        )  # fmt: skip
        return self.y

    def backward(self, grad_y: Array, grads: Sequence[Array | None], want_bias: bool) -> Array | None:
        """Write ∂q, ∂k and ∂v to the arrays of `grads` that are not None. Returns ∂bias (heads, L, S) or None."""
        heads, entries, L, S, E, V = self.sizes()
        empty, biased = array_module(self.q).empty, self.bias is not None
        block = backward_block(entries, L, S, E, V, self.map.window, biased, want_bias, most_shared(self.q))
        assert block is not None  # `supports` has checked it
        groups = entries // block.entries
        if want_bias:
            groups = min(groups, -(-BLOCKS // heads))
        partials = empty((groups, heads, L, S), FLOAT32) if want_bias else None
        kernel = self.kernel("attention_mma_backward", block)
        kernel(
            groups * heads, (WARP, block.warps, block.entries),
            *seen(self.q), *seen(self.k), *seen(self.v), *seen(self.y), *seen(grad_y),
            *(argument for grad in grads for argument in seen(grad)),
            self.bias, self.lse, partials, *map(np.int32, (entries, block.chunk, block.entry_bytes // 2)),
            *self.arguments(),
            shared=block.entries * block.entry_bytes,
        )  # fmt: skip
        if partials is None:
            return None
        grad_bias = empty((heads, L, S), FLOAT32)
        sum_rows(kernel, partials, grad_bias)
        return grad_bias

    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """(heads, entries, L, S, E, V); an entry is an image, or with windows a window of an image."""
        *outer, heads, L, E = self.q.shape
        S, V = self.v.shape[-2:]
        if not self.map.window:
            return heads, prod(outer), L, S, E, V
        N = self.map.window**2
        return heads, prod(outer) * (self.map.down * self.map.right // N), N, N, E, V

    def arguments(self) -> tuple[Any, ...]:
        """The last kernel arguments: heads, L, S, scale and the map."""
        heads, _, L, S, *_ = self.sizes()
        return *map(np.int32, (heads, L, S)), np.float32(self.scale), *map(np.int32, self.map[1:])

    def kernel(self, name: str, block: "Block") -> Kernel:
        stored, biased = STORED[self.q.dtype.name], self.bias is not None
        return _kernel(name, stored, self.q.shape[-1], self.v.shape[-1], self.map.window, biased, block.tiles)


@fast_path_of(attention.ScaledDotProductAttention)
class MMAScaledDotProductAttention(attention.ScaledDotProductAttention):
    """The op's formula by `attention_mma.cu`: one kernel forward, and one backward, which recomputes the scores.

    q, k and v may be strided views, as in the float32 fast path. Scores and sums are float32; P and the gradient of
    the scores are cast to the inputs' dtype for the matrix products.

    Supports neither dropout nor is_causal; a mask must be the same for all images. Shapes: q (..., heads, L, E),
    k (..., heads, S, E), v (..., heads, S, V), bfloat16 or float16; the mask float32, broadcasts to (heads, L, S).
    Saves q, k, v, the mask, y, and lse (batch, heads, L), the logsumexp of each query's scores.
    """

    @staticmethod
    def supports(
        q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, is_causal: bool, dropout_p: float
    ) -> bool:
        if is_causal or dropout_p or q.ndim < 3 or not (q.size and v.size and _supports(q, k, v)):
            return False
        (L, E), (S, V) = q.shape[-2:], v.shape[-2:]
        if not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and k.shape[-2:] == (S, E)):
            return False
        if mask is not None:
            if not (on_gpu(mask) and mask.dtype == FLOAT32 and prod(mask.shape[:-3]) == 1):
                return False
            if not attention.broadcasts_to(mask.shape, (*q.shape[:-1], S)):
                return False
        return backward_block(1, L, S, E, V, 0, mask is not None, mask is not None, most_shared(q)) is not None

    def forward(self, q: Array, k: Array, v: Array, mask: Array | None, **options: Any) -> Array:
        xp, bias = array_module(q), None
        if mask is not None:
            self.mask_shape, bias = mask.shape, mask.reshape(mask.shape[-3:])
            bias = xp.ascontiguousarray(xp.broadcast_to(bias, (*q.shape[-3:-1], k.shape[-2])))
        self.launches = Attention(q, k, v, bias, options["scale"])
        return self.launches.forward(any(self.needs_input_grad))

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        q, k, v = self.launches.q, self.launches.k, self.launches.v
        *wanted, want_mask = self.needs_input_grad
        grad_y = _readable(cast(grad_output, q.dtype))
        grads = attention.gradients_like(q, k, v, wanted)
        grad_mask = self.launches.backward(grad_y, grads, bool(want_mask))
        if grad_mask is not None:  # the mask's batch axes have length 1
            grad_mask = grad_mask.reshape(*self.mask_shape[:-3], *grad_mask.shape)
        return *grads, grad_mask


@fast_path_of(window_attention.WindowAttention)
class MMAWindowAttention(window_attention.WindowAttention):
    """The op's formula by `attention_mma.cu`, which reads the tokens of a window from the feature map.

    The map is neither rolled nor copied into windows, and the kernel sums ∂bias over images and windows.

    Does not support dropout. Shapes: qkv (B, H, W, 3C), bfloat16 or float16; bias (heads, N, N), float32, or None;
    y (B, H, W, C).  Saves qkv, the bias, y, and lse (windows, heads, N), the logsumexp of each query's scores.
    """

    @staticmethod
    def supports(
        qkv: Array, bias: Array | None, *, num_heads: int, window_size: Window, shift: tuple[int, int], dropout_p: float
    ) -> bool:
        M = window_size
        if not isinstance(M, int):  # not a square
            return False
        if dropout_p or qkv.ndim != 4 or min(M, num_heads) < 1 or qkv.shape[3] % (3 * num_heads):
            return False
        if qkv.shape[1] % M or qkv.shape[2] % M:
            return False
        if not (qkv.size and on_gpu(qkv) and qkv.flags.c_contiguous and all(0 <= offset < M for offset in shift)):
            return False
        fits = bias is None or (on_gpu(bias) and bias.dtype == FLOAT32 and bias.shape == (num_heads, M**2, M**2))
        if not (fits and _supports(*_parts(qkv, num_heads))):
            return False
        d, entries = qkv.shape[3] // (3 * num_heads), prod(qkv.shape[:3]) // M**2
        biased, most = bias is not None, most_shared(qkv)
        return backward_block(entries, M**2, M**2, d, d, M, biased, biased, most) is not None

    def forward(
        self, qkv: Array, bias: Array | None, *,
        num_heads: int, window_size: Window, shift: tuple[int, int], dropout_p: float,
    ) -> Array:  # fmt: skip
        B, H, W, _ = qkv.shape
        q, k, v = _parts(qkv, num_heads)
        bias = None if bias is None else array_module(qkv).ascontiguousarray(bias)
        self.launches = Attention(q, k, v, bias, q.shape[-1] ** -0.5, Map(sides(window_size)[0], H, W, *shift))
        y = self.launches.forward(any(self.needs_input_grad))  # (B, heads, H·W, d)
        return y.swapaxes(1, 2).reshape(B, H, W, -1)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        (B, H, W, C), heads = grad_output.shape, self.launches.q.shape[1]
        dtype = self.launches.q.dtype
        want_qkv, want_bias = map(bool, self.needs_input_grad)
        grad_y = _readable(cast(grad_output, dtype).reshape(B, H * W, heads, C // heads).swapaxes(1, 2))
        grad_qkv = array_module(grad_y).empty((B, H, W, 3 * C), dtype) if want_qkv else None
        grads = _parts(grad_qkv, heads) if want_qkv else (None, None, None)
        return grad_qkv, self.launches.backward(grad_y, grads, want_bias)


def _parts(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """(B, H, W, 3C) -> views q, k, v, each (B, heads, H·W, d)."""
    B, H, W, channels = qkv.shape
    q, k, v = qkv.reshape(B, H * W, 3, heads, channels // (3 * heads)).transpose(2, 0, 3, 1, 4)
    return q, k, v


def _readable(x: Array) -> Array:
    """x if the kernels can read its strides, else a contiguous copy."""
    return x if readable(x, x.dtype) else x.copy(order="C")


def _supports(q: Array, k: Array, v: Array) -> bool:
    """True if the kernels support these dtypes, widths, strides and the GPU's compute capability."""
    if not (on_gpu(q) and on_gpu(k) and on_gpu(v)) or q.dtype.name not in STORED or q.dtype == FLOAT32:
        return False
    if q.shape[-1] % WIDTH_STEP or v.shape[-1] % WIDTH_STEP or max(q.shape[-1], v.shape[-1]) > MAX_WIDTH:
        return False
    return capability(q) >= MIN_CAPABILITY and all(readable(x, q.dtype) for x in (q, k, v))


@cache
def _kernel(name: str, stored: str, E: int, V: int, window: int, biased: bool, tiles: int) -> Kernel:
    sizes = {"QK_WIDTH": E, "V_WIDTH": V, "WINDOW": window, "BIASED": int(biased), "TILES": tiles}
    return Kernel("attention_mma.cu", name, STORED=stored, **sizes)


class Block(NamedTuple):
    """The block of a launch of attention_mma.cu."""

    warps: int  # for each entry
    entries: int
    entry_bytes: int  # shared memory for each entry
    tiles: int = 1  # backward: the constant TILES
    chunk: int = 0  # backward: keys


@cache
def forward_block(entries: int, L: int, S: int, E: int, V: int, window: int) -> Block:
    """The block of the forward kernel, which needs less shared memory than that of the backward kernel."""
    warps, _ = _warps(L, MAX_WARPS)
    return Block(warps, _together(entries, warps, window), _rows_bytes(L, S, E, V, window))


@cache
def backward_block(
    entries: int, L: int, S: int, E: int, V: int, window: int, biased: bool, want_bias: bool, most: int
) -> Block | None:
    """The block of the backward kernel, or None if it needs more than `most` bytes of shared memory.

    Registers allow `most_warps` resident warps per multiprocessor. P and ∂S of a chunk of keys take the shared memory
    that is left with as many resident blocks, or with fewer blocks where a chunk had too few keys for all warps.
    """
    most_width = 64 if biased else 128  # as for BACKWARD_THREADS in attention_mma.cu
    most_warps = MORE_WARPS if most_width >= E + V and L <= ROWS * MORE_WARPS else MAX_WARPS
    warps, tiles = _warps(L, most_warps)
    warps = max(warps, _warps(S, most_warps)[0])  # ∂k and ∂v
    together = _together(entries, warps, window)
    L_up, S_up = _rounded_up(L), _rounded_up(S)
    fixed = _rows_bytes(L, S, E, V, window) + 2 * L_up * (V + PADDING)  # ∂y
    if want_bias:
        fixed += 4 * L * (S_up + PADDING)  # ∂bias
    for resident in range(max(most_warps // (warps * together), 1), 0, -1):
        left = ((most + RESERVED) // resident - RESERVED) // together - fixed
        columns = min((left // (2 * L_up) - PADDING) // 2 // ROWS * ROWS, S_up)
        if columns <= 0 or (2 * columns // ROWS < warps and resident > 1):
            continue
        chunks = -(-S_up // columns)
        chunk = _rounded_up(-(-S_up // chunks))
        if chunks > 1:  # a warp for each of the products ∂k and ∂v of 16 keys
            warps = max(warps, min(2 * chunk // ROWS, most_warps))
        return Block(warps, together, fixed + 2 * L_up * (2 * chunk + PADDING), tiles, chunk)
    return None


def _rounded_up(rows: int) -> int:
    return -(-rows // ROWS) * ROWS


def _warps(rows: int, most: int) -> tuple[int, int]:
    """The warps, at most `most`, and their number of iterations, which is the same for all warps."""
    tiles = -(-rows // ROWS)
    iterations = -(-tiles // most)
    return -(-tiles // iterations), iterations


def _together(entries: int, warps: int, window: int) -> int:
    """The number of windows of a block. It divides `entries`."""
    return gcd(entries, max(MIN_WARPS // warps, 1)) if window else 1


def _rows_bytes(L: int, S: int, E: int, V: int, window: int) -> int:
    """Bytes of shared memory for q, k and v, and for the tokens and regions of a window, a multiple of 16."""
    L_up, S_up = _rounded_up(L), _rounded_up(S)
    elements = (L_up + S_up) * (E + PADDING) + S_up * (V + PADDING)
    return 2 * elements + (4 * _rounded_up(2 * L) if window else 0)


_capabilities: dict[str, int] = {}  # by device


def capability(x: Array) -> int:
    """The compute capability of the GPU of x, times ten: 90 is Hopper."""
    device = device_of(x)
    if device not in _capabilities:  # (a NumPy array, in tests, has none)
        _capabilities[device] = int(getattr(getattr(x, "device", None), "compute_capability", MIN_CAPABILITY))
    return _capabilities[device]
