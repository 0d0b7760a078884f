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


@st.composite
def nll_loss_calls(draw):
    """The calls of cross_entropy with class indices, without label smoothing."""
    call = draw(cross_entropy_calls(probabilities=False))
    return Call(call.inputs, {name: value for name, value in call.options.items() if name != "label_smoothing"})


def nll_loss(x, target, weight, ignore_index=-100, reduction="mean"):
    rows = x if x.ndim == 1 else np.moveaxis(x, 1, -1)
    weight = np.ones(rows.shape[-1]) if weight is None else weight
    losses, total = np.zeros(target.shape), 0.0
    for index in np.ndindex(target.shape):
        if target[index] != ignore_index:
            losses[index] = -weight[target[index]] * rows[*index, target[index]]
            total += weight[target[index]]
    return losses if reduction == "none" else losses.sum() / (total if reduction == "mean" else 1)


@st.composite
def pair_calls(draw, *, low=-2.0, high=2.0, target=(0.05, 0.95), weights=0, more=(), **options):
    """An input and a target of one shape, `weights` arrays that broadcast or None, and options or their defaults."""
    reduction = draw(st.sampled_from([None, *REDUCTIONS, *more]))
    shape = draw(shapes(max_dims=3, min_side=0 if reduction in ("sum", "none") else 1, max_side=4))
    found = [draw(arrays(shape, low=low, high=high)), draw(arrays(shape, low=target[0], high=target[1]))]
    for _ in range(weights):
        axes = draw(st.integers(0, len(shape)))
        found.append(draw(st.none() | arrays(shape[axes:], low=0.5)))
    chosen = {name: draw(strategy) for name, strategy in options.items() if draw(st.booleans())}
    return Call(tuple(found), chosen | ({} if reduction is None else {"reduction": reduction}))


@st.composite
def difference_calls(draw, **options):
    """Inputs and targets whose differences are multiples of 2 · GAP, but not 0, each shifted by at most GAP / 2."""
    call = draw(pair_calls(**options))
    x, target = call.inputs
    difference = draw(arrays(x.shape, gap=0.02))
    return Call((target + difference, target), call.options)


def elementwise_loss(function):
    """An oracle: the function of Python numbers for each element, then the reduction."""

    def run(x, *others, reduction="mean", **options):
        others = [np.broadcast_to(1.0 if other is None else other, x.shape) for other in others]
        losses = np.empty(x.shape)
        for index in np.ndindex(x.shape):
            losses[index] = function(float(x[index]), *(float(other[index]) for other in others), **options)
        count = {"mean": losses.size, "batchmean": x.shape[0] if x.ndim else 1}.get(reduction, 1)
        return losses if reduction == "none" else math.fsum(losses.flat) / count

    return run


def huber(x, t, delta=1.0):
    d = abs(x - t)
    return d * d / 2 if d < delta else delta * (d - delta / 2)


def smooth_l1(x, t, beta=1.0):
    return huber(x, t, beta) / beta if beta else abs(x - t)


def bce(x, t, w):
    return -w * (t * math.log(x) + (1 - t) * math.log(1 - x))


def bce_with_logits(x, t, w, p):
    sigmoid = 1 / (1 + math.exp(-x))
    return -w * (p * t * math.log(sigmoid) + (1 - t) * math.log(1 - sigmoid))


def kl_div(x, t, log_target=False):
    return math.exp(t) * (t - x) if log_target else t * (math.log(t) - x)


def loss(name, function, calls, torch=None, differentiable=(0, 1)):
    return Case(
        name=name,
        run=getattr(F, name),
        calls=calls,
        oracle=elementwise_loss(function),
        torch=torch or torch_functional(name),
        differentiable=differentiable,
    )


def broadcast_weights(name):
    """PyTorch's binary_cross_entropy_with_logits in the argument order of the table."""

    def run(torch, x, t, w, p, **options):
        return torch.nn.functional.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, **options)

    return run


CASES = [
    Case(
        name="nll_loss",
        run=F.nll_loss,
        calls=nll_loss_calls(),
        oracle=nll_loss,
        torch=torch_functional("nll_loss"),
        differentiable=(0,),
    ),
    loss("l1_loss", lambda x, t: abs(x - t), difference_calls()),
    loss("smooth_l1_loss", smooth_l1, difference_calls(beta=st.sampled_from([0, 0.5, 0.75, 2.0]))),
    loss("huber_loss", huber, difference_calls(delta=st.sampled_from([0.5, 0.75, 2.0]))),
    loss("binary_cross_entropy", bce, pair_calls(low=0.05, high=0.95, weights=1)),
    Case(
        name="binary_cross_entropy_with_logits",
        run=lambda x, t, w, p, **options: F.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, **options),
        calls=pair_calls(low=-5, high=5, weights=2),
        oracle=elementwise_loss(bce_with_logits),
        torch=broadcast_weights("binary_cross_entropy_with_logits"),
        differentiable=(0, 1),
    ),
    loss("kl_div", kl_div, pair_calls(more=["batchmean"], log_target=st.booleans())),
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
