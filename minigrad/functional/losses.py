"""L4: losses."""

from math import inf, log, pi
from typing import Literal

import numpy as np

from minigrad._tensor import Tensor
from minigrad.functional.activations import softplus
from minigrad.functional.arguments import Reduction
from minigrad.functional.normalization import cosine_similarity, pairwise_distance
from minigrad.ops import checks
from minigrad.ops.elementwise import Where
from minigrad.ops.loss import (
    BCELoss,
    BCEWithLogits,
    CrossEntropy,
    HuberLoss,
    KLDiv,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)


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


def l1_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """lossᵢ = |xᵢ - tᵢ|, for x = input and t = target. reduction and shapes: as in `mse_loss`."""
    return Tensor.apply(L1Loss, input, target, reduction=reduction)


def smooth_l1_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean", beta: float = 1.0) -> Tensor:
    """lossᵢ = ½ d² / β where |d| < β, else |d| - ½ β, for d = xᵢ - tᵢ. reduction and shapes: as in `mse_loss`.

    beta: at least 0, which gives `l1_loss`.
    """
    if checks.not_negative(beta, "beta", "smooth_l1_loss") == 0:
        return l1_loss(input, target, reduction)
    return Tensor.apply(SmoothL1Loss, input, target, delta=float(beta), divisor=float(beta), reduction=reduction)


def huber_loss(input: Tensor, target: Tensor, reduction: Reduction = "mean", delta: float = 1.0) -> Tensor:
    """lossᵢ = ½ d² where |d| < δ, else δ (|d| - ½ δ), for d = xᵢ - tᵢ. reduction and shapes: as in `mse_loss`.

    delta: above 0.
    """
    if checks.not_negative(delta, "delta", "huber_loss") == 0:
        raise ValueError("huber_loss: delta must be above 0, got 0")
    return Tensor.apply(HuberLoss, input, target, delta=float(delta), divisor=1.0, reduction=reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """lossₙ = -weight[targetₙ] · xₙ at the class targetₙ, for log-probabilities x, as from `log_softmax`.

    Shapes: input (N, C, ...) or (C,), floating-point; target (N, ...) or (), class indices; losses likewise. weight,
    ignore_index and reduction: as in `cross_entropy`.
    """
    ignore_index = checks.integer(ignore_index, "ignore_index", "nll_loss")
    return Tensor.apply(NLLLoss, input, target, weight, ignore_index=ignore_index, reduction=reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """lossᵢ = -weight · (pos_weight · tᵢ ln σ(xᵢ) + (1 - tᵢ) ln(1 - σ(xᵢ))), for logits x, without overflow.

    Shapes: input, floating-point, and target, probabilities, alike; weight and pos_weight broadcast to the input, have
    no gradient, and None is 1. reduction: as in `mse_loss`.
    """
    return Tensor.apply(BCEWithLogits, input, target, weight, pos_weight, reduction=reduction)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """lossᵢ = -weight · (tᵢ ln xᵢ + (1 - tᵢ) ln(1 - xᵢ)), for probabilities x; logarithms are at least -100.

    Shapes and reduction: as in `binary_cross_entropy_with_logits`, which is more accurate. An input or target
    that is not from 0 to 1 is a ValueError (CPU only).
    """
    return Tensor.apply(BCELoss, input, target, weight, reduction=reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    reduction: Literal["mean", "sum", "none", "batchmean"] = "mean",
    log_target: bool = False,
) -> Tensor:
    """lossᵢ = tᵢ (ln tᵢ - xᵢ), the Kullback-Leibler divergence, for log-probabilities x and probabilities t.

    Shapes: input, floating-point, and target alike.

    Args:
        reduction: as in `mse_loss`; "batchmean", the sum divided by the size of axis 0, is the divergence of a row.
        log_target: the target has log-probabilities too.
    """
    return Tensor.apply(KLDiv, input, target, reduction=reduction, log_target=log_target)


def _reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """lossᵢ = max(0, margin - tᵢ (x1ᵢ - x2ᵢ)), t = 1 or -1. reduction: as in `mse_loss`."""
    return _reduced((margin - target * (input1 - input2)).clamp(min=0), reduction)


def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """lossᵢ = xᵢ where tᵢ = 1, max(0, margin - xᵢ) where tᵢ = -1. reduction: as in `mse_loss`."""
    positive = Tensor.apply(Where, target == -1, 0.0, input)
    return _reduced(positive + Tensor.apply(Where, target == 1, 0.0, (margin - input).clamp(min=0)), reduction)


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """lossₙ = 1 - cₙ where tₙ = 1, max(0, cₙ - margin) where tₙ = -1, for c the cosine similarity along the last axis.

    Shapes: inputs (N, D) or (D,), target (N,) or (). reduction: as in `mse_loss`.
    """
    c = cosine_similarity(input1, input2, dim=-1)
    apart = Tensor.apply(Where, target == -1, (c - margin).clamp(min=0), 0.0)
    return _reduced(Tensor.apply(Where, target == 1, 1 - c, apart), reduction)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """lossₙ = max(0, d(aₙ, pₙ) - d(aₙ, nₙ) + margin), for d = `pairwise_distance`. Shapes: (N, D) or (D,).

    swap: the smaller of d(aₙ, nₙ) and d(pₙ, nₙ). reduction: as in `mse_loss`.
    """
    far = pairwise_distance(anchor, negative, p, eps)
    far = far.minimum(pairwise_distance(positive, negative, p, eps)) if swap else far
    return _reduced((pairwise_distance(anchor, positive, p, eps) - far + margin).clamp(min=0), reduction)


def soft_margin_loss(input: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """lossᵢ = ln(1 + exp(-tᵢ xᵢ)), t = 1 or -1. reduction: as in `mse_loss`."""
    return _reduced(softplus(-target * input, threshold=inf), reduction)


def multilabel_soft_margin_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """The mean over the classes, the last axis, of `binary_cross_entropy_with_logits`. reduction: as in `mse_loss`."""
    return _reduced(binary_cross_entropy_with_logits(input, target, weight, "none").mean(-1), reduction)


def poisson_nll_loss(
    input: Tensor, target: Tensor, log_input: bool = True, *, eps: float = 1e-8, reduction: Reduction = "mean"
) -> Tensor:
    """lossᵢ = exp xᵢ - tᵢ xᵢ, for x the logarithm of the rate; else, for x the rate, xᵢ - tᵢ ln(xᵢ + eps).

    reduction: as in `mse_loss`.
    """
    losses = input.exp() - target * input if log_input else input - target * (input + eps).log()
    return _reduced(losses, reduction)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, *, full: bool = False, eps: float = 1e-6,
    reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """lossᵢ = ½ (ln vᵢ + (xᵢ - tᵢ)² / vᵢ), for v = max(var, eps), whose gradient is that of var everywhere.

    full: plus the constant ½ ln 2π. reduction: as in `mse_loss`. A negative variance is a ValueError (CPU only).
    """
    v = input.new_full(input.shape, var) if isinstance(var, float) else var
    negative = var < 0 if isinstance(var, float) else isinstance(var.data, np.ndarray) and (var.data < 0).any()
    if negative:  # a Tensor on a GPU is not read, as reading synchronizes
        raise ValueError("gaussian_nll_loss: var, a variance, must not be negative; for log-variances use var.exp()")
    v = v.unsqueeze(-1) if v.shape == input.shape[:-1] else v  # one variance for each row
    v = v + (v.detach().clamp(min=eps) - v.detach())
    losses = 0.5 * (v.log() + (input - target).square() / v)
    return _reduced(losses + 0.5 * log(2 * pi) if full else losses, reduction)
