"""L2: activations, chunk by chunk."""

import numpy as np

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.chunks import ELEMENTWISE, chunks, is_float32
from minigrad.ops import activation

ZEROS = np.zeros(ELEMENTWISE, np.float32)


@fast_path_of(activation.ReLU)
class CPUReLU(activation.ReLU):
    """y = max(x, zeros): NumPy compares two arrays faster than an array and a scalar.

    ∂x = ∂y & mask, a bit mask of zeros where y ≤ 0, else 32 ones: the mask avoids branch mispredictions.
    """

    supports = staticmethod(is_float32)

    def forward(self, x: Array) -> Array:
        self.y = np.empty_like(x)
        for x_i, y_i in chunks(x, self.y):
            np.maximum(x_i, ZEROS[: x_i.size], out=y_i)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        if not is_float32(grad_output):
            return super().backward(grad_output)
        grad_x = np.empty_like(self.y)
        if grad_output.strides != self.y.strides:
            grad_x[...] = grad_output
            grad_output = grad_x
        for y, grad_y, grad_x_chunk in chunks(self.y, grad_output, grad_x):
            relu_backward(y, grad_y, grad_x_chunk)
        return grad_x


def relu_(x: Array) -> None:
    """ReLU in place, of a contiguous array."""
    for (x_i,) in chunks(x):
        np.maximum(x_i, ZEROS[: x_i.size], out=x_i)


def relu_backward(y: Array, grad_y: Array, grad_x: Array) -> None:
    """Write ∂x of the ReLU y into grad_x, which may be grad_y."""
    mask = (y <= 0).astype(np.int32)
    mask -= 1  # 0 -> 0xffffffff, 1 -> 0
    np.bitwise_and(mask, grad_y.view(np.int32), out=grad_x.view(np.int32))


@fast_path_of(activation.GELU)
class CPUGELU(activation.GELU):
    """y = x Φ(x) and its slope Φ(x) + x φ(x), with an approximation of the logit of Φ by a rational function:

        Φ(x) = 1 / (1 + exp(-x P(x²))),   P(u) ≈ (u + a) (b + c / ((u + d)² + e))

    ln(Φ(x) / Φ(-x)) = x P(x²) is an odd function. A rational P needs fewer passes over the chunk than a polynomial of
    the same accuracy, and in NumPy a division takes as long as a product. The coefficients are those of the minimax
    approximation of Φ: the error has six extrema for x > 0, with alternating signs and the same absolute value 7.1e-8,
    one more than there are coefficients (Remez's algorithm). With the rounding errors of float32, the error of Φ is at
    most 2e-7, of the slope 3e-7.
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


LOGIT = 61.966961975, 0.0372047992755, -3.5706796564, 10.305553119, 205.567033058  # a, b, c, d, e


@np.errstate(over="ignore")  # exp(∞) is ∞, and 1 / ∞ is 0
def gelu_chunk(x: Array, y: Array, slope: Array | None) -> None:
    """Write GELU of x into y, which may be x, and the slope into `slope`."""
    a, b, c, d, e = LOGIT
    u = np.square(x)
    if slope is not None:
        np.multiply(u, -0.5, out=slope)
    z = u + d
    np.square(z, out=z)
    z += e
    np.divide(-c, z, out=z)
    z -= b
    u += a
    z *= u  # -P(x²)
    z *= x
    np.exp(z, out=z)
    z += 1
    if slope is None:
        np.divide(x, z, out=y)
        return
    cdf = np.divide(1, z, out=z)
    np.exp(slope, out=slope)
    slope *= (2 * np.pi) ** -0.5  # φ(x)
    slope *= x
    slope += cdf
    np.multiply(x, cdf, out=y)
