"""L2: attention within the windows of a map, which may be shifted: the step that makes Swin what it is.

Liu et al. 2021, "Swin Transformer", arXiv:2103.14030, section 3.2. Between all tokens of an H x W map attention costs
(HW)²; here a token looks only at the M x M window that it is in. From one layer to the next the windows move by half
their size, or nothing in one would ever reach another. To move them, the map is rolled: what leaves at the top comes
back at the bottom, beside tokens that it has nothing to do with, and a mask keeps those apart (figure 4):

     before                 rolled by half a window, up and left        regions
     a a a a b b b b        the window at the bottom right has          0 0 0 0 1 1 2 2
     a a a a b b b b        tokens of all four corners:                 0 0 0 0 1 1 2 2
     a a a a b b b b                                                    0 0 0 0 1 1 2 2
     a a a a b b b b           d d c c     d was at the bottom right    0 0 0 0 1 1 2 2
     c c c c d d d d           d d c c     c                   left     3 3 3 3 4 4 5 5
     c c c c d d d d           b b a a     b           top     right    3 3 3 3 4 4 5 5
     c c c c d d d d           b b a a     a           top     left     6 6 6 6 7 7 8 8
     c c c c d d d d                                                    6 6 6 6 7 7 8 8

Rolling and cutting into windows only say where each token goes, which is a table of places. So both are one gather,
and in 16 bits on a GPU not even that: the kernels read and write every token at its place in the map.
"""

from functools import cache

import numpy as np

from minigrad.autograd.function import Function, run
from minigrad.backend import Array, array_module, device_of, to_device
from minigrad.backend.sums import sum_over
from minigrad.ops import checks
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.checks import sides
from minigrad.ops.shape import side_by_side

Window = int | tuple[int, int]
"""Height and width of a window, in tokens; one number M where both are the same."""

APART = -100.0  # added to the score of two tokens of different regions, as the authors do


class WindowAttention(Function):
    """y = attention of each head within each M x M window of a map that is rolled by `shift`, up and to the left.

        P = softmax(q kᵀ / √d + B + mask),   y = P v          for the N = M·M tokens of a window

    A window may be of another height than width: then M is a pair, and N their product.

    B is added for each pair of places in a window; the mask is APART for two tokens that only the roll made neighbours.
    y is in the map's own order: as if it had been rolled back.

    Shapes: qkv (B, H, W, 3C), in which of each token q, k and v lie side by side, and in each of them the heads, of d
    numbers; bias (heads, N, N) or None; y (B, H, W, C).  Saves what attention does, and where the tokens are.
    """

    def forward(
        self, qkv: Array, bias: Array | None, *,
        num_heads: int, window_size: Window, shift: tuple[int, int], dropout_p: float,
    ) -> Array:  # fmt: skip
        check(qkv, bias, num_heads, window_size, shift)
        self.shape, self.num_heads = qkv.shape, num_heads
        self.windows = window_size, shift
        q, k, v = self.heads(qkv)  # each (B, windows, heads, N, d)
        mask, want_bias = self.mask(qkv, bias), bias is not None and self.needs_input_grad[1]
        self.attention, y = run(
            ScaledDotProductAttention, (*[self.needs_input_grad[0]] * 3, want_bias), q, k, v, mask,
            scale=q.shape[-1] ** -0.5, is_causal=False, dropout_p=dropout_p,
        )  # (B, windows, heads, N, d)  # fmt: skip
        return self.uncut(y.swapaxes(2, 3), qkv.shape[-1] // 3)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        C = grad_output.shape[-1]
        grad = self.cut(grad_output)  # (B, H, W, C) -> (B, windows, N, C)
        grad = grad.reshape(*grad.shape[:-1], self.num_heads, C // self.num_heads).swapaxes(-2, -3)
        *grads, grad_bias = self.attention.backward(grad)
        if grad_bias is not None:
            # (B, windows, heads, N, N) -> (heads, N, N)
            grad_bias = sum_over(grad_bias, tuple(range(grad_bias.ndim - 3)))
        if not self.needs_input_grad[0]:
            return None, grad_bias
        packed = side_by_side(grads)
        packed = array_module(grads[0]).stack(grads) if packed is None else packed
        # (3, B, windows, heads, N, d) -> (B, windows, N, 3, heads, d) -> (B, H, W, 3C)
        return self.uncut(packed.transpose(1, 2, 4, 0, 3, 5), 3 * C), grad_bias

    def mask(self, qkv: Array, bias: Array | None) -> Array | None:
        """What is added to the scores: B, and with a shift the mask: (heads, N, N), or (windows, heads, N, N)."""
        M, shift = self.windows
        if not any(shift):
            return bias
        apart = shift_mask(*qkv.shape[1:3], M, shift, device_of(qkv)).astype(qkv.dtype, copy=False)
        return apart if bias is None else bias + apart

    def heads(self, qkv: Array) -> Array:
        """(B, H, W, 3C) -> q, k, v, (3, B, windows, heads, N, d)."""
        cut = self.cut(qkv)  # (B, windows, N, 3C)
        d = qkv.shape[-1] // (3 * self.num_heads)
        return cut.reshape(*cut.shape[:3], 3, self.num_heads, d).transpose(3, 0, 1, 4, 2, 5)

    def cut(self, x: Array) -> Array:
        """A map as its windows: (B, H, W, C) -> (B, windows, N, C)."""
        B, H, W, C = x.shape
        places = window_places(H, W, *self.windows, device_of(x))
        return array_module(x).take(x.reshape(B, H * W, C), places, axis=1)

    def uncut(self, windows: Array, C: int) -> Array:
        """The map that windows are of: (B, windows, N, ...), the last axes C numbers -> (B, H, W, C)."""
        B, H, W, _ = self.shape
        places = map_places(H, W, *self.windows, device_of(windows))
        return array_module(windows).take(windows.reshape(B, H * W, C), places, axis=1).reshape(B, H, W, C)


@cache  # for good: a graph may read it
def window_places(H: int, W: int, M: Window, shift: tuple[int, int], device: str = "cpu") -> Array:
    """Which token of the map each token of the windows is, (windows, N) int64; tokens are counted row by row."""
    places = np.arange(H * W).reshape(H, W)
    return to_device(windows_of(np.roll(places, (-shift[0], -shift[1]), (0, 1)), M), device)


@cache  # for good: a graph may read it
def map_places(H: int, W: int, M: Window, shift: tuple[int, int], device: str = "cpu") -> Array:
    """The other way round: which token of all windows, one after another, each token of the map is, (H·W,) int64."""
    return to_device(np.argsort(window_places(H, W, M, shift), axis=None), device)


@cache  # for good: a graph may read it
def shift_mask(H: int, W: int, M: Window, shift: tuple[int, int], device: str = "cpu") -> Array:
    """0 for tokens of one region, APART for two that only the roll made neighbours: (windows, 1, N, N) float32.

    Along each axis the rolled map has up to three parts: all windows but the last, and of that what is before the seam
    and what is after it.
    """
    rows, columns = (
        (np.arange(length) >= length - side).astype(int) + (np.arange(length) >= length - offset) if offset else
        np.zeros(length, int)
        for length, side, offset in zip((H, W), sides(M), shift, strict=True)
    )  # fmt: skip
    region = windows_of(3 * rows[:, None] + columns, M)
    apart = region[:, :, None] != region[:, None, :]  # (windows, N, N)
    return to_device(np.where(apart, np.float32(APART), np.float32(0))[:, None], device)


def windows_of(grid: np.ndarray, M: Window) -> np.ndarray:
    """One number for each position, window by window: (H, W) -> (windows, N)."""
    (H, W), (MH, MW) = grid.shape, sides(M)
    return grid.reshape(H // MH, MH, W // MW, MW).swapaxes(1, 2).reshape(-1, MH * MW)


def check(qkv: Array, bias: Array | None, num_heads: int, M: Window, shift: tuple[int, int]) -> None:
    """Refuse a map that windows do not cover, channels that are not q, k, v of so many heads, and shifts and biases
    that fit no window."""
    checks.floating(qkv, "window_attention")
    checks.rank(qkv, 4, "(B, H, W, 3C)", "window_attention")
    _, H, W, channels = qkv.shape
    MH, MW = sides(M)
    if min(MH, MW) < 1 or H % MH or W % MW:
        raise ValueError(f"window_attention: windows of {MH} x {MW} do not cover a map of {H} x {W}: pad it first")
    if num_heads < 1 or channels % (3 * num_heads):
        raise ValueError(
            f"window_attention: q, k and v of {num_heads} heads need a multiple of 3 x {num_heads} channels, got "
            f"{channels}"
        )
    if not all(0 <= offset < side for offset, side in zip(shift, (MH, MW), strict=True)):
        raise ValueError(f"window_attention: a shift is from 0 to below the window's size, {M}: got {shift}")
    if bias is not None and bias.shape != (num_heads, N := MH * MW, N):
        raise ValueError(
            f"window_attention: the bias needs a number for each pair of the {N} tokens of a window, for each "
            f"head: ({num_heads}, {N}, {N}), got {bias.shape}"
        )
