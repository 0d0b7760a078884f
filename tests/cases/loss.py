"""Losses."""

import math

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays, shapes
from tests.cases.case import Call, Case, torch_functional

REDUCTIONS = ["mean", "sum", "none"]


@st.composite
def cross_entropy_calls(draw, probabilities):
    """Logits (C,), (N, C) or (N, C, ...); targets are class indices or probabilities."""
    C, unbatched = draw(st.integers(1, 4)), draw(st.booleans())
    N, places = draw(st.integers(0, 3)), draw(shapes(max_dims=2, min_side=1, max_side=3))
    options = {}
    if draw(st.booleans()):
        options["reduction"] = draw(st.sampled_from(REDUCTIONS))
    if options.get("reduction", "mean") == "mean":
        N = max(N, 1)  # the mean of an empty batch is NaN
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
    x = draw(arrays((C,) if unbatched else (N, C, *places), low=-5, high=5))
    weight = draw(arrays((C,), low=0.5)) if draw(st.booleans()) else None
    if probabilities:
        return Call((x, draw(arrays(x.shape, low=0)), weight), options)
    target = draw(arrays(() if unbatched else (N, *places), dtype=np.int64, low=0, high=C))
    if draw(st.booleans()):
        options["ignore_index"] = ignored = draw(st.sampled_from([-100, -1, 0]))
        target = np.where(np.arange(target.size).reshape(target.shape) % 3 == 1, ignored, target)
        if target.size and (target == ignored).all():
            options["ignore_index"] = C  # equal to no target: not all targets may be ignored
            target = np.zeros_like(target)
    return Call((x, target, weight), options)


def cross_entropy(x, target, weight, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The weighted sum over the classes of -ln softmax(x), as loops over positions and classes."""
    C = len(x) if x.ndim == 1 else x.shape[1]
    logits = x if x.ndim == 1 else np.moveaxis(x, 1, -1)
    weight = np.ones(C) if weight is None else weight
    by_index = target.dtype.kind == "i"
    probabilities = target if by_index or x.ndim == 1 else np.moveaxis(target, 1, -1)
    losses, total = np.zeros(logits.shape[:-1]), 0.0
    for index in np.ndindex(losses.shape):
        log_sum = math.log(math.fsum(map(math.exp, logits[index])))
        if by_index and target[index] == ignore_index:
            continue
        for c in range(C):
            probability = float(c == target[index]) if by_index else probabilities[*index, c]
            total += weight[c] * probability if by_index else 1 / C
            probability = (1 - label_smoothing) * probability + label_smoothing / C
            losses[index] += weight[c] * probability * (log_sum - logits[*index, c])
    return losses if reduction == "none" else losses.sum() / (total if reduction == "mean" else 1)


@st.composite
def mse_loss_calls(draw):
    reduction = draw(st.sampled_from([None, *REDUCTIONS]))
    shape = draw(shapes(max_dims=3, min_side=0 if reduction in ("sum", "none") else 1, max_side=4))
    return Call((draw(arrays(shape)), draw(arrays(shape))), {} if reduction is None else {"reduction": reduction})


def mse_loss(x, target, reduction="mean"):
    squares = (x - target) ** 2
    return squares if reduction == "none" else math.fsum(squares.flat) / (squares.size if reduction == "mean" else 1)


CASES = [
    Case(
        name="cross_entropy",
        run=F.cross_entropy,
        calls=cross_entropy_calls(probabilities=False),
        oracle=cross_entropy,
        torch=torch_functional("cross_entropy"),
        differentiable=(0,),
    ),
    Case(
        name="cross_entropy_probabilities",
        run=F.cross_entropy,
        calls=cross_entropy_calls(probabilities=True),
        oracle=cross_entropy,
        torch=torch_functional("cross_entropy"),
        differentiable=(0, 1),
    ),
    Case("mse_loss", F.mse_loss, mse_loss_calls(), mse_loss, torch_functional("mse_loss")),
]
