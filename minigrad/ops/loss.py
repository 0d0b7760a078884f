"""L2: losses."""

from collections.abc import Sequence
from math import prod

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.sums import sum_over
from minigrad.ops import checks, special
from minigrad.ops.indexing import in_range, positions


class CrossEntropy(Function):
    """lossₙ = -Σ_c Q_nc · ln p_nc,  p = softmax(x) over the classes;  ∂x = ∂lossₙ · (p · Σ_c Q - Q).

    The target distribution q is one-hot for targets that are class indices, else q is the target itself. With label
    smoothing s and class weights w,

        Q_nc = w_c · ((1 - s) · q_nc + s / C)

    Rows whose index is `ignore_index` have Q = 0 and gradient 0, even if all rows are ignored and the mean is NaN. The
    mean is Σ lossₙ divided by Σ w_c, c the target class of each row; for probabilities, by the number of rows.
    Target probabilities have the gradient ∂q_nc = -∂lossₙ · (1 - s) · w_c · ln p_nc, the weights none.

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
        _no_gradient(self.needs_input_grad[2:], "weight", "cross_entropy")
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


class NLLLoss(Function):
    """lossₙ = -w_c · xₙ꜀, c = targetₙ, for log-probabilities x;  ∂xₙ꜀ = -∂lossₙ · w_c for c = targetₙ, else 0.

    The mean is Σ lossₙ / Σ w_c. Rows whose target is `ignore_index` have loss 0, weight 0 and gradient 0.

    Shapes: x (N, C, ...) or (C,); target (N, ...) or () of class indices; weight (C,) or None.
    Saves the positions of the targets in x, and their weights.
    """

    def forward(self, x: Array, target: Array, weight: Array | None, *, ignore_index: int, reduction: str) -> Array:
        checks.floating(x, "nll_loss")
        axis = 0 if x.ndim == 1 else 1
        if not x.ndim or target.shape != x.shape[:axis] + x.shape[axis + 1 :]:
            raise ValueError(
                "nll_loss: the input must be (N, C, ...) or (C,), and the target (N, ...) or () of class indices, "
                f"got {x.shape} and {target.shape}"
            )
        if target.dtype.kind not in "iu":
            raise TypeError(f"nll_loss: the target must hold class indices, integers, got {target.dtype}")
        C, xp = x.shape[axis], array_module(x)
        checks.affine(weight, (C,), "weight", "nll_loss")
        _no_gradient(self.needs_input_grad[2:], "weight", "nll_loss")
        target = xp.expand_dims(target.astype(np.int64, copy=False), axis)  # (N, 1, ...); uint8 cannot hold -100
        self.ignored = target == ignore_index
        target = xp.where(self.ignored, 0, target)
        in_range(target, C, "nll_loss")
        self.axis, self.shape, self.positions = axis, x.shape, positions(target, axis)
        picked = x[self.positions]
        weights = xp.ones_like(picked) if weight is None else weight[target].astype(x.dtype, copy=False)
        self.weights = xp.where(self.ignored, 0, weights)
        losses = (-self.weights * xp.where(self.ignored, 0, picked)).squeeze(axis)
        self.factor = 1.0
        if checks.reduction(reduction, "nll_loss") == "none":
            return losses
        if reduction == "mean":
            total = sum_over(self.weights)
            self.factor = xp.where(total == 0, np.nan, 1 / xp.where(total == 0, 1, total)).astype(x.dtype)
        return sum_over(losses) * self.factor

    def backward(self, grad_output: Array) -> tuple[Array, None, None]:
        xp = array_module(grad_output)
        grad_losses = grad_output * self.factor
        if grad_losses.ndim:
            grad_losses = xp.expand_dims(grad_losses, self.axis)
        grad_x = xp.zeros(self.shape, grad_output.dtype)
        grad_x[self.positions] = xp.where(self.ignored, 0, -grad_losses * self.weights)
        return grad_x, None, None


class _Loss(Function):
    """Base of losses of x and t that are defined elementwise: their shapes, and the reduction."""

    def check(self, x: Array, target: Array, op: str) -> None:
        checks.floating(x, op)
        if x.shape != target.shape:
            raise ValueError(f"{op}: input and target must have the same shape, got {x.shape} and {target.shape}")

    def reduce(self, losses: Array, reduction: str, op: str) -> Array:
        """The losses, their sum or their mean. Saves `factor`, 1 / n for the mean, else 1."""
        self.factor = 1.0
        if checks.reduction(reduction, op) == "none":
            return losses
        if reduction == "mean":
            self.factor = 1 / losses.size if losses.size else float("nan")
        return sum_over(losses) * self.factor


class _DifferenceLoss(_Loss):
    """Base of losses of d = x - t:  ∂x = ∂loss · slope (/ n),  ∂t = -∂x."""

    slope: Array

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        grad_x = grad_output * self.factor * self.slope
        return grad_x, -grad_x if self.needs_input_grad[1] else None


class MSELoss(_DifferenceLoss):
    """lossᵢ = (xᵢ - tᵢ)², or the mean or sum of all n;  ∂x = 2 (x - t) · ∂loss (/ n),  ∂t = -∂x.  Saves x - t."""

    def forward(self, x: Array, target: Array, *, reduction: str) -> Array:
        self.check(x, target, "mse_loss")
        self.slope = x - target
        loss = self.reduce(self.slope * self.slope, reduction, "mse_loss")
        self.factor *= 2
        return loss


class L1Loss(_DifferenceLoss):
    """lossᵢ = |xᵢ - tᵢ|, or the mean or sum of all n;  ∂x = sign(x - t) · ∂loss (/ n),  ∂t = -∂x.  Saves the sign."""

    def forward(self, x: Array, target: Array, *, reduction: str) -> Array:
        self.check(x, target, "l1_loss")
        difference = x - target
        self.slope = array_module(x).sign(difference)
        return self.reduce(abs(difference), reduction, "l1_loss")


class HuberLoss(_DifferenceLoss):
    """lossᵢ = ½ d² / s where |d| < δ, else δ (|d| - ½ δ) / s, for d = xᵢ - tᵢ, or the mean or sum of all n.

        ∂x = min(max(d, -δ), δ) / s · ∂loss (/ n),   ∂t = -∂x

    Both cases are m (|d| - ½ m) / s with m = min(|d|, δ); s is `divisor`, 1 for `huber_loss`.  Saves the slope.
    Huber 1964, "Robust estimation of a location parameter".
    """

    name = "huber_loss"

    def forward(self, x: Array, target: Array, *, delta: float, divisor: float, reduction: str) -> Array:
        self.check(x, target, self.name)
        difference = x - target
        m = abs(difference).clip(0, delta)
        self.slope = difference.clip(-delta, delta) / divisor
        return self.reduce(m * (abs(difference) - 0.5 * m) / divisor, reduction, self.name)


class SmoothL1Loss(HuberLoss):
    """`HuberLoss` with s = δ = β.  Girshick 2015, arXiv:1504.08083."""

    name = "smooth_l1_loss"


class BCEWithLogits(_Loss):
    """lossᵢ = -wᵢ (p tᵢ ln σ(xᵢ) + (1 - tᵢ) ln(1 - σ(xᵢ))), for a logit x and a target probability t.

    With -ln σ(x) = softplus(-x) and -ln(1 - σ(x)) = softplus(x), which are computed without overflow:

        lossᵢ = w (p t softplus(-x) + (1 - t) softplus(x))
        ∂x = ∂loss · w ((1 - t + p t) σ(x) - p t)                                          (/ n for the mean)
        ∂t = ∂loss · w (p softplus(-x) - softplus(x))

    Shapes: x, t alike; the weight w and the weight p of positive targets broadcast to x, or are None for 1. As in
    PyTorch, they have no gradient.  Saves x, t, w, p.
    """

    def forward(
        self, x: Array, target: Array, weight: Array | None, pos_weight: Array | None, *, reduction: str
    ) -> Array:
        op = "binary_cross_entropy_with_logits"
        self.check(x, target, op)
        _no_gradient(self.needs_input_grad[2:], "weight and pos_weight", op)
        self.x, self.t = x, target
        self.w, self.p = 1 if weight is None else weight, 1 if pos_weight is None else pos_weight
        losses = self.p * target * special.softplus(-x) + (1 - target) * special.softplus(x)
        return self.reduce(losses if weight is None else losses * weight, reduction, op)

    def backward(self, grad_output: Array) -> tuple[Array, Array | None, None, None]:
        x, t, w, p = self.x, self.t, self.w, self.p
        grad_losses = grad_output * self.factor * w
        grad_x = grad_losses * ((1 - t + p * t) * special.sigmoid(x) - p * t)
        if not self.needs_input_grad[1]:
            return grad_x, None, None, None
        return grad_x, grad_losses * (p * special.softplus(-x) - special.softplus(x)), None, None


class BCELoss(_Loss):
    """lossᵢ = -wᵢ (tᵢ ln xᵢ + (1 - tᵢ) ln(1 - xᵢ)), for a probability x and a target probability t.

        ∂x = ∂loss · w (x - t) / (x (1 - x)),   ∂t = ∂loss · w (ln(1 - x) - ln x)           (/ n for the mean)

    As in PyTorch, logarithms are at least -100, and x (1 - x) is at least 10⁻¹². Prefer `BCEWithLogits`.
    Shapes: x, t alike; the weight w broadcasts to x, or is None for 1, and has no gradient.  Saves x, t, w.
    """

    def forward(self, x: Array, target: Array, weight: Array | None, *, reduction: str) -> Array:
        op = "binary_cross_entropy"
        self.check(x, target, op)
        _no_gradient(self.needs_input_grad[2:], "weight", op)
        if type(x) is np.ndarray:  # not on a GPU, where reading values synchronizes
            if not ((x >= 0) & (x <= 1)).all():
                raise ValueError(
                    f"{op}: the input must be from 0 to 1; for logits use binary_cross_entropy_with_logits"
                )
            if ((target < 0) | (target > 1)).any():
                raise ValueError(f"{op}: the target must be from 0 to 1; for class indices use cross_entropy")
        self.x, self.t, self.w = x, target, 1 if weight is None else weight
        ln_x, ln_rest = self._logarithms()
        losses = (target - 1) * ln_rest - target * ln_x
        return self.reduce(losses if weight is None else losses * weight, reduction, op)

    def _logarithms(self) -> tuple[Array, Array]:
        """ln x and ln(1 - x), at least -100."""
        xp = array_module(self.x)
        with np.errstate(divide="ignore"):
            return xp.maximum(xp.log(self.x), -100), xp.maximum(xp.log1p(-self.x), -100)

    def backward(self, grad_output: Array) -> tuple[Array, Array | None, None]:
        grad_losses = grad_output * self.factor * self.w
        grad_x = grad_losses * (self.x - self.t) / array_module(self.x).maximum((1 - self.x) * self.x, 1e-12)
        if not self.needs_input_grad[1]:
            return grad_x, None, None
        ln_x, ln_rest = self._logarithms()
        return grad_x, grad_losses * (ln_rest - ln_x), None


class KLDiv(_Loss):
    """lossᵢ = tᵢ (ln tᵢ - xᵢ), 0 where tᵢ = 0, for log-probabilities x and target probabilities t.

        ∂x = -t · ∂loss,   ∂t = (ln t + 1 - x) · ∂loss (0 where t = 0)                        (/ n for the mean)

    With `log_target`, t is ln of the probability:  lossᵢ = eᵗ (t - x);  ∂x = -eᵗ · ∂loss,  ∂t = eᵗ (t + 1 - x) · ∂loss.
    Reduction "batchmean" divides the sum by the size of axis 0.  Saves x, the probabilities and their ln.
    """

    def forward(self, x: Array, target: Array, *, reduction: str, log_target: bool) -> Array:
        self.check(x, target, "kl_div")
        self.x, self.log_target = x, log_target
        self.q, self.ln_q = self._target(target)
        losses = self.q * (self.ln_q - x)
        if reduction != "batchmean":
            return self.reduce(losses, reduction, "kl_div")
        self.factor = 1 / (x.shape[0] or float("nan")) if x.ndim else 1.0
        return sum_over(losses) * self.factor

    def _target(self, target: Array) -> tuple[Array, Array]:
        """The target probabilities q and ln q (0 where q = 0)."""
        xp = array_module(target)
        if self.log_target:
            return xp.exp(target), target
        return target, xp.log(xp.where(target == 0, 1, target))

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        grad_losses = grad_output * self.factor
        grad_x = -grad_losses * self.q
        if not self.needs_input_grad[1]:
            return grad_x, None
        slope = self.ln_q + 1 - self.x
        slope = self.q * slope if self.log_target else array_module(self.q).where(self.q == 0, 0, slope)
        return grad_x, grad_losses * slope


def _no_gradient(wanted: Sequence[bool], names: str, op: str) -> None:
    if any(wanted):
        raise RuntimeError(f"{op}: no gradient is computed for {names}; pass {names} without requires_grad")
