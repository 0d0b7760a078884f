"""L2: the residual connection, with layer scale and stochastic depth on its branch, and the LayerNorm after it.

    s = x + m · γ ⊙ b,    m = M / (1 - p),  M = 1 with probability 1 - p, else 0, one for each image

He et al. 2015, arXiv:1512.03385; γ, a factor for each channel: Touvron et al. 2021, arXiv:2103.17239; M: Huang et al.
2016, arXiv:1603.09382. One op, because elementwise operations are memory-bound on a GPU: fused, x and b are read once.
"""

from minigrad.autograd.function import Function, run
from minigrad.backend import Array, device_of
from minigrad.backend.random import default_generator
from minigrad.backend.sums import sum_over
from minigrad.ops import checks
from minigrad.ops.norm import LayerNorm


class Residual(Function):
    """s = x + m · γ ⊙ b;  ∂x = ∂s,  ∂b = ∂s · m ⊙ γ,  ∂γ = Σ ∂s · m ⊙ b over all axes but the last.

    Shapes: x, b, s (N, ..., C); γ (C,) or None; m (N, 1, .., 1).  Saves m, γ, and b if ∂γ is wanted.
    """

    def forward(self, x: Array, branch: Array, scale: Array | None, *, p: float) -> Array:
        check(x, branch, scale)
        self.m, self.scale = kept(x, p), scale
        self.branch = branch if scale is not None and self.needs_input_grad[2] else None
        return x + self.scaled(branch)

    def backward(self, grad_output: Array) -> tuple[Array, Array, Array | None]:
        grad_scale = None
        if self.branch is not None:
            grad = grad_output if self.m is None else grad_output * self.m
            grad_scale = sum_over(grad * self.branch, tuple(range(grad.ndim - 1)))
        return grad_output, self.scaled(grad_output), grad_scale

    def scaled(self, b: Array) -> Array:
        """m · γ ⊙ b"""
        b = b if self.scale is None else b * self.scale
        return b if self.m is None else b * self.m


class ResidualLayerNorm(Function):
    """s = x + m · b and y = LayerNorm(s): two outputs.

        ∂s' = ∂s + the gradient of s that LayerNorm computes from ∂y         the total gradient of s
        ∂x = ∂s',   ∂b = m · ∂s',   ∂weight and ∂bias as in LayerNorm

    Shapes: x, b, s, y (N, ..., C); weight, bias (C,).  Saves m, and x̂, r and weight of LayerNorm.
    """

    def forward(
        self, x: Array, branch: Array, weight: Array, bias: Array, *, p: float, eps: float
    ) -> tuple[Array, Array]:
        check(x, branch, weight, bias)
        want_x, want_branch, *want_params = self.needs_input_grad
        self.residual, s = run(Residual, (want_x, want_branch, False), x, branch, None, p=p)
        needs = want_x or want_branch, *want_params
        self.norm, y = run(LayerNorm, needs, s, weight, bias, shape=s.shape[-1:], eps=eps)
        return s, y

    def backward(self, grad_outputs: list[Array | None]) -> tuple[Array | None, ...]:
        grad, grad_y = grad_outputs
        grad_params = None, None
        if grad_y is not None:
            grad_normed, *grad_params = self.norm.backward(grad_y)
            grad = grad_normed if grad is None or grad_normed is None else grad + grad_normed
        grad_x, grad_branch, _ = (None, None, None) if grad is None else self.residual.backward(grad)
        return grad_x, grad_branch, *grad_params


def kept(x: Array, p: float) -> Array | None:
    """m, (N, 1, .., 1) in the dtype of x; None if p is 0."""
    if not p:
        return None
    shape = (len(x),) + (1,) * (x.ndim - 1)
    m = (default_generator().uniform(shape, device=device_of(x), axis=0) >= p).astype(x.dtype)
    m *= 1 / (1 - p) if p < 1 else 0.0
    return m


def check(x: Array, branch: Array, *params: Array | None) -> None:
    """Raise an error unless x and the branch have the same shape (N, ..., C), and parameters the shape (C,)."""
    checks.floating(x, "residual")
    if not x.ndim or x.shape != branch.shape:
        raise ValueError(
            f"residual: x and branch must have the same shape (N, ..., C), got {x.shape} and {branch.shape}"
        )
    for param in params:
        checks.affine(param, x.shape[-1:], "a parameter", "residual")
