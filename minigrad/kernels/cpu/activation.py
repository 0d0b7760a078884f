"""L2: activations, in pieces."""

import numpy as np

from minigrad.backend import Array
from minigrad.kernels.cpu.pieces import is_float32, pieces
from minigrad.kernels.twins import twin_of
from minigrad.ops import activation

# tanh⁻¹(erf(x / √2)) / x as a polynomial in x², for |x| ≤ 5.5: least squares with weights moved until the error of
# x · Φ(x) was level (Lawson 1961), in float64. Its leading coefficient is positive, so that tanh ends at ±1.
_GELU = (
    0.7978844926779398, 0.036333911308627696, -3.295473988120738e-05, -5.527794704865048e-05, 3.973113900099137e-06,
    -1.3364691026041954e-07, 1.8093642345599337e-09,
)  # fmt: skip


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
    """Φ(x) = ½ (1 + tanh(x · P(x²))), P a polynomial: y within 6e-7 of its value, and the slope within 3e-7.

    Values on the far left, below 1e-4 in size, keep fewer digits than the specification's, as they do in PyTorch.
    """

    takes = staticmethod(is_float32)

    def forward(self, x: Array) -> Array:
        y = np.empty_like(x)
        slope = np.empty_like(x) if any(self.needs_input_grad) else None
        for x_i, y_i, slope_i in pieces(x, y, slope):
            square = x_i * x_i
            cdf = square * _GELU[-1]
            for coefficient in _GELU[-2:0:-1]:
                cdf += coefficient
                cdf *= square
            cdf += _GELU[0]
            cdf *= x_i
            np.tanh(cdf, out=cdf)
            cdf *= 0.5
            cdf += 0.5
            np.multiply(x_i, cdf, out=y_i)
            if slope_i is not None:  # Φ + x φ
                square *= -0.5
                np.exp(square, out=square)
                square *= (2 * np.pi) ** -0.5
                square *= x_i
                np.add(cdf, square, out=slope_i)
        self.slope = slope
        return y
