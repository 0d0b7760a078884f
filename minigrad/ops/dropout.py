"""L2: dropout."""

from minigrad.autograd.function import Function
from minigrad.backend import Array, device_of
from minigrad.backend.random import default_generator
from minigrad.ops import checks


class Dropout(Function):
    """y = x ⊙ M / (1 - p), M = 1 with probability 1 - p, else 0;  ∂x = ∂y ⊙ M / (1 - p), with the same M.

    So the expected value of y is x. M broadcasts: of shape (N, 1, .., 1) it drops entire images, which is stochastic
    depth (Huang et al. 2016, arXiv:1603.09382).  Saves M as booleans.  Srivastava et al. 2014, JMLR 15.
    """

    def forward(self, x: Array, *, p: float, mask_shape: tuple[int, ...]) -> Array:
        checks.floating(x, "dropout")
        self.mask = default_generator().uniform(mask_shape, device=device_of(x), axis=0) >= p
        self.scale = 1 / (1 - p) if p < 1 else 0.0
        return x * self.mask * self.scale

    def backward(self, grad_output: Array) -> Array:
        return grad_output * self.mask * self.scale
