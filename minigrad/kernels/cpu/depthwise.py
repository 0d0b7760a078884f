"""L2: depthwise convolution by matrix products.

A depthwise convolution does little arithmetic with each element, so its cost is memory traffic: tap by tap, a 7 x 7
kernel reads the image 49 times. But convolution is linear. The map from a patch of the image, as a row of K values, to
the tile of N outputs in the middle of the patch is a matrix T (K, N): T[a, o] = weight[i, j] if output o reads input a
at tap i, j, else 0 (a Toeplitz matrix, except at the edges). Most of T is zeros, and BLAS is still faster.

    Y = X T,    ∂weight[i, j] = Σ (Xᵀ ∂Y)[a, o] over all a, o of tap i, j,    ∂X as Y, with the flipped weight

for each channel, where X has a row for each tile of each image. A patch extends over its tile by half a kernel on each
side, or not at all along an axis where the tile is as large as the image. With large tiles, T has more zeros; with
small ones, more pixels are copied.

A NaN or infinity in a patch spreads through the zeros of T to all outputs of the tile: 0 · NaN is NaN. So channels in
which the weight or Y is not finite are computed again, tap by tap. For Y, checking one output of each tile is enough.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minigrad.backend import Array
from minigrad.kernels.cpu.chunks import is_finite
from minigrad.ops.conv import Depthwise
from minigrad.ops.windows import Pair, Windows

MAX_TILE = 128  # outputs of a tile
SCRATCH = 1 << 18  # elements of X computed at once


@dataclass(frozen=True)
class Tiles:
    """The method of `Conv2d` for depthwise convolution: images (N, H, W, C), weight (C, 1, KH, KW)."""

    windows: Windows

    def correlate(self, x: Array, weight: Array) -> Array:
        recompute = lambda channels: Depthwise(self.windows).correlate(x[..., channels], weight[channels])  # noqa: E731
        return self._correlate(x, weight, recompute)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        def recompute(channels: slice) -> Array:
            g = grad_y[..., channels]
            return Depthwise(self.windows).grad_x(g, weight[channels], g.shape)

        return self._correlate(grad_y, weight[:, :, ::-1, ::-1], recompute)

    @np.errstate(over="ignore", invalid="ignore")
    def _correlate(self, x: Array, weight: Array, recompute: Callable[[slice], Array]) -> Array:
        """Y; `recompute` gives the channels in which Y is not finite."""
        finite = is_finite(weight)
        N, H, W, C = x.shape
        plan = plan_for(N, H, W, self.windows.kernel)
        taps = np.zeros((C, prod(self.windows.kernel) + 1), np.float32)  # the last is 0, for no tap
        taps[:, :-1] = weight.reshape(C, -1)
        y = np.empty(x.shape, np.float32)
        # (N, H, W, C) -> (N, rows, tile height, columns, tile width, C): a view
        tiles = y.reshape(N, H // plan.tile[0], plan.tile[0], W // plan.tile[1], plan.tile[1], C)
        for channels, X in plan.patches(x):
            Y = X @ taps[channels][:, plan.tap]  # (c, tiles, K) (c, K, N) -> (c, tiles, N)
            if not (finite and is_finite(Y[..., 0])):
                y[..., channels] = recompute(channels)
                continue
            Y = Y.reshape(len(Y), N, tiles.shape[1], tiles.shape[3], *plan.tile)
            tiles[..., channels] = Y.transpose(1, 2, 4, 3, 5, 0)
        return y

    @np.errstate(over="ignore", invalid="ignore")
    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        N, H, W, C = x.shape
        plan = plan_for(N, H, W, self.windows.kernel)
        grad_taps = np.empty((C, prod(self.windows.kernel)), np.float32)
        tiles = grad_y.reshape(N, H // plan.tile[0], plan.tile[0], W // plan.tile[1], plan.tile[1], C)
        for channels, X in plan.patches(x):
            # (N, rows, tile height, columns, tile width, c) -> (c, N, rows, columns, tile) -> (c, tiles, N)
            Y = np.ascontiguousarray(tiles[..., channels].transpose(5, 0, 1, 3, 2, 4)).reshape(*X.shape[:2], -1)
            pairs = X.swapaxes(1, 2) @ Y  # (c, K, tiles) (c, tiles, N) -> (c, K, N)
            grad_taps[channels] = pairs.reshape(len(X), -1) @ plan.one_hot
        if not is_finite(grad_taps):
            return Depthwise(self.windows).grad_weight(grad_y, x, shape)
        return grad_taps.reshape(shape)


@dataclass(frozen=True)
class Plan:
    """How images are divided into tiles and patches.

    Attributes:
        cost: the estimated cost of an output, in multiply-adds.
        tile: height and width of a tile; N is their product.
        patch: height and width of a patch; K is their product.
        border: rows above and below the image, and columns on both sides, that patches contain.
        tap: (K, N), the index of the tap at which an output reads an input; KH·KW if it does not.
        one_hot: (K·N, KH·KW), `tap` as one-hot rows.
    """

    cost: float
    tile: Pair
    patch: Pair
    border: Pair
    tap: np.ndarray
    one_hot: np.ndarray

    def patches(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """X of a few channels at a time: yields the slice of the channels, and X: (N, H, W, C) -> (c, tiles, K)."""
        N, H, W, C = x.shape
        (TH, TW), (PH, PW), (BH, BW) = self.tile, self.patch, self.border
        rows, columns = H // TH, W // TW
        step = max(1, SCRATCH // (N * rows * columns * PH * PW))
        padded = np.zeros((min(step, C), N, H + 2 * BH, W + 2 * BW), np.float32)
        for start in range(0, C, step):
            channels = slice(start, min(start + step, C))
            inside = padded[: channels.stop - start]
            inside[:, :, BH : BH + H, BW : BW + W] = x[..., channels].transpose(3, 0, 1, 2)
            c, n, h, w = inside.strides
            view = as_strided(inside, (len(inside), N, rows, columns, PH, PW), (c, n, h * TH, w * TW, h, w))
            yield channels, view.reshape(len(inside), N * rows * columns, PH * PW)


@lru_cache(maxsize=256)
def plan_for(N: int, H: int, W: int, kernel: Pair) -> Plan:
    """The plan of the lowest cost for N images of H x W.

    The cost of an output is K multiply-adds, its share of copying a row of X in contiguous runs, and its share of
    building T, which BLAS packs. The coefficients are fitted to times for 4 to 32 images of 7 to 56 pixels a side.
    """

    def along(part: int, size: int, k: int) -> Pair:
        """The border and the size of a patch along an axis, for a tile of size `part`."""
        border = 0 if part == size else k // 2
        return border, part + 2 * border

    def parts(tile: Pair) -> tuple[Pair, Pair]:
        (BH, PH), (BW, PW) = along(tile[0], H, kernel[0]), along(tile[1], W, kernel[1])
        return (BH, BW), (PH, PW)

    def cost(tile: Pair) -> float:
        (PH, PW), outputs = parts(tile)[1], prod(tile)
        run = PW if PW < W else PH * PW
        return PH * PW * (1 + (15 + 200 / run) / outputs + 150 * outputs / (N * H * W))

    heights, widths = ([part for part in range(1, size + 1) if size % part == 0] for size in (H, W))
    tile = min((tile for tile in product(heights, widths) if prod(tile) <= MAX_TILE), key=cost)
    border, patch = parts(tile)
    # Along an axis, output o of a tile reads input a of its patch at tap a - o + k // 2 - border.
    offsets = [
        np.arange(inputs)[:, None] - np.arange(outputs) + k // 2 - beyond
        for inputs, outputs, k, beyond in zip(patch, tile, kernel, border, strict=True)
    ]
    i, j = offsets[0][:, None, :, None], offsets[1][None, :, None, :]  # (PH, PW, TH, TW)
    is_tap = (i >= 0) & (i < kernel[0]) & (j >= 0) & (j < kernel[1])
    taps = kernel[0] * kernel[1]
    tap = np.where(is_tap, i * kernel[1] + j, taps).reshape(patch[0] * patch[1], tile[0] * tile[1])
    one_hot = (tap.reshape(-1, 1) == np.arange(taps)).astype(np.float32)
    return Plan(cost(tile), tile, patch, border, tap, one_hot)
