"""L2: activations, chunk by chunk."""

from functools import lru_cache

import numpy as np

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.chunks import chunks, is_finite, is_float32
from minigrad.ops import activation, special


@fast_path_of(activation.ReLU)
class CPUReLU(activation.ReLU):
    """∂x = ∂y & mask, a bit mask of zeros where y ≤ 0, else 32 ones: the mask avoids branch mispredictions."""

    supports = staticmethod(is_float32)

    def backward(self, grad_output: Array) -> Array:
        if not is_float32(grad_output):
            return super().backward(grad_output)
        grad_x = np.empty_like(self.y)
        if grad_output.strides != self.y.strides:
            grad_x[...] = grad_output
            grad_output = grad_x
        for y, grad_y, grad_x_chunk in chunks(self.y, grad_output, grad_x):
            mask = (y <= 0).astype(np.int32)
            mask -= 1  # 0 -> 0xffffffff, 1 -> 0
            np.bitwise_and(mask, grad_y.view(np.int32), out=grad_x_chunk.view(np.int32))
        return grad_x


@fast_path_of(activation.GELU)
class CPUGELU(activation.GELU):
    """y = x Φ(x) and its slope Φ(x) + x φ(x), from tables of Φ and φ at values c with 10 fraction bits:

        Φ(x) ≈ Φ(c) + φ(c) (x - c),   φ(x) ≈ φ(c) - c φ(c) (x - c),   c nearest to x

    Since |x - c| ≤ 2⁻¹¹ |x|, the error of Φ is at most 1e-7, the error of the slope 3e-7. The table index is the
    upper 19 bits of x, rounded.
    """

    supports = staticmethod(is_float32)

    def forward(self, x: Array) -> Array:
        y = np.empty_like(x)
        self.slope = np.empty_like(x) if any(self.needs_input_grad) else None
        for x_i, y_i, slope in chunks(x, y, self.slope):
            gelu_chunk(x_i, y_i, slope)
        return y


def gelu_(x: Array) -> None:
    """GELU in place, of a contiguous array."""
    for (x_i,) in chunks(x):
        gelu_chunk(x_i, x_i, None)


def gelu_chunk(x: Array, y: Array, slope: Array | None) -> None:
    """Write GELU of x into y, which may be x, and the slope into `slope`."""
    if not is_finite(x):  # rounding to c may give infinity or NaN
        y[...] = _reference(x, slope)
        return
    table_cdf, table_density = _normal_tables()
    bits = x.view(np.uint32) + _HALF
    bits >>= _DROPPED
    index = bits.astype(np.intp)
    bits <<= _DROPPED
    c = bits.view(np.float32)
    cdf = np.take(table_cdf, index, mode="wrap")
    density = np.take(table_density, index, mode="wrap")
    rise = np.subtract(x, c, out=c if slope is None else None)
    rise *= density  # φ(c) (x - c)
    cdf += rise
    if slope is not None:
        np.multiply(c, rise, out=slope)
        np.subtract(density, slope, out=slope)  # φ(x)
        slope *= x
        slope += cdf
    np.multiply(x, cdf, out=y)


def _reference(x: Array, slope: Array | None) -> Array:
    """y by the reference implementation, with the slope written into `slope`."""
    op = activation.GELU()
    op.needs_input_grad = (slope is not None,)
    y = op.forward(x)
    if slope is not None:
        slope[...] = op.slope
    return y


_DROPPED = np.uint32(13)  # of the 23 fraction bits of float32
_HALF = np.uint32(1 << 12)  # half a unit of the last bit kept, to round to nearest


@lru_cache(maxsize=1)
def _normal_tables() -> tuple[np.ndarray, np.ndarray]:
    """Φ and φ at all 2¹⁹ values c: 2 MiB each; only the elements in use fill the cache."""
    c = (np.arange(1 << 19, dtype=np.uint32) << _DROPPED).view(np.float32)
    c = np.where(np.isfinite(c), c, 0).astype(np.float64).clip(-50, 50)  # at ±50, φ is 0
    density = np.exp(-0.5 * c * c) * (2 * np.pi) ** -0.5
    return special.normal_cdf(c).astype(np.float32), density.astype(np.float32)
