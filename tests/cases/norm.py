"""Normalisations. The oracle takes one set of numbers at a time."""

import math

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad import Tensor
from minigrad.testing import arrays, shapes
from tests.cases.case import Call, Case

EPS = st.sampled_from([{}, {"eps": 1e-3}])


def spread(shape):
    """At most 80 numbers that keep their distance, so that no variance is small beside a step of gradcheck.

    Nor beside rounding: PyTorch's group_norm takes the variance as ⟨x²⟩ - ⟨x⟩², which loses digits where it is small.
    """
    return arrays(shape, low=-3, high=3, gap=0.035)


def maybe(draw, shape):
    """A weight or bias, or none."""
    return draw(arrays(shape)) if draw(st.booleans()) else None


@st.composite
def layers(draw):
    lead = draw(shapes(max_dims=2, max_side=2))
    normalized = draw(shapes(min_dims=1, max_dims=2, min_side=1, max_side=4))
    x, weight, bias = draw(spread(lead + normalized)), maybe(draw, normalized), maybe(draw, normalized)
    as_number = len(normalized) == 1 and draw(st.booleans())
    return Call((x, weight, bias), {"normalized_shape": normalized[0] if as_number else normalized, **draw(EPS)})


@st.composite
def groups(draw):
    num_groups, per_group, N = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    places = draw(shapes(max_dims=2, min_side=1, max_side=3))
    if per_group * math.prod(places) == 1:  # of a group of one number PyTorch makes noise, or an error
        per_group = 2
    C = num_groups * per_group
    x = draw(spread((N, C, *places)))
    return Call((x, maybe(draw, (C,)), maybe(draw, (C,))), {"num_groups": num_groups, **draw(EPS)})


@st.composite
def batches(draw, training):
    C, places = draw(st.integers(1, 2)), draw(shapes(max_dims=2, min_side=1, max_side=3))
    N = draw(st.integers(2, 4) if training else st.integers(0, 2))
    running = draw(st.booleans()) or not training
    running_mean = draw(arrays((C,))) if running else None
    running_var = draw(arrays((C,), low=0.5)) if running else None
    x = draw(spread((N, C, *places)))
    options = {"training": training, **draw(EPS)} if training else draw(EPS)
    return Call((x, running_mean, running_var, maybe(draw, (C,)), maybe(draw, (C,))), options)


@st.composite
def filters(draw):
    shape = (draw(st.integers(0, 2)), *draw(shapes(min_dims=1, max_dims=3, min_side=1, max_side=3)))
    return Call((draw(spread(shape)),), draw(EPS))


def normalized(values, eps):
    """The numbers of one set with mean 0 and variance 1."""
    mean = math.fsum(values.flat) / values.size
    var = math.fsum((value - mean) ** 2 for value in values.flat) / values.size
    return (values - mean) / math.sqrt(var + eps)


def scaled(x_hat, weight, bias):
    """Times weight plus bias for each channel, axis 1."""
    per_channel = (-1, *(1,) * (x_hat.ndim - 2))
    y = x_hat if weight is None else x_hat * weight.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


def layer_norm(x, weight, bias, normalized_shape, eps=1e-5):
    ndim = len(np.atleast_1d(normalized_shape))
    y = np.empty(x.shape)
    for place in np.ndindex(x.shape[:-ndim]):
        y[place] = normalized(x[place], eps)
        y[place] = y[place] * (1 if weight is None else weight) + (0 if bias is None else bias)
    return y


def group_norm(x, weight, bias, num_groups, eps=1e-5):
    y, size = np.empty(x.shape), x.shape[1] // num_groups
    for n in range(len(x)):
        for start in range(0, x.shape[1], size):
            y[n, start : start + size] = normalized(x[n, start : start + size], eps)
    return scaled(y, weight, bias)


def batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=1e-5):
    y = np.empty(x.shape)
    for c in range(x.shape[1]):
        if training:
            y[:, c] = normalized(x[:, c], eps)
        else:
            y[:, c] = (x[:, c] - running_mean[c]) / math.sqrt(running_var[c] + eps)
    return scaled(y, weight, bias)


def standardize_weight(weight, eps=1e-8):
    return np.array([normalized(one, eps) for one in weight]).reshape(weight.shape)


def batch_norm_on_copies(x, running_mean, running_var, *affine, **options):
    """The running statistics are moved in place, which these tests would call a defect: they get copies."""
    running = [None if r is None else Tensor(r.data.copy()) for r in (running_mean, running_var)]
    return F.batch_norm(x, *running, *affine, **options)


def batch_norm_in_torch(torch, x, running_mean, running_var, *affine, **options):
    running = [None if r is None else r.clone() for r in (running_mean, running_var)]
    return torch.nn.functional.batch_norm(x, *running, *affine, **options)


def group_norm_in_torch(torch, x, weight, bias, num_groups, **eps):
    if weight is None and bias is not None:  # its backward needs both or neither
        weight = torch.ones_like(bias, requires_grad=False)
    return torch.nn.functional.group_norm(x, num_groups, weight, bias, **eps)


def standardize_weight_in_torch(torch, weight, eps=1e-8):
    axes = tuple(range(1, weight.ndim))
    return (weight - weight.mean(axes, True)) / torch.sqrt(weight.var(axes, correction=0, keepdim=True) + eps)


CASES = [
    Case(
        name="layer_norm",
        run=lambda x, weight, bias, normalized_shape, **eps: F.layer_norm(x, normalized_shape, weight, bias, **eps),
        calls=layers(),
        oracle=layer_norm,
        torch=lambda torch, x, weight, bias, normalized_shape, **eps: torch.nn.functional.layer_norm(
            x, np.atleast_1d(normalized_shape).tolist(), weight, bias, **eps
        ),
    ),
    Case(
        name="group_norm",
        run=lambda x, weight, bias, num_groups, **eps: F.group_norm(x, num_groups, weight, bias, **eps),
        calls=groups(),
        oracle=group_norm,
        torch=group_norm_in_torch,
    ),
    Case(
        name="batch_norm_training",
        run=batch_norm_on_copies,
        calls=batches(training=True),
        oracle=batch_norm,
        torch=batch_norm_in_torch,
        differentiable=(0, 3, 4),
    ),
    Case(
        name="batch_norm",
        run=batch_norm_on_copies,
        calls=batches(training=False),
        oracle=batch_norm,
        torch=batch_norm_in_torch,
        differentiable=(0, 3, 4),
    ),
    Case("standardize_weight", F.standardize_weight, filters(), standardize_weight, standardize_weight_in_torch),
]
