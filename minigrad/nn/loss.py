"""L5: losses as modules; the functions of the same names, in `minigrad.functional`, have the formulas.

Options are keyword arguments: PyTorch's deprecated size_average and reduce do not exist here.
"""

from typing import Any

from minigrad import functional as F
from minigrad.functional import Reduction
from minigrad.nn.module import Module
from minigrad.tensor import Tensor


class _Loss(Module):
    """A loss with a reduction: "mean", "sum" or "none"."""

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        self.reduction = reduction


class _WeightedLoss(_Loss):
    """A loss with a weight, a buffer: as in PyTorch, part of the state_dict."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.register_buffer("weight", weight)


class CrossEntropyLoss(_WeightedLoss):
    """-Σ_c weight_c · q_c · ln softmax(x)_c, for logits x and target probabilities or class indices."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction=reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
        return F.cross_entropy(input, target, self.weight, reduction=self.reduction, **options)


class MSELoss(_Loss):
    """(x - t)²"""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)
