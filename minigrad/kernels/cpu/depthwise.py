"""L2: depthwise convolution by matrix products.

A depthwise convolution does little with each number, so what costs is to walk through memory: tap by tap, 49 times for
a 7 x 7 kernel. But a convolution is linear. From a patch of the image, written as a row of K numbers, to the tile of N
outputs in its middle it is a matrix T (K, N), with weight[i, j] where input a and output o are i, j apart, and 0
elsewhere (a Toeplitz matrix, but for the edges). Most of what is then multiplied is zeros, and BLAS is still faster.

    Y = X T,    ∂weight[i, j] = Σ (Xᵀ ∂Y)[a, o] over all a, o that are i, j apart,    ∂X as Y, with the flipped weight

for each channel, X having a row for each tile of each image. Where a tile is as wide or high as the image, the patch
is too; else it reaches over the tile by half a kernel. Large tiles mean more zeros, small ones more copying.

The zeros of T do not stop a NaN or an infinity: 0 · NaN is NaN, in outputs whose windows do not contain it. So where
the weight or Y is not finite, channels are computed again, tap by tap. It shows in the first output of each tile: of a
patch that is not finite, no output is.
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

LARGEST = 128  # outputs in a tile
SCRATCH = 1 << 18  # numbers in the patches that are worked on at once


@dataclass(frozen=True)
class Tiles:
    """Y, ∂X and ∂weight for images (N, H, W, C) and weights (C, 1, KH, KW)."""

    windows: Windows

    def correlate(self, x: Array, weight: Array) -> Array:
        again = lambda some: Depthwise(self.windows).correlate(x[..., some], weight[some])  # noqa: E731
        return self._correlate(x, weight, again)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        def again(some: slice) -> Array:
            g = grad_y[..., some]
            return Depthwise(self.windows).grad_x(g, weight[some], g.shape)

        return self._correlate(grad_y, weight[:, :, ::-1, ::-1], again)

    @np.errstate(over="ignore", invalid="ignore")
    def _correlate(self, x: Array, weight: Array, again: Callable[[slice], Array]) -> Array:
        """Y; channels in which it is not finite come from `again`."""
        finite = is_finite(weight)
        N, H, W, C = x.shape
        plan = plan_for(N, H, W, self.windows.kernel)
        taps = np.zeros((C, prod(self.windows.kernel) + 1), np.float32)  # the last is 0, for "too far apart"
        taps[:, :-1] = weight.reshape(C, -1)
        y = np.empty(x.shape, np.float32)
        # (N, H, W, C) -> (N, rows, tile height, columns, tile width, C): a view
        tiles = y.reshape(N, H // plan.tile[0], plan.tile[0], W // plan.tile[1], plan.tile[1], C)
        for some, X in plan.patches(x):
            Y = X @ taps[some][:, plan.tap]  # (c, tiles, K) (c, K, N) -> (c, tiles, N)
            if not (finite and is_finite(Y[..., 0])):
                y[..., some] = again(some)
                continue
            Y = Y.reshape(len(Y), N, tiles.shape[1], tiles.shape[3], *plan.tile)
            tiles[..., some] = Y.transpose(1, 2, 4, 3, 5, 0)
        return y

    @np.errstate(over="ignore", invalid="ignore")
    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        N, H, W, C = x.shape
        plan = plan_for(N, H, W, self.windows.kernel)
        grad_taps = np.empty((C, prod(self.windows.kernel)), np.float32)
        tiles = grad_y.reshape(N, H // plan.tile[0], plan.tile[0], W // plan.tile[1], plan.tile[1], C)
        for some, X in plan.patches(x):
            # (N, rows, tile height, columns, tile width, c) -> (c, N, rows, columns, tile) -> (c, tiles, N)
            Y = np.ascontiguousarray(tiles[..., some].transpose(5, 0, 1, 3, 2, 4)).reshape(*X.shape[:2], -1)
            pairs = X.swapaxes(1, 2) @ Y  # (c, K, tiles) (c, tiles, N) -> (c, K, N)
            grad_taps[some] = pairs.reshape(len(X), -1) @ plan.one_hot
        if not is_finite(grad_taps):
            return Depthwise(self.windows).grad_weight(grad_y, x, shape)
        return grad_taps.reshape(shape)


@dataclass(frozen=True)
class Plan:
    """How an image is cut.

    Attributes:
        cost: of an output, in multiply-adds.
        tile: height and width of a tile; N is their product.
        patch: those of the patch it is computed from; K is their product.
        border: rows above and below, and columns on both sides, by which patches reach over the image.
        tap: (K, N), the number of the tap between an input and an output; KH·KW where they are too far apart.
        one_hot: (K·N, KH·KW), 1 where `tap` is this tap.
    """

    cost: float
    tile: Pair
    patch: Pair
    border: Pair
    tap: np.ndarray
    one_hot: np.ndarray

    def patches(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """For a few channels after another, which they are, and X: (N, H, W, C) -> (c, tiles, K)."""
        N, H, W, C = x.shape
        (TH, TW), (PH, PW), (BH, BW) = self.tile, self.patch, self.border
        rows, columns = H // TH, W // TW
        step = max(1, SCRATCH // (N * rows * columns * PH * PW))
        padded = np.zeros((min(step, C), N, H + 2 * BH, W + 2 * BW), np.float32)
        for start in range(0, C, step):
            some = slice(start, min(start + step, C))
            inside = padded[: some.stop - start]
            inside[:, :, BH : BH + H, BW : BW + W] = x[..., some].transpose(3, 0, 1, 2)
            c, n, h, w = inside.strides
            view = as_strided(inside, (len(inside), N, rows, columns, PH, PW), (c, n, h * TH, w * TW, h, w))
            yield some, view.reshape(len(inside), N * rows * columns, PH * PW)


@lru_cache(maxsize=256)
def plan_for(N: int, H: int, W: int, kernel: Pair) -> Plan:
    """The cheapest way to cut N images of H x W.

    An output costs K multiply-adds; its share of a row of X, K numbers copied in runs; and its share of T, which is
    made and which BLAS rearranges. The weights are fitted to times of 4 to 32 images of 7 to 56 pixels a side.
    """

    def along(part: int, size: int, k: int) -> Pair:
        """Border and patch along an axis."""
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
    tile = min((tile for tile in product(heights, widths) if prod(tile) <= LARGEST), key=cost)
    border, patch = parts(tile)
    # Input a of a patch and output o of its tile are a - o + k // 2 - border apart along an axis.
    apart = [
        np.arange(inputs)[:, None] - np.arange(outputs) + k // 2 - reach
        for inputs, outputs, k, reach in zip(patch, tile, kernel, border, strict=True)
    ]
    i, j = apart[0][:, None, :, None], apart[1][None, :, None, :]  # (PH, PW, TH, TW)
    near = (i >= 0) & (i < kernel[0]) & (j >= 0) & (j < kernel[1])
    taps = kernel[0] * kernel[1]
    tap = np.where(near, i * kernel[1] + j, taps).reshape(patch[0] * patch[1], tile[0] * tile[1])
    one_hot = (tap.reshape(-1, 1) == np.arange(taps)).astype(np.float32)
    return Plan(cost(tile), tile, patch, border, tap, one_hot)
