"""L2: attention for rows of up to 256 tokens, whose scores stay in registers."""

from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, device_of
from minigrad.cublas import pointer
from minigrad.kernels.cuda.launch import WARP, Kernel, on_gpu
from minigrad.kernels.twins import twin_of
from minigrad.ops import attention

ROWS = 4  # that a warp works on at once, as in attention.cu
MOST_WARPS = 8  # of a block
WIDEST, LONGEST = 128, 256  # E and V; L and S: what finds room in a thread's registers
FLOAT, PACK = 4, 16  # bytes of a number, and of what a thread reads at once
FARTHEST = 2**31  # numbers from one row to the next are fewer: an int in the kernels
SHARED = 227 << 10  # bytes of shared memory that a block may have on a Hopper GPU


@twin_of(attention.ScaledDotProductAttention)
class ScaledDotProductAttention(attention.ScaledDotProductAttention):
    """The same formula by `attention.cu`: a kernel forward, and two backward, which make the scores again.

    Queries, keys and values are read where they lie, such as in the packed qkv of a linear layer, and y is written so
    that the heads of a token lie side by side again if they did in q: joining them, as a model does next, is free.

    Without dropout and without the causal mask. Shapes: q (..., heads, L, E), k (..., heads, S, E), v (..., heads, S,
    V); the mask broadcasts to (..., heads, L, S).  Saves q, k, v, the mask, and lse (..., heads, L): for each query
    the logarithm of the sum of its exponentials.
    """

    @staticmethod
    def takes(
        q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, is_causal: bool, dropout_p: float
    ) -> bool:
        if is_causal or dropout_p or not (on_gpu(q) and on_gpu(k) and on_gpu(v)) or q.ndim < 3:
            return False
        if not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.size and v.size):
            return False
        (L, E), (S, V) = q.shape[-2:], v.shape[-2:]
        if k.shape[-2:] != (S, E) or max(E, V) > WIDEST or max(L, S) > LONGEST:
            return False
        if mask is not None:
            if not (on_gpu(mask) and mask.dtype == np.float32):
                return False
            if not attention.broadcasts_to(mask.shape, (*q.shape[:-1], S)):
                return False
        shared = max(_block(rows, own, E, V, backward=True)[1] for rows, own in ((S, L), (L, S)))
        return shared <= most_shared(q) and all(readable(x, np.float32) for x in (q, k, v))

    def forward(self, q: Array, k: Array, v: Array, mask: Array | None, **choices: Any) -> Array:
        self.q, self.k, self.v, self.mask = q, k, v, _laid_out(mask, (*q.shape[:-1], k.shape[-2]))
        self.scale = choices["scale"]
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
        along = empty(q.shape[:-1], np.float32) if want_k else None
        grad_scores = empty((*q.shape[:-1], k.shape[-2]), np.float32) if want_mask else None
        if want_q or want_k or want_mask:
            self._launch(
                "attention_backward_q", k, q,
                *seen(grad_output), *seen(grad_q), self.lse, along, grad_scores,
            )  # fmt: skip
        if want_k or want_v:
            self._launch(
                "attention_backward_kv", q, k,
                *seen(grad_output), *seen(grad_k), *seen(grad_v), self.lse, along,
            )  # fmt: skip
        return grad_q, grad_k, grad_v, grad_scores

    def _launch(self, name: str, for_all: Array, own: Array, *args: Any) -> None:
        """A block for each head of each entry. All its warps need the rows of `for_all`; they share those of `own`."""
        *_, heads, L, E = self.q.shape
        S, V = self.v.shape[-2:]
        rows = for_all.shape[-2]
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
    """How many warps a block has, so that all have as much to do, and how many bytes of shared memory.

    Args:
        rows: what all warps need: so many rows of E and of V numbers.
        own: of how many rows the warps take ROWS at a time. They keep E numbers of each, backward V more, and weights.
    """
    turns = -(-own // (ROWS * MOST_WARPS))
    warps = -(-own // (ROWS * turns))
    each = _spaced(E) + (_spaced(V) if backward else 0) + -(-rows // WARP) * WARP
    return warps, FLOAT * ((rows + 3) // 4 * 4 * (_spaced(E) + _spaced(V)) + warps * ROWS * each)


def _spaced(width: int) -> int:
    """From one row to the next in shared memory, as in attention.cu."""
    return width if width // 4 % 2 else width + 4


_most_shared: dict[str, int] = {}  # by device


def most_shared(x: Array) -> int:
    """Bytes of shared memory that a block may have on the GPU where x is."""
    device = device_of(x)
    if device not in _most_shared:
        attributes = getattr(x.device, "attributes", {})  # the CPU in its place has none
        _most_shared[device] = attributes.get("MaxSharedMemoryPerBlockOptin", SHARED)
    return _most_shared[device]


def readable(x: Array, dtype: Any) -> bool:
    """Whether the numbers of a row lie side by side, in packs, and the outer axes are as good as one."""
    if x.dtype != dtype or x.shape[-1] % (PACK // x.itemsize) or x.strides[-1] != x.itemsize or pointer(x) % PACK:
        return False
    steps = _steps(x)
    even = all(outer == count * inner for (_, outer), (count, inner) in pairwise(steps[:-2]))
    return even and all(step % PACK == 0 for _, step in steps) and abs(steps[-1][1]) < FARTHEST * x.itemsize


def _steps(x: Array) -> list[tuple[int, int]]:
    """Count, and bytes from one to the next, of entries (of each outer axis that has several), heads, and rows."""
    steps = [(count, step if count > 1 else 0) for count, step in zip(x.shape[:-1], x.strides[:-1], strict=True)]
    return [(count, step) for count, step in steps[:-2] if count > 1] + steps[-2:]


def seen(x: Array | None) -> tuple[Any, ...]:
    """A readable x as a kernel takes it: how many numbers there are to the next entry, head, and row comes after it."""
    if x is None:
        return None, np.int64(0), np.int64(0), np.int32(0)
    *outer, (_, head), (_, row) = _steps(x)
    entry = outer[-1][1] if outer else 0
    return x, np.int64(entry // x.itemsize), np.int64(head // x.itemsize), np.int32(row // x.itemsize)


def empty_like(x: Array, width: int) -> Array:
    """Room for rows of another width, with x's order of heads and rows in memory, and no gaps."""
    empty, (*outer, heads, rows, _) = array_module(x).empty, x.shape
    if abs(x.strides[-3]) < abs(x.strides[-2]):
        return empty((*outer, rows, heads, width), x.dtype).swapaxes(-2, -3)
    return empty((*outer, heads, rows, width), x.dtype)


def _laid_out(mask: Array | None, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The mask as a kernel takes it: an array, its strides, and how many masks there are along the outer axes.

    Every entry reads it, so it is copied if keys do not lie side by side, and if masks do not simply repeat.
    """
    if mask is None:
        return None, *[np.int64(0)] * 2, np.int32(0), np.int64(0), np.int32(1)
    xp, outer = array_module(mask), shape[:-3]
    mask = mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)
    masks = mask.shape[:-3]
    repeated = next(i for i in range(len(outer) + 1) if masks[i:] == outer[i:])  # the axes before this one
    if prod(masks[:repeated]) > 1:
        mask = xp.broadcast_to(mask, (*outer, *mask.shape[-3:]))
    mask = xp.ascontiguousarray(mask)
    steps = [0 if count == 1 else step // FLOAT for count, step in zip(mask.shape, mask.strides, strict=True)]
    count, step = prod(mask.shape[:-3]), prod(mask.shape[-3:])
    head, row, key = steps[-3:]
    return mask, np.int64(step), np.int64(head), np.int32(row), np.int64(key), np.int32(count)
