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


class LeakyReLU(Function):
    """y = x where x > 0, else s · x, s = `negative_slope`;  ∂x = ∂y where x > 0, else s · ∂y.  Saves the mask x > 0.

    Maas, Hannun, Ng 2013, "Rectifier nonlinearities improve neural network acoustic models".
    """

    def forward(self, x: Array, *, negative_slope: float) -> Array:
        checks.floating(x, "leaky_relu")
        self.positive, self.slope = x > 0, negative_slope
        return array_module(x).where(self.positive, x, x * negative_slope)

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).where(self.positive, grad_output, grad_output * self.slope)


class ELU(Function):
    """y = x where x > 0, else α (eˣ - 1);  ∂x = ∂y where x > 0, else ∂y · α eˣ.  Saves x.

    Clevert, Unterthiner, Hochreiter 2016, arXiv:1511.07289.
    """

    def forward(self, x: Array, *, alpha: float) -> Array:
        checks.floating(x, "elu")
        xp = array_module(x)
        self.x, self.alpha = x, alpha
        return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))

    def backward(self, grad_output: Array) -> Array:
        xp = array_module(grad_output)
        return grad_output * xp.where(self.x <= 0, self.alpha * xp.exp(xp.minimum(self.x, 0)), 1)


class Softplus(Function):
    """y = 1/β · ln(1 + e^βx), and x where βx > `threshold`;  ∂x = ∂y · σ(βx), and ∂y there.  Saves x.

    Dugas et al. 2001, "Incorporating second-order functional knowledge for better option pricing".
    """

    def forward(self, x: Array, *, beta: float, threshold: float) -> Array:
        checks.floating(x, "softplus")
        xp = array_module(x)
        self.x, self.beta, self.threshold = x, beta, threshold
        return xp.where(beta * x > threshold, x, special.softplus(beta * x) / beta)

    def backward(self, grad_output: Array) -> Array:
        z = self.beta * self.x
        return grad_output * array_module(grad_output).where(z > self.threshold, 1, special.sigmoid(z))


class Hardsigmoid(Function):
    """y = min(max(x + 3, 0), 6) / 6;  ∂x = ∂y / 6 where -3 < x < 3, else 0.  Saves the mask -3 < x < 3."""

    def forward(self, x: Array) -> Array:
        checks.floating(x, "hardsigmoid")
        self.inside = (x > -3) & (x < 3)
        return (x + 3).clip(0, 6) / 6

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).where(self.inside, grad_output / 6, 0)


class Hardswish(Function):
    """y = x · min(max(x + 3, 0), 6) / 6;  ∂x = 0 where x ≤ -3, ∂y where x ≥ 3, else ∂y · (x / 3 + ½).  Saves x.

    Howard et al. 2019, arXiv:1905.02244.
    """

    def forward(self, x: Array) -> Array:
        checks.floating(x, "hardswish")
        self.x = x
        return x * (x + 3).clip(0, 6) / 6

    def backward(self, grad_output: Array) -> Array:
        xp, x = array_module(grad_output), self.x
        return grad_output * xp.where(x <= -3, 0, xp.where(x < 3, x / 3 + 0.5, 1))


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
