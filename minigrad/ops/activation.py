"""L2: activations and the softmax family."""

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.sums import sum_over
from minigrad.ops import checks, special


class ReLU(Function):
    """y = max(x, 0);  ∂x = 0 where x ≤ 0, else ∂y (also where x is NaN).  Saves y, as y ≤ 0 exactly where x ≤ 0."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).maximum(x, 0)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).where(self.y <= 0, 0, grad_output)


class GELU(Function):
    """y = x · Φ(x);  ∂x = ∂y · (Φ(x) + x · φ(x)), Φ and φ the standard normal distribution function and density.

        Φ(x) = ½ (1 + erf(x / √2)),   φ(x) = exp(-x² / 2) / √(2π)

    Hendrycks and Gimpel 2016, arXiv:1606.08415.  Saves the slope Φ(x) + x φ(x), which has the shape of x, so that
    backward does not compute erf again.
    """

    def forward(self, x: Array) -> Array:
        checks.floating(x, "gelu")
        cdf = special.normal_cdf(x)
        if any(self.needs_input_grad):
            with np.errstate(over="ignore"):  # if x² overflows to ∞, exp(-∞) is 0
                self.slope = cdf + x * array_module(x).exp(-0.5 * x * x) * (2 * np.pi) ** -0.5
        return x * cdf

    def backward(self, grad_output: Array) -> Array:
        return grad_output * self.slope


class GELUTanh(Function):
    """y = ½ x (1 + tanh u) = x · s,   s = σ(2u),   u = √(2/π) (x + 0.044715 x³): within 5e-4 of the exact GELU.

        ∂x = ∂y · (s + x · s (1 - s) · 2u'),   u' = √(2/π) (1 + 3 · 0.044715 x²)

    ½ (1 + tanh u) is computed as σ(2u), since 1 + tanh u cancels for negative x, where tanh u is near -1.

    Hendrycks and Gimpel 2016, arXiv:1606.08415.  Saves the slope s + x · s (1 - s) · 2u'.
    """

    def forward(self, x: Array) -> Array:
        checks.floating(x, "gelu")
        scale, cubic = (2 / np.pi) ** 0.5, 0.044715
        s = special.sigmoid(2 * scale * (x + cubic * x * x * x))
        if any(self.needs_input_grad):
            self.slope = s + x * s * (1 - s) * (2 * scale * (1 + 3 * cubic * x * x))
        return x * s

    def backward(self, grad_output: Array) -> Array:
        return grad_output * self.slope


class SiLU(Function):
    """y = x · s, s = σ(x);  ∂x = ∂y · s (1 + x (1 - s)).  Saves x and s.  Elfwing et al. 2017, arXiv:1702.03118."""

    def forward(self, x: Array) -> Array:
        checks.floating(x, "silu")
        self.x, self.s = x, special.sigmoid(x)
        return x * self.s

    def backward(self, grad_output: Array) -> Array:
        return grad_output * (self.s * (1 + self.x * (1 - self.s)))


class Softmax(Function):
    """yᵢ = exp(xᵢ - m) / Σⱼ exp(xⱼ - m), m = max x to avoid overflow;  ∂x = y ⊙ (∂y - ⟨∂y, y⟩).

    ⟨∂y, y⟩ is the sum of ∂y ⊙ y over `axis`.  Saves y.
    """

    def forward(self, x: Array, *, axis: int) -> Array:
        checks.floating(x, "softmax")
        self.axis = checks.one_axis(axis, x.ndim, "softmax") if x.ndim else None
        xp = array_module(x)
        self.y = xp.exp(x - x.max(axis=self.axis, keepdims=True)) if x.size else x.copy()
        self.y /= sum_over(self.y, self.axis, keepdims=True)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        along_y = sum_over(grad_output * self.y, self.axis, keepdims=True)
        return self.y * (grad_output - along_y)


class LogSoftmax(Function):
    """yᵢ = xᵢ - m - ln Σⱼ exp(xⱼ - m), m = max x;  ∂x = ∂y - exp(y) · Σⱼ ∂yⱼ.  Saves y."""

    def forward(self, x: Array, *, axis: int) -> Array:
        checks.floating(x, "log_softmax")
        self.axis = checks.one_axis(axis, x.ndim, "log_softmax") if x.ndim else None
        xp = array_module(x)
        if not x.size:
            self.y = x.copy()
            return self.y
        centred = x - x.max(axis=self.axis, keepdims=True)
        self.y = centred - xp.log(sum_over(xp.exp(centred), self.axis, keepdims=True))
        return self.y

    def backward(self, grad_output: Array) -> Array:
        total = sum_over(grad_output, self.axis, keepdims=True)
        return grad_output - array_module(grad_output).exp(self.y) * total
