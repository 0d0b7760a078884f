"""L2: 3 x 3 convolution with fewer multiplications.  Winograd 1980, "Arithmetic complexity of computations"; for
convolutional networks: Lavin and Gray 2015, arXiv:1509.09308.

Two outputs of a filter with three taps need four products instead of six,

    y₀ = d₀ g₀ + d₁ g₁ + d₂ g₂ = m₀ + m₁ + m₂        m₀ = (d₀ - d₂) g₀        m₁ = (d₁ + d₂) (g₀ + g₁ + g₂) / 2
    y₁ = d₁ g₀ + d₂ g₁ + d₃ g₂ = m₁ - m₂ - m₃        m₃ = (d₁ - d₃) g₂        m₂ = (d₂ - d₁) (g₀ - g₁ + g₂) / 2

or y = Aᵀ (G g ⊙ Bᵀ d) with matrices. Along both axes of an image this gives a tile of 2 x 2 outputs from a patch d of
4 x 4 pixels with 16 products instead of 36:

    Y = Aᵀ (U ⊙ V) A,   U = G g Gᵀ,   V = Bᵀ d B

With channels, each of the 16 products is a matrix product M = V U, (tiles, C) times (C, O). Each step is linear, so

    ∂U = Vᵀ ∂M,   ∂M = A ∂Y Aᵀ,   ∂g = Gᵀ ∂U G,   and ∂x is the convolution of ∂y with the weight flipped on both axes

Pixels of a patch outside the window of an output cancel in the output, unless they are NaN or infinite. So blocks of
images in which Y is not finite are computed again, by `Columns`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minigrad.backend import Array, products
from minigrad.kernels.cpu.chunks import is_finite
from minigrad.ops.conv import Columns
from minigrad.ops.windows import Pair, Windows

SCRATCH = 1 << 19  # elements of V or M computed at once: 2 MiB

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
G_BOTH = np.kron(G, G)  # (16, 9): along both axes, G g Gᵀ = G_BOTH · g


@dataclass(frozen=True)
class Winograd:
    """Winograd convolution for a 3 x 3 kernel and stride 1: images (N, H, W, C), weight (O, C, 3, 3)."""

    windows: Windows

    def correlate(self, x: Array, weight: Array) -> Array:
        recompute = lambda images: Columns(self.windows, 1).correlate(x[images], weight)  # noqa: E731
        return _correlate(x, weight, self.windows.before, self.windows.out, recompute)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        flipped = weight[:, :, ::-1, ::-1].swapaxes(0, 1)  # (O, C, 3, 3) -> (C, O, 3, 3)
        above, left = self.windows.before

        def recompute(images: slice) -> Array:
            g = grad_y[images]
            return Columns(self.windows, 1).grad_x(g, weight, (len(g), *shape[1:]))

        return _correlate(grad_y, flipped, (2 - above, 2 - left), (shape[1], shape[2]), recompute)

    @np.errstate(over="ignore", invalid="ignore")
    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        O, C = shape[:2]  # noqa: E741 (the output channels' axis)
        tiles = _tiles(self.windows.out)
        grad_U = np.zeros((16, C, O), np.float32)
        for images in _blocks(len(x), tiles, max(C, O)):
            grad_tiles = _in_pairs(grad_y[images], (0, 0), tiles)
            V = _data(x[images], self.windows.before, tiles)
            grad_M = np.empty((4, 4, *grad_tiles.shape[2:]), np.float32)
            rows = np.empty((4, *grad_tiles.shape[1:]), np.float32)
            _times_A(grad_tiles, rows)
            _times_A(rows.swapaxes(0, 1), grad_M)
            grad_U += products.accurate_matmul(V.swapaxes(1, 2), grad_M.reshape(16, -1, O))
        if not is_finite(grad_U):
            return Columns(self.windows, 1).grad_weight(grad_y, x, shape)
        grad_g = G_BOTH.T @ grad_U.reshape(16, C * O)
        return grad_g.reshape(3, 3, C, O).transpose(3, 2, 1, 0)  # columns come first, as in U: (l, k, c, o)


@np.errstate(over="ignore", invalid="ignore")
def _correlate(x: Array, weight: Array, before: Pair, out: Pair, recompute: Callable[[slice], Array]) -> Array:
    """Convolve x (N, H, W, C), with `before` pixels of zeros above and to the left, to (N, *out, O).

    `recompute` computes blocks of images in which y is not finite.
    """
    O, C = weight.shape[:2]  # noqa: E741
    TH, TW = tiles = _tiles(out)
    U = (G_BOTH @ weight.transpose(3, 2, 1, 0).reshape(9, C * O)).reshape(16, C, O)
    y = np.empty((len(x), TH, 2, TW, 2, O), np.float32)
    output = y.reshape(len(x), 2 * TH, 2 * TW, O)[:, : out[0], : out[1]]
    for images in _blocks(len(x), tiles, max(C, O)):
        M = products.matmul(_data(x[images], before, tiles), U).reshape(4, 4, -1, TH, TW, O)
        columns = np.empty((2, *M.shape[1:]), np.float32)
        _times_A_transposed(M, columns)
        _times_A_transposed(columns.swapaxes(0, 1), y[images].transpose(2, 4, 0, 1, 3, 5))
        if not is_finite(y[images]):
            output[images] = recompute(images)
    return output


def _data(x: Array, before: Pair, tiles: Pair) -> Array:
    """V = Bᵀ d B of the patches of images: (n, H, W, C) -> (16, n·TH·TW, C), with TH x TW tiles an image."""
    pixels = _in_pairs(x, before, (tiles[0] + 1, tiles[1] + 1))  # row 2t + i and column 2u + j at [i, j, :, t, u]
    _, _, n, rows, columns, C = pixels.shape
    R = np.empty((4, 2, n, rows - 1, columns, C), np.float32)
    V = np.empty((4, 4, n, rows - 1, columns - 1, C), np.float32)
    _times_B_transposed(pixels[:, :, :, :-1], pixels[:, :, :, 1:], R)
    R = R.swapaxes(0, 1)  # (2, 4, ...): now the columns, which come first in V
    _times_B_transposed(R[:, :, :, :, :-1], R[:, :, :, :, 1:], V)
    return V.reshape(16, -1, C)


def _in_pairs(x: Array, before: Pair, pairs: Pair) -> Array:
    """x, padded with zeros if needed, as pairs of rows and columns: (n, H, W, C) -> (2, 2, n, *pairs, C)."""
    n, H, W, C = x.shape
    above, left = before
    if 2 * pairs[0] != H or 2 * pairs[1] != W:
        padded = np.zeros((n, 2 * pairs[0], 2 * pairs[1], C), np.float32)
        inside = padded[:, above : above + H, left : left + W]
        inside[...] = x[:, : inside.shape[1], : inside.shape[2]]
        x = padded
    return x.reshape(n, pairs[0], 2, pairs[1], 2, C).transpose(2, 4, 0, 1, 3, 5)


def _times_B_transposed(d01: Array, d23: Array, v: Array) -> None:  # noqa: N802
    """v = Bᵀ d along the first axis, for d₀ and d₁ in `d01`, d₂ and d₃ in `d23`."""
    (d0, d1), (d2, d3) = d01, d23
    np.subtract(d0, d2, out=v[0])
    np.add(d1, d2, out=v[1])
    np.subtract(d2, d1, out=v[2])
    np.subtract(d1, d3, out=v[3])


def _times_A_transposed(m: Array, y: Array) -> None:  # noqa: N802
    """y = Aᵀ m along the first axis."""
    total = m[1] + m[2]
    np.add(total, m[0], out=y[0])
    np.subtract(m[1], m[2], out=total)
    np.subtract(total, m[3], out=y[1])


def _times_A(grad_y: Array, grad_m: Array) -> None:  # noqa: N802
    """∂m = A ∂y along the first axis."""
    grad_m[0] = grad_y[0]
    np.add(grad_y[0], grad_y[1], out=grad_m[1])
    np.subtract(grad_y[0], grad_y[1], out=grad_m[2])
    np.negative(grad_y[1], out=grad_m[3])


def _tiles(out: Pair) -> Pair:
    return (out[0] + 1) // 2, (out[1] + 1) // 2


def _blocks(N: int, tiles: Pair, channels: int) -> Iterator[slice]:
    step = max(1, SCRATCH // (16 * tiles[0] * tiles[1] * channels))
    return (slice(start, start + step) for start in range(0, N, step))
