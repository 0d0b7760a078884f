"""L2: losses."""

from math import prod

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.sums import sum_over
from minigrad.ops import checks


class CrossEntropy(Function):
    """lossₙ = -Σ_c Q_nc · ln p_nc,  p = softmax(x) over the classes;  ∂x = ∂lossₙ · (p · Σ_c Q - Q).

    The target distribution q is one-hot for targets that are class indices, else q is the target itself. With label
    smoothing s and class weights w,

        Q_nc = w_c · ((1 - s) · q_nc + s / C)

    Rows whose index is `ignore_index` have Q = 0 and gradient 0, even if all rows are ignored and the mean is NaN. The
    mean is Σ lossₙ divided by Σ w_c, c the target class of each row; for probabilities, by the number of rows.
    Target probabilities have the gradient ∂q_nc = -∂lossₙ · (1 - s) · w_c · ln p_nc.

    Shapes: x (N, C, ...) or (C,); target (N, ...) of class indices, or probabilities like x; w (C,).
    Saves ln p, Q, s, w, and which rows are ignored.  Smoothing: Szegedy et al. 2015, arXiv:1512.00567.
    """

    def forward(
        self, x: Array, target: Array, weight: Array | None, *,
        ignore_index: int, reduction: str, label_smoothing: float,
    ) -> Array:  # fmt: skip
        checks.floating(x, "cross_entropy")
        self.axis = 0 if x.ndim == 1 else 1
        if not x.ndim or not x.shape[self.axis]:
            raise ValueError(f"cross_entropy: the input must be (N, C, ...) or (C,), C at least 1, got {x.shape}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"cross_entropy: label_smoothing must be from 0 to 1, got {label_smoothing}")
        C = x.shape[self.axis]
        checks.affine(weight, (C,), "weight", "cross_entropy")
        xp = array_module(x)
        per_class = [C if a == self.axis else 1 for a in range(x.ndim)]
        self.class_weight = xp.ones(per_class, x.dtype) if weight is None else weight.reshape(per_class)
        self.confidence = 1 - label_smoothing

        indices = target.dtype.kind in "iu"
        target = target.astype(np.int64, copy=False) if indices else target  # uint8 cannot hold -100 or -1
        q = self._one_hot(x, target, ignore_index) if indices else target.astype(x.dtype, copy=False)
        if q.shape != x.shape:
            raise ValueError(f"cross_entropy: probabilities must have the shape of the input {x.shape}, got {q.shape}")
        self.Q = self.class_weight * (self.confidence * q + label_smoothing / C)
        self.ignored = xp.expand_dims(target == ignore_index, self.axis) if indices else None
        if self.ignored is not None:
            self.Q *= ~self.ignored

        centred = x - x.max(axis=self.axis, keepdims=True) if x.size else x
        self.log_p = centred - xp.log(sum_over(xp.exp(centred), self.axis, keepdims=True))
        with np.errstate(invalid="ignore"):  # 0 · -∞, where p = 0 for a class that is not the target
            loss = -sum_over(xp.where(self.Q == 0, 0, self.Q * self.log_p), self.axis)

        self.mean_factor = 1.0
        if reduction == "mean":
            total = sum_over(self.class_weight * q) if indices else xp.full((), prod(x.shape) // C, x.dtype)
            self.mean_factor = xp.where(total == 0, np.nan, 1 / xp.where(total == 0, 1, total)).astype(x.dtype)
            return sum_over(loss) * self.mean_factor
        return sum_over(loss) if checks.reduction(reduction, "cross_entropy") == "sum" else loss

    def backward(self, grad_output: Array) -> tuple[Array, Array | None, None]:
        xp = array_module(self.log_p)
        grad_loss = grad_output * self.mean_factor
        if grad_loss.ndim:
            grad_loss = xp.expand_dims(grad_loss, self.axis)
        if self.ignored is not None:
            grad_loss = xp.where(self.ignored, 0, grad_loss)
        grad_x = grad_loss * (xp.exp(self.log_p) * sum_over(self.Q, self.axis, keepdims=True) - self.Q)
        grad_q = -grad_loss * self.confidence * self.class_weight * self.log_p if self.needs_input_grad[1] else None
        return grad_x, grad_q, None

    def _one_hot(self, x: Array, target: Array, ignore_index: int) -> Array:
        """(N, ...) -> (N, C, ...): 1 at the class of each target, else 0; all 0 for targets that are `ignore_index`."""
        if target.shape != x.shape[: self.axis] + x.shape[self.axis + 1 :]:
            raise ValueError(
                f"cross_entropy: class indices must have the input's shape without its class axis {self.axis}: "
                f"input {x.shape}, target {target.shape}"
            )
        C, xp = x.shape[self.axis], array_module(x)
        if isinstance(target, np.ndarray):  # not on a GPU, where reading values synchronizes
            used = target[target != ignore_index]
            if used.size and not 0 <= used.min() <= used.max() < C:
                raise IndexError(
                    f"cross_entropy: class indices must be from 0 to {C - 1} (or ignore_index = {ignore_index}), "
                    f"got indices from {used.min()} to {used.max()}"
                )
        classes = xp.arange(C).reshape([C if a == self.axis else 1 for a in range(x.ndim)])
        target = xp.where(target == ignore_index, -1, target)  # -1 is no class
        return (xp.expand_dims(target, self.axis) == classes).astype(x.dtype)


class MSELoss(Function):
    """lossᵢ = (xᵢ - tᵢ)², or the mean or sum of all n;  ∂x = 2 (x - t) · ∂loss (/ n),  ∂t = -∂x.  Saves x - t."""

    def forward(self, x: Array, target: Array, *, reduction: str) -> Array:
        checks.floating(x, "mse_loss")
        if x.shape != target.shape:
            raise ValueError(f"mse_loss: input and target must have the same shape, got {x.shape} and {target.shape}")
        self.difference = x - target
        squares = self.difference * self.difference
        self.mean_factor = 1.0
        if checks.reduction(reduction, "mse_loss") == "none":
            return squares
        if reduction == "mean":
            self.mean_factor = 1 / x.size if x.size else float("nan")
        return sum_over(squares) * self.mean_factor

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        grad_x = grad_output * (2 * self.mean_factor) * self.difference
        return grad_x, -grad_x if self.needs_input_grad[1] else None
