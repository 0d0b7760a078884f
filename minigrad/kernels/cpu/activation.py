"""L2: activations, in pieces."""

from functools import lru_cache

import numpy as np

from minigrad import special
from minigrad.backend import Array
from minigrad.kernels.cpu.pieces import is_float32, ones, pieces
from minigrad.kernels.twins import twin_of
from minigrad.ops import activation


@twin_of(activation.ReLU)
class ReLU(activation.ReLU):
    """∂x = ∂y & mask, with a mask of 32 ones where y > 0: branches that follow the signs would be guessed wrong."""

    takes = staticmethod(is_float32)

    def backward(self, grad_output: Array) -> Array:
        if not is_float32(grad_output):
            return super().backward(grad_output)
        mask = (self.y > 0).astype(np.int32)
        np.negative(mask, out=mask)  # 1 -> 0xffffffff
        mask &= grad_output.view(np.int32)
        return mask.view(np.float32)


@twin_of(activation.GELU)
class GELU(activation.GELU):
    """y = x Φ(x) and its slope, from tables for the nearest number c with 10 bits of fraction, and Taylor from there:

        y ≈ f(c) + f'(c) (x - c),   slope ≈ f'(c) + f''(c) (x - c),   f = c Φ(c), f' = Φ + c φ, f'' = φ (2 - c²)

    As |x - c| ≤ 2⁻¹¹ |x|, y is within 1.6e-7 of its value, or of |x| times that where it is larger than 1, and the
    slope within 3e-7. The upper 19 bits of x, rounded, are the index.
    """

    takes = staticmethod(is_float32)

    def forward(self, x: Array) -> Array:
        f, df, ddf = _gelu_tables()
        y = np.empty_like(x)
        slope = np.empty_like(x) if any(self.needs_input_grad) else None
        for x_i, y_i, slope_i in pieces(x, y, slope):
            if not np.isfinite(ones(len(x_i)) @ x_i):  # x - c would not be a number
                y_i[...] = super().forward(x_i)
                if slope_i is not None:
                    slope_i[...] = self.slope
                continue
            bits = x_i.view(np.uint32) + _HALF
            bits >>= _DROPPED
            index = bits.astype(np.intp)
            bits <<= _DROPPED
            rest = x_i - bits.view(np.float32)
            first = np.take(df, index, mode="wrap")
            np.take(f, index, out=y_i, mode="wrap")
            if slope_i is not None:
                np.take(ddf, index, out=slope_i, mode="wrap")
                slope_i *= rest
                slope_i += first
            first *= rest
            y_i += first
        self.slope = slope
        return y


_DROPPED = np.uint32(13)  # of the 23 bits of a fraction
_HALF = np.uint32(1 << 12)


@lru_cache(maxsize=1)
def _gelu_tables() -> tuple[np.ndarray, ...]:
    """f, f' and f'' for all 2¹⁹ numbers of 19 bits: 2 MiB each, of which the cache sees what is used."""
    c = (np.arange(1 << 19, dtype=np.uint32) << _DROPPED).view(np.float32)
    c = np.where(np.isfinite(c), c, 0).astype(np.float64)
    near = c.clip(-50, 50)  # where φ has long been 0
    cdf, density = special.normal_cdf(near), np.exp(-0.5 * near * near) * (2 * np.pi) ** -0.5
    return tuple(table.astype(np.float32) for table in (c * cdf, cdf + near * density, density * (2 - near * near)))
