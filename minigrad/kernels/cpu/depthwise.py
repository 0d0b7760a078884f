"""L2: depthwise convolution by matrix products.

A depthwise convolution does little arithmetic with each element, so its cost is memory traffic: tap by tap, a 7 x 7
kernel reads the image 49 times. But convolution is linear. The map from a patch of the image, as a row of K values, to
the tile of O outputs in the middle of the patch is a matrix T (K, O): T[a, o] = weight[i, j] if output o reads input a
at tap i, j, else 0 (a Toeplitz matrix, except at the edges). In one dimension, with a kernel w of 3 taps and tiles of 2
outputs, a patch has 4 inputs:

    T = [[w0,  0],
         [w1, w0],      y0 = w0 x0 + w1 x1 + w2 x2
         [w2, w1],      y1 =         w0 x1 + w1 x2 + w2 x3
         [ 0, w2]]

Most of T is zeros, and BLAS is still faster. For each channel,

    Y = X T,    ∂weight[i, j] = Σ (Xᵀ ∂Y)[a, o] over all a, o of tap i, j,    ∂X as Y, with the flipped weight

where X has a row for each tile of each image. A patch extends beyond its tile by half a kernel on each side, or not at
all along an axis where the tile is as large as the image. With large tiles, T has more zeros; with small tiles, more
pixels are copied.

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

from minigrad.backend import Array, products
from minigrad.kernels.cpu.chunks import is_finite
from minigrad.ops.conv import Depthwise
from minigrad.ops.windows import Pair, Windows

MAX_TILE = 128  # outputs of a tile
SCRATCH = 1 << 18  # elements of X computed at once

# The cost model, in multiply-adds, fitted to times for 4 to 32 images of 7 to 56 pixels a side.
COPY = 15  # copying an element of X
COPY_RUN = 200  # copying a contiguous run of X, beyond its elements
BUILD = 150  # building an element of T, which BLAS packs


@dataclass(frozen=True)
class Tiles:
    """Depthwise convolution with stride 1, by tiles: images (N, H, W, C), weight (C, 1, KH, KW)."""

    windows: Windows

    def correlate(self, x: Array, weight: Array, out: Array | None = None) -> Array:
        """Y (N, H, W, C), in `out` if given, an array of any memory order."""
        recompute = lambda channels: Depthwise(self.windows).correlate(x[..., channels], weight[channels])  # noqa: E731
        return self._correlate(x, weight, recompute, out)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        def recompute(channels: slice) -> Array:
            g = grad_y[..., channels]
            return Depthwise(self.windows).grad_x(g, weight[channels], g.shape)

        return self._correlate(grad_y, weight[:, :, ::-1, ::-1], recompute)

    @np.errstate(over="ignore", invalid="ignore")
    def _correlate(
        self, x: Array, weight: Array, recompute: Callable[[slice], Array], out: Array | None = None
    ) -> Array:
        """Y (N, H, W, C), float32; channels with NaN or ∞ come from `recompute`."""
        finite = is_finite(weight)
        N, H, W, C = x.shape
        plan = plan_for(N, H, W, self.windows.kernel)
        taps = np.zeros((C, prod(self.windows.kernel) + 1), np.float32)  # the last is 0, for no tap
        taps[:, :-1] = weight.reshape(C, -1)
        y: Array = np.empty(x.shape, np.float32) if out is None else out
        y_tiles, y_rows = plan.tiles(y), plan.rows(y)
        for channels, X in plan.patches(x):
            T, rows = taps[channels][:, plan.tap], None if y_rows is None else y_rows[channels]
            Y = products.matmul(X, T, out=rows)  # (c, tiles, K) (c, K, O) -> (c, tiles, O)
            if not (finite and is_finite(Y[..., 0])):
                y[..., channels] = recompute(channels)
                continue
            if rows is not None:  # Y is in its place
                continue
            # (c, tiles, O) -> (c, N, rows, columns, TH, TW) -> (N, rows, TH, columns, TW, c)
            Y = Y.reshape(len(Y), N, y_tiles.shape[1], y_tiles.shape[3], *plan.tile)
            y_tiles[..., channels] = Y.transpose(1, 2, 4, 3, 5, 0)
        return y

    @np.errstate(over="ignore", invalid="ignore")
    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        N, H, W, C = x.shape
        plan = plan_for(N, H, W, self.windows.kernel)
        grad_taps = np.empty((C, prod(self.windows.kernel)), np.float32)
        y_tiles = plan.tiles(grad_y)
        for channels, X in plan.patches(x):
            # (N, rows, TH, columns, TW, c) -> (c, N, rows, columns, TH, TW) -> (c, tiles, O)
            Y = np.ascontiguousarray(y_tiles[..., channels].transpose(5, 0, 1, 3, 2, 4)).reshape(*X.shape[:2], -1)
            pairs = products.matmul(X.swapaxes(1, 2), Y)  # (c, K, tiles) (c, tiles, O) -> (c, K, O)
            grad_taps[channels] = pairs.reshape(len(X), -1) @ plan.one_hot
        if not is_finite(grad_taps):
            return Depthwise(self.windows).grad_weight(grad_y, x, shape)
        return grad_taps.reshape(shape)


@dataclass(frozen=True)
class Plan:
    """How images are divided into tiles and patches.

    Attributes:
        cost: the estimated cost of an output, in multiply-adds.
        tile: height TH and width TW of a tile; O is their product.
        patch: height PH and width PW of a patch; K is their product.
        border: rows above and below the image, and columns on both sides, that patches contain.
        tap: (K, O), the index of the tap at which an output reads an input; KH·KW if there is none.
        one_hot: (K·O, KH·KW), `tap` as one-hot rows.
    """

    cost: float
    tile: Pair
    patch: Pair
    border: Pair
    tap: np.ndarray
    one_hot: np.ndarray

    def tiles(self, y: Array) -> Array:
        """The tiles of a map, a view if y is contiguous: (N, H, W, C) -> (N, rows, TH, columns, TW, C)."""
        N, H, W, C = y.shape
        TH, TW = self.tile
        return y.reshape(N, H // TH, TH, W // TW, TW, C)

    def rows(self, y: Array) -> Array | None:
        """A map in the memory order (C, N, H, W), cut into tiles of full rows, as a view (C, tiles, O); else None."""
        N, H, W, C = y.shape
        channels = y.transpose(3, 0, 1, 2)
        if self.tile[1] != W or not channels.flags.c_contiguous:
            return None
        return channels.reshape(C, N * (H // self.tile[0]), self.tile[0] * W)

    def patches(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """For each slice of c channels, yields the slice and its X: (N, H, W, c) -> (c, tiles, K)."""
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
    """The plan of minimum cost for N images of H x W."""
    heights, widths = ([part for part in range(1, size + 1) if size % part == 0] for size in (H, W))
    tiles = [tile for tile in product(heights, widths) if 1 < prod(tile) <= MAX_TILE] or [(1, 1)]
    cost, tile = min((_cost(tile, N, H, W, kernel), tile) for tile in tiles)
    patch, border = _patch(tile, (H, W), kernel)
    tap = _tap_table(tile, patch, border, kernel)
    one_hot = (tap.reshape(-1, 1) == np.arange(prod(kernel))).astype(np.float32)
    return Plan(cost, tile, patch, border, tap, one_hot)


def _patch(tile: Pair, image: Pair, kernel: Pair) -> tuple[Pair, Pair]:
    """The sizes of the patch of a tile, and of its border."""
    BH, BW = (0 if part == size else k // 2 for part, size, k in zip(tile, image, kernel, strict=True))
    return (tile[0] + 2 * BH, tile[1] + 2 * BW), (BH, BW)


def _cost(tile: Pair, N: int, H: int, W: int, kernel: Pair) -> float:
    """The cost of an output: K multiply-adds, and its shares of copying a row of X and of building T."""
    (PH, PW), _ = _patch(tile, (H, W), kernel)
    outputs, run = prod(tile), PW if PW < W else PH * PW  # run: the contiguous elements of x in a row of X
    return PH * PW * (1 + (COPY + COPY_RUN / run) / outputs + BUILD * outputs / (N * H * W))


def _tap_table(tile: Pair, patch: Pair, border: Pair, kernel: Pair) -> np.ndarray:
    """`tap` of a Plan: along an axis, output o of a tile reads input a of the patch at tap a - o + k // 2 - border."""
    i, j = (
        np.arange(inputs)[:, None] - np.arange(outputs) + k // 2 - beyond
        for inputs, outputs, k, beyond in zip(patch, tile, kernel, border, strict=True)
    )  # (PH, TH), (PW, TW)
    i, j = i[:, None, :, None], j[None, :, None, :]  # (PH, PW, TH, TW)
    is_tap = (i >= 0) & (i < kernel[0]) & (j >= 0) & (j < kernel[1])
    return np.where(is_tap, i * kernel[1] + j, prod(kernel)).reshape(prod(patch), prod(tile))
