"""L2: Swin's attention within windows of a feature map, with or without a shift of the windows.

Liu et al. 2021, "Swin Transformer", arXiv:2103.14030, section 3.2. Attention between all tokens of an H x W map costs
(HW)²; here a token attends only to the tokens of its M x M window. In every second layer the windows are shifted by
half their size, so that information crosses their borders. To shift them, the map is rolled: rows that leave at the top
return at the bottom, beside tokens that are not their neighbours. A mask separates these regions (figure 4):

     before                 rolled by half a window, up and left        regions
     a a a a b b b b        the window at the bottom right has          0 0 0 0 1 1 2 2
     a a a a b b b b        tokens of all four corners:                 0 0 0 0 1 1 2 2
     a a a a b b b b                                                    0 0 0 0 1 1 2 2
     a a a a b b b b           d d c c     d was at the bottom right    0 0 0 0 1 1 2 2
     c c c c d d d d           d d c c     c                   left     3 3 3 3 4 4 5 5
     c c c c d d d d           b b a a     b           top     right    3 3 3 3 4 4 5 5
     c c c c d d d d           b b a a     a           top     left     6 6 6 6 7 7 8 8
     c c c c d d d d                                                    6 6 6 6 7 7 8 8

Rolling and partitioning into windows is a permutation of the tokens, so both together are one gather. In 16 bits on a
GPU, no gather is needed: the kernels read and write each token at its position in the map.
"""

from functools import cache

import numpy as np

from minigrad.autograd.function import Function, run
from minigrad.backend import Array, array_module, device_of, to_device
from minigrad.backend.sums import sum_over
from minigrad.ops import checks
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.checks import sides
from minigrad.ops.shape import stacked_view

Window = int | tuple[int, int]
"""Height and width of a window in tokens, or one integer M for both."""

MASKED = -100.0  # added to the scores of two tokens of different regions, as in the authors' code


class WindowAttention(Function):
    """y = attention of each head within each M x M window of a map that is rolled by `shift`, up and to the left.

        P = softmax(q kᵀ / √d + R + mask),   y = P v          for the N = M·M tokens of a window

    M may also be a pair (height, width), with N = height · width. R is the bias of each pair of positions in a window.
    The mask is MASKED for two tokens that are in one window only because of the roll, else 0. The tokens of y are in
    the order of the map, not of the rolled map.

    Shapes: qkv (B, H, W, 3C), the channels of a token being (3, heads, d) for q, k and v; bias R (heads, N, N) or None;
    y (B, H, W, C).  Saves q, k, v and P of each window, and the shape and windows of the map.
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
        return self.merge(y.swapaxes(2, 3), qkv.shape[-1] // 3)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        C = grad_output.shape[-1]
        grad = self.partition(grad_output)  # (B, H, W, C) -> (B, windows, N, C)
        grad = grad.reshape(*grad.shape[:-1], self.num_heads, C // self.num_heads).swapaxes(-2, -3)
        *grads, grad_bias = self.attention.backward(grad)
        if grad_bias is not None:
            # (B, windows, heads, N, N) -> (heads, N, N)
            grad_bias = sum_over(grad_bias, tuple(range(grad_bias.ndim - 3)))
        if not self.needs_input_grad[0]:
            return None, grad_bias
        packed = stacked_view(grads)
        if packed is None:
            packed = array_module(grads[0]).stack(grads)
        # (3, B, windows, heads, N, d) -> (B, windows, N, 3, heads, d) -> (B, H, W, 3C)
        return self.merge(packed.transpose(1, 2, 4, 0, 3, 5), 3 * C), grad_bias

    def mask(self, qkv: Array, bias: Array | None) -> Array | None:
        """R + mask: bias (heads, N, N) or None; with a shift (windows, heads, N, N), with heads = 1 without bias."""
        M, shift = self.windows
        if not any(shift):
            return bias
        mask = shift_mask(*qkv.shape[1:3], M, shift, device_of(qkv)).astype(qkv.dtype, copy=False)
        return mask if bias is None else bias + mask

    def heads(self, qkv: Array) -> Array:
        """(B, H, W, 3C) -> q, k, v, (3, B, windows, heads, N, d)."""
        windows = self.partition(qkv)  # (B, windows, N, 3C)
        d = qkv.shape[-1] // (3 * self.num_heads)
        return windows.reshape(*windows.shape[:3], 3, self.num_heads, d).transpose(3, 0, 1, 4, 2, 5)

    def partition(self, x: Array) -> Array:
        """The windows of a map: (B, H, W, C) -> (B, windows, N, C)."""
        B, H, W, C = x.shape
        places = window_places(H, W, *self.windows, device_of(x))
        return array_module(x).take(x.reshape(B, H * W, C), places, axis=1)

    def merge(self, windows: Array, C: int) -> Array:
        """The inverse of `partition`: (B, windows, N, ...) -> (B, H, W, C); the last axes (...) have C elements."""
        B, H, W, _ = self.shape
        places = map_places(H, W, *self.windows, device_of(windows))
        return array_module(windows).take(windows.reshape(B, H * W, C), places, axis=1).reshape(B, H, W, C)


@cache  # never freed: a captured CUDA graph may read the array
def window_places(H: int, W: int, M: Window, shift: tuple[int, int], device: str = "cpu") -> Array:
    """The index of each token of each window in the flattened map, (windows, N) int64."""
    places = np.arange(H * W).reshape(H, W)
    return to_device(windows_of(np.roll(places, (-shift[0], -shift[1]), (0, 1)), M), device)


@cache  # never freed: a captured CUDA graph may read the array
def map_places(H: int, W: int, M: Window, shift: tuple[int, int], device: str = "cpu") -> Array:
    """The inverse of `window_places`: the index of each token of the map in the flattened windows, (H·W,) int64."""
    return to_device(np.argsort(window_places(H, W, M, shift), axis=None), device)


@cache  # never freed: a captured CUDA graph may read the array
def shift_mask(H: int, W: int, M: Window, shift: tuple[int, int], device: str = "cpu") -> Array:
    """0 for two tokens of one region, MASKED for two of different regions: (windows, 1, N, N) float32.

    Tokens of a window are in different regions if the roll moved only some of them to the other end of an axis.
    """
    MH, MW = sides(M)
    region = windows_of(3 * _regions(H, MH, shift[0])[:, None] + _regions(W, MW, shift[1]), M)
    different = region[:, :, None] != region[:, None, :]  # (windows, N, N)
    return to_device(np.where(different, np.float32(MASKED), np.float32(0))[:, None], device)


def _regions(length: int, side: int, offset: int) -> np.ndarray:
    """The region of each position along an axis of the map, rolled by -offset, with windows of `side` positions.

    0: before the last window, or no offset; in the last, 1: the end of the map, 2: its start, rolled to the end.
    """
    regions = np.zeros(length, int)
    if offset:
        regions[length - side :] = 1
        regions[length - offset :] = 2
    return regions


def windows_of(grid: np.ndarray, M: Window) -> np.ndarray:
    """The windows of an array with one value for each token: (H, W) -> (windows, N)."""
    (H, W), (MH, MW) = grid.shape, sides(M)
    return grid.reshape(H // MH, MH, W // MW, MW).swapaxes(1, 2).reshape(-1, MH * MW)


def check(qkv: Array, bias: Array | None, num_heads: int, M: Window, shift: tuple[int, int]) -> None:
    """Check that the windows cover the map, and that the channels, the shift and the shape of the bias fit."""
    checks.floating(qkv, "window_attention")
    checks.rank(qkv, 4, "(B, H, W, 3C)", "window_attention")
    _, H, W, channels = qkv.shape
    MH, MW = sides(M)
    if min(MH, MW) < 1 or H % MH or W % MW:
        raise ValueError(f"window_attention: windows of {MH} x {MW} do not cover a map of {H} x {W}: pad it first")
    if num_heads < 1 or channels % (3 * num_heads):
        raise ValueError(
            f"window_attention: the channels of qkv must be a multiple of 3 x {num_heads} for {num_heads} heads, got "
            f"{channels}"
        )
    if not all(0 <= offset < side for offset, side in zip(shift, (MH, MW), strict=True)):
        raise ValueError(f"window_attention: the shift must be from 0 to below the window's size {M}, got {shift}")
    if bias is not None and bias.shape != (num_heads, N := MH * MW, N):
        raise ValueError(
            f"window_attention: the bias must have shape (num_heads, N, N) for windows of N = {N} tokens: "
            f"({num_heads}, {N}, {N}), got {bias.shape}"
        )
