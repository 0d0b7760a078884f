"""L2: dropout."""

from minigrad.autograd.function import Function
from minigrad.backend import Array, device_of
from minigrad.backend.random import default_generator
from minigrad.ops import checks


class Dropout(Function):
    """y = x ⊙ M / (1 - p), M = 1 with probability 1 - p, else 0;  ∂x = ∂y ⊙ M / (1 - p), with the same M.

    So y's mean is x. M may have size-1 axes: drawn in the shape (N, 1, .., 1) it drops whole images, which is
    stochastic depth (Huang et al. 2016, arXiv:1603.09382).  Saves M as booleans.  Srivastava et al. 2014, JMLR 15.
    """

    def forward(self, x: Array, *, p: float, mask_shape: tuple[int, ...]) -> Array:
        checks.floating(x, "dropout")
        self.kept = default_generator().uniform(mask_shape, device=device_of(x)) >= p
        self.scale = 1 / (1 - p) if p < 1 else 0.0
        return x * self.kept * self.scale

    def backward(self, grad_output: Array) -> Array:
        return grad_output * self.kept * self.scale
