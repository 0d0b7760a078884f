"""L2: attention in float32 for sequences of up to 256 tokens, whose scores stay in registers."""

from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, device_of
from minigrad.backend.cublas import pointer
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.launch import WARP, Kernel, on_gpu
from minigrad.ops import attention

ROWS = 4  # own rows of a warp at a time, in attention.cu
MAX_WARPS = 8  # of a block
MAX_WIDTH, MAX_LENGTH = 128, 256  # of E and V; of L and S: the limit is the registers of a thread
FLOAT, PACK = 4, 16  # bytes of an element, and of one load
MAX_STRIDE = 2**31  # elements between rows: an int in the kernels
SHARED = 227 << 10  # bytes of shared memory of a block on a Hopper GPU


@fast_path_of(attention.ScaledDotProductAttention)
class CUDAScaledDotProductAttention(attention.ScaledDotProductAttention):
    """The op's formula by `attention.cu`: one kernel forward, and two backward, which recompute the scores.

    q, k and v may be strided views, such as parts of the packed qkv of a linear layer: nothing is copied. y has the
    memory order of heads and tokens of q, so the reshape that joins the heads of a token is a view too.

    Supports neither dropout nor is_causal. Dtype: float32. Shapes: q (..., heads, L, E), k (..., heads, S, E),
    v (..., heads, S, V); the mask broadcasts to (..., heads, L, S).  Saves q, k, v, the mask, and
    lse (..., heads, L), the logsumexp of each query's scores.
    """

    @staticmethod
    def supports(
        q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, is_causal: bool, dropout_p: float
    ) -> bool:
        if is_causal or dropout_p or not (on_gpu(q) and on_gpu(k) and on_gpu(v)) or q.ndim < 3:
            return False
        if not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.size and v.size):
            return False
        (L, E), (S, V) = q.shape[-2:], v.shape[-2:]
        if k.shape[-2:] != (S, E) or max(E, V) > MAX_WIDTH or max(L, S) > MAX_LENGTH:
            return False
        if mask is not None:
            if not (on_gpu(mask) and mask.dtype == np.float32):
                return False
            if not attention.broadcasts_to(mask.shape, (*q.shape[:-1], S)):
                return False
        shared = max(_block(rows, own, E, V, backward=True)[1] for rows, own in ((S, L), (L, S)))
        return shared <= most_shared(q) and all(readable(x, np.float32) for x in (q, k, v))

    def forward(self, q: Array, k: Array, v: Array, mask: Array | None, **options: Any) -> Array:
        self.q, self.k, self.v, self.mask = q, k, v, _mask_arguments(mask, (*q.shape[:-1], k.shape[-2]))
        self.scale = options["scale"]
        y = empty_like(q, v.shape[-1])
        self.lse = array_module(q).empty(q.shape[:-1], np.float32) if any(self.needs_input_grad) else None
        self._launch("attention_forward", k, q, *seen(y), self.lse)
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        q, k, v = self.q, self.k, self.v
        want_q, want_k, want_v, want_mask = self.needs_input_grad
        if not readable(grad_output, np.float32):
            grad_output = grad_output.astype(np.float32, order="C")
        empty = array_module(q).empty
        grad_q, grad_k, grad_v = attention.gradients_like(q, k, v, wanted=(want_q, want_k, want_v))
        dot = empty(q.shape[:-1], np.float32) if want_k else None
        grad_scores = empty((*q.shape[:-1], k.shape[-2]), np.float32) if want_mask else None
        if want_q or want_k or want_mask:
            self._launch(
                "attention_backward_q", k, q,
                *seen(grad_output), *seen(grad_q), self.lse, dot, grad_scores,
            )  # fmt: skip
        if want_k or want_v:
            self._launch(
                "attention_backward_kv", q, k,
                *seen(grad_output), *seen(grad_k), *seen(grad_v), self.lse, dot,
            )  # fmt: skip
        return grad_q, grad_k, grad_v, grad_scores

    def _launch(self, name: str, other: Array, own: Array, *args: Any) -> None:
        """Launch a block for each head and batch index. attention.cu defines `other` and `own` rows."""
        *_, heads, L, E = self.q.shape
        S, V = self.v.shape[-2:]
        rows = other.shape[-2]
        warps, shared = _block(rows, own.shape[-2], E, V, backward=name != "attention_forward")
        _kernel(name, E, V, -(-rows // WARP))(
            prod(self.q.shape[:-2]), (WARP, warps),
            *seen(self.q), *seen(self.k), *seen(self.v), *self.mask, *args,
            np.int32(heads), np.int32(L), np.int32(S), np.float32(self.scale),
            shared=shared,
        )  # fmt: skip


@cache
def _kernel(name: str, E: int, V: int, slots: int) -> Kernel:
    return Kernel("attention.cu", name, QK_WIDTH=E, V_WIDTH=V, SLOTS=slots)


@cache
def _block(rows: int, own: int, E: int, V: int, backward: bool) -> tuple[int, int]:
    """The warps of a block, chosen so that all warps do the same number of iterations, and the bytes of shared memory.

    Args:
        rows: number of other rows, which have E and V columns.
        own: number of own rows. For ROWS own rows at a time, a warp stores E columns (backward E + V), and P or ∂S.
    """
    iterations = -(-own // (ROWS * MAX_WARPS))
    warps = -(-own // (ROWS * iterations))
    each = _spaced(E) + (_spaced(V) if backward else 0) + -(-rows // WARP) * WARP
    return warps, FLOAT * ((rows + 3) // 4 * 4 * (_spaced(E) + _spaced(V)) + warps * ROWS * each)


def _spaced(width: int) -> int:
    """The stride of rows of `width` elements in shared memory: an odd multiple of 4, as in attention.cu."""
    return width if width // 4 % 2 else width + 4


_most_shared: dict[str, int] = {}  # by device


def most_shared(x: Array) -> int:
    """The maximum bytes of shared memory of a block on the GPU of x."""
    device = device_of(x)
    if device not in _most_shared:
        attributes = getattr(x.device, "attributes", {})  # (a NumPy array, in tests, has none)
        _most_shared[device] = attributes.get("MaxSharedMemoryPerBlockOptin", SHARED)
    return _most_shared[device]


def readable(x: Array, dtype: Any) -> bool:
    """True if x has this dtype, dense rows of whole, aligned packs, and batch axes that merge into one."""
    if x.dtype != dtype or x.shape[-1] % (PACK // x.itemsize) or x.strides[-1] != x.itemsize or pointer(x) % PACK:
        return False
    steps = _steps(x)
    even = all(outer == count * inner for (_, outer), (count, inner) in pairwise(steps[:-2]))
    return even and all(step % PACK == 0 for _, step in steps) and abs(steps[-1][1]) < MAX_STRIDE * x.itemsize


def _steps(x: Array) -> list[tuple[int, int]]:
    """(size, stride in bytes) of all axes except the last, without outer axes of size 1."""
    steps = [(count, step if count > 1 else 0) for count, step in zip(x.shape[:-1], x.strides[:-1], strict=True)]
    return [(count, step) for count, step in steps[:-2] if count > 1] + steps[-2:]


def seen(x: Array | None) -> tuple[Any, ...]:
    """The kernel arguments of a readable x: the array, and its strides in elements along batch, heads and rows."""
    if x is None:
        return None, np.int64(0), np.int64(0), np.int32(0)
    *outer, (_, head), (_, row) = _steps(x)
    entry = outer[-1][1] if outer else 0
    return x, np.int64(entry // x.itemsize), np.int64(head // x.itemsize), np.int32(row // x.itemsize)


def empty_like(x: Array, width: int) -> Array:
    """An uninitialized dense array of x's shape except the width, with heads and rows in x's memory order."""
    empty, (*outer, heads, rows, _) = array_module(x).empty, x.shape
    if abs(x.strides[-3]) < abs(x.strides[-2]):
        return empty((*outer, rows, heads, width), x.dtype).swapaxes(-2, -3)
    return empty((*outer, heads, rows, width), x.dtype)


def _mask_arguments(mask: Array | None, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The kernel arguments of a mask that broadcasts to `shape`: the array, its strides, and n, its number of masks.

    The mask is made contiguous: the kernel reads each element many times. Batch index i uses mask i % n. If the n masks
    do not repeat in this order, the mask is expanded to the batch.
    """
    if mask is None:
        return None, *[np.int64(0)] * 2, np.int32(0), np.int64(0), np.int32(1)
    xp, outer = array_module(mask), shape[:-3]
    mask = mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)
    masks = mask.shape[:-3]
    repeated = next(i for i in range(len(outer) + 1) if masks[i:] == outer[i:])  # axes before i are broadcast
    if prod(masks[:repeated]) > 1:
        mask = xp.broadcast_to(mask, (*outer, *mask.shape[-3:]))
    mask = xp.ascontiguousarray(mask)
    steps = [0 if count == 1 else step // FLOAT for count, step in zip(mask.shape, mask.strides, strict=True)]
    count, step = prod(mask.shape[:-3]), prod(mask.shape[-3:])
    head, row, key = steps[-3:]
    return mask, np.int64(step), np.int64(head), np.int32(row), np.int64(key), np.int32(count)
