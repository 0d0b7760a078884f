"""L2: depthwise convolution row by row, for a few large images.

For channels-last images, an output row y[n, h] is a vector of W·C elements, and so is what all its outputs read at tap
(i, j): row h + i of the padded image, from column j on. With these vectors as a view v of the padded image,

    y[n, h] = Σᵢⱼ v[n, h, i, j] ⊙ weight[i, j],   ∂weight[i, j] = Σₙₕ v[n, h, i, j] ⊙ ∂y[n, h],   ∂x as y, flipped

where weight[i, j] (C,) is repeated W times, and ∂weight is summed over W at the end. Each sum is one call of NumPy's
einsum, which keeps rows in the cache: tap by tap, each tap reads all images. `Tiles` (depthwise.py) does more
arithmetic, but in matrix products, and pays off for many images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minigrad.backend import Array
from minigrad.kernels.cpu.chunks import is_finite, row_chunks
from minigrad.ops.conv import Depthwise
from minigrad.ops.windows import Pair, Windows

# The cost model, in the unit of `Plan.cost`: fitted to times for 1 to 8 images of 4 to 56 pixels a side.
MULTIPLY_ADD = 5  # of einsum; 1 in a matrix product
ROW = 3000  # an inner loop of einsum, beyond its elements


@dataclass(frozen=True)
class Rows:
    """Depthwise convolution, stride 1, y as large as x: images (N, H, W, C), weight (C, 1, KH, KW)."""

    windows: Windows

    def correlate(self, x: Array, weight: Array) -> Array:
        N, H, W, C = x.shape
        taps = np.tile(weight[:, 0].transpose(1, 2, 0), W)  # (C, KH, KW) -> (KH, KW, C) -> (KH, KW, W·C)
        y = np.empty((N, H, W * C), np.float32)
        for images, v in self._rows(x):
            np.einsum("nhijx,ijx->nhx", v, taps, out=y[images])
        return y.reshape(x.shape)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        if not is_finite(weight):  # 0 · NaN is NaN: at the border, taps that no output reads would spread it
            return Depthwise(self.windows).grad_x(grad_y, weight, shape)
        return self.correlate(grad_y, weight[:, :, ::-1, ::-1])

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        N, H, W, C = x.shape
        grad_rows, grad_taps = grad_y.reshape(N, H, W * C), np.zeros((*self.windows.kernel, W, C), np.float32)
        for images, v in self._rows(x):
            grad_taps += np.einsum("nhijx,nhx->ijx", v, grad_rows[images]).reshape(grad_taps.shape)
        return grad_taps.sum(axis=2).transpose(2, 0, 1).reshape(shape)  # (KH, KW, C) -> (C, 1, KH, KW)

    def _rows(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """For each slice of n images, yields the slice and v: (n, H, W, C) -> (n, H, KH, KW, W·C)."""
        N, H, W, C = x.shape
        for images in row_chunks(N, prod(self.windows.padded_shape(x.shape)[1:])):
            padded = np.ascontiguousarray(self.windows.pad(x[images]))
            n, h, w, c = padded.strides
            yield images, as_strided(padded, (len(padded), H, *self.windows.kernel, W * C), (n, h, h, w, c))


def rows_cost(kernel: Pair, W: int, C: int) -> float:
    """The estimated cost of an output."""
    return prod(kernel) * (MULTIPLY_ADD + ROW / (W * C))
