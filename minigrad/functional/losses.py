"""L4: losses."""

from minigrad._tensor import Tensor
from minigrad.functional.arguments import Reduction
from minigrad.ops import checks
from minigrad.ops.loss import CrossEntropy, MSELoss


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """lossₙ = -Σ_c weight_c · q_nc · ln softmax(xₙ)_c, for logits x and target probabilities q.

    Shapes: input (N, C, ...) or (C,), floating-point; losses (N, ...) or ().

    Args:
        target: class indices (integers, in the shape of the losses), as one-hot q; or q itself, in the shape of the
            input. A class index out of range is an IndexError (CPU only).
        weight: weights of the classes, (C,); None: all 1.
        ignore_index: targets with this index have loss 0 and do not count in the mean.
        reduction: "none"; "sum"; or "mean", the sum divided by Σₙ weight[targetₙ], or for q by the number of losses.
        label_smoothing: s from 0 to 1: q becomes (1 - s) · q + s / C.
    """
    ignore_index = checks.integer(ignore_index, "ignore_index", "cross_entropy")
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return Tensor.apply(CrossEntropy, input, target, weight, **options)


def mse_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """lossᵢ = (xᵢ - tᵢ)², for x = input and t = target. reduction: "mean" over all elements, "sum", or "none".

    Shapes: input, floating-point, and target alike (they do not broadcast).
    """
    return Tensor.apply(MSELoss, input, target, reduction=reduction)
