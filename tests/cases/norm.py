"""Normalisations. The oracles standardize one row, group, channel or filter at a time."""

import math

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad import Tensor
from minigrad.testing import arrays, shapes
from tests.cases.case import Call, Case

EPS = st.sampled_from([{}, {"eps": 1e-3}])


def spread_values(shape):
    """At most 80 values at a minimum distance, so that no variance is small compared with gradcheck's step.

    PyTorch's group_norm needs the distance too: its variance ⟨x²⟩ - ⟨x⟩² is inaccurate for a small variance.
    """
    return arrays(shape, low=-3, high=3, gap=0.035)


def optional_parameter(draw, shape):
    """A weight or bias, or None."""
    return draw(arrays(shape)) if draw(st.booleans()) else None


@st.composite
def layer_norm_calls(draw):
    lead = draw(shapes(max_dims=2, max_side=2))
    normalized_shape = draw(shapes(min_dims=1, max_dims=2, min_side=1, max_side=4))
    x, weight, bias = (
        draw(spread_values(lead + normalized_shape)),
        optional_parameter(draw, normalized_shape),
        optional_parameter(draw, normalized_shape),
    )
    as_int = len(normalized_shape) == 1 and draw(st.booleans())
    return Call(
        (x, weight, bias), {"normalized_shape": normalized_shape[0] if as_int else normalized_shape, **draw(EPS)}
    )


@st.composite
def group_norm_calls(draw):
    num_groups, per_group, N = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    spatial_shape = draw(shapes(max_dims=2, min_side=1, max_side=3))
    if per_group * math.prod(spatial_shape) == 1:  # for one element, PyTorch returns noise or raises
        per_group = 2
    C = num_groups * per_group
    x = draw(spread_values((N, C, *spatial_shape)))
    return Call(
        (x, optional_parameter(draw, (C,)), optional_parameter(draw, (C,))), {"num_groups": num_groups, **draw(EPS)}
    )


@st.composite
def group_norm_relu_calls(draw):
    """No z is near 0, where ReLU has no derivative."""
    call = draw(group_norm_calls())
    shortcut = draw(st.none() | arrays(call.inputs[0].shape))
    z = group_norm(*call.inputs, **call.options)
    if shortcut is not None:
        shortcut = shortcut + np.where(abs(z + shortcut) < 0.01, 0.1, 0)
        z = z + shortcut
    assume((abs(z) > 0.001).all())
    return Call((*call.inputs, shortcut), call.options)


@st.composite
def batch_norm_calls(draw, training):
    C, spatial_shape = draw(st.integers(1, 2)), draw(shapes(max_dims=2, min_side=1, max_side=3))
    N = draw(st.integers(2, 4) if training else st.integers(0, 2))
    running = draw(st.booleans()) or not training
    running_mean = draw(arrays((C,))) if running else None
    running_var = draw(arrays((C,), low=0.5)) if running else None
    x = draw(spread_values((N, C, *spatial_shape)))
    options = {"training": training, **draw(EPS)} if training else draw(EPS)
    return Call((x, running_mean, running_var, optional_parameter(draw, (C,)), optional_parameter(draw, (C,))), options)


@st.composite
def standardize_weight_calls(draw):
    shape = (draw(st.integers(0, 2)), *draw(shapes(min_dims=1, max_dims=3, min_side=1, max_side=3)))
    return Call((draw(spread_values(shape)),), draw(EPS))


@st.composite
def global_response_norm_calls(draw):
    B, C = draw(st.integers(0, 2)), draw(st.integers(1, 4))
    x = draw(spread_values((B, *draw(shapes(min_dims=1, max_dims=2, min_side=1, max_side=3)), C)))
    return Call((x, draw(arrays((C,))), draw(arrays((C,)))), draw(EPS))


def standardized(values, eps):
    """The values, shifted and scaled to mean 0 and variance 1."""
    mean = math.fsum(values.flat) / values.size
    var = math.fsum((value - mean) ** 2 for value in values.flat) / values.size
    return (values - mean) / math.sqrt(var + eps)


def affine_per_channel(x_hat, weight, bias):
    """x̂ · weight + bias, per channel, axis 1."""
    per_channel = (-1, *(1,) * (x_hat.ndim - 2))
    y = x_hat if weight is None else x_hat * weight.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


def layer_norm(x, weight, bias, normalized_shape, eps=1e-5):
    ndim = len(np.atleast_1d(normalized_shape))
    y = np.empty(x.shape)
    for index in np.ndindex(x.shape[:-ndim]):
        y[index] = standardized(x[index], eps)
        y[index] = y[index] * (1 if weight is None else weight) + (0 if bias is None else bias)
    return y


def group_norm(x, weight, bias, num_groups, eps=1e-5):
    y, size = np.empty(x.shape), x.shape[1] // num_groups
    for n in range(len(x)):
        for start in range(0, x.shape[1], size):
            y[n, start : start + size] = standardized(x[n, start : start + size], eps)
    return affine_per_channel(y, weight, bias)


def group_norm_relu(x, weight, bias, shortcut, num_groups, eps=1e-5):
    z = group_norm(x, weight, bias, num_groups, eps)
    return np.maximum(z if shortcut is None else z + shortcut, 0)


def batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=1e-5):
    y = np.empty(x.shape)
    for c in range(x.shape[1]):
        if training:
            y[:, c] = standardized(x[:, c], eps)
        else:
            y[:, c] = (x[:, c] - running_mean[c]) / math.sqrt(running_var[c] + eps)
    return affine_per_channel(y, weight, bias)


def standardize_weight(weight, eps=1e-8):
    return np.array([standardized(row, eps) for row in weight]).reshape(weight.shape)


def global_response_norm(x, weight, bias, eps=1e-6):
    y = np.empty(x.shape)
    for b in range(len(x)):
        norms = [math.sqrt(math.fsum(value**2 for value in x[b, ..., c].flat)) for c in range(x.shape[-1])]
        mean = math.fsum(norms) / len(norms)
        for c, norm in enumerate(norms):
            y[b, ..., c] = weight[c] * x[b, ..., c] * norm / (mean + eps) + bias[c] + x[b, ..., c]
    return y


def batch_norm_on_copies(x, running_mean, running_var, *affine, **options):
    """batch_norm updates the running statistics in place; the tests of unchanged inputs need copies."""
    running = [None if r is None else Tensor(r.data.copy()) for r in (running_mean, running_var)]
    return F.batch_norm(x, *running, *affine, **options)


def batch_norm_in_torch(torch, x, running_mean, running_var, *affine, **options):
    running = [None if r is None else r.clone() for r in (running_mean, running_var)]
    return torch.nn.functional.batch_norm(x, *running, *affine, **options)


def group_norm_in_torch(torch, x, weight, bias, num_groups, **eps):
    if weight is None and bias is not None:  # PyTorch's backward needs both or neither
        weight = torch.ones_like(bias, requires_grad=False)
    return torch.nn.functional.group_norm(x, num_groups, weight, bias, **eps)


def group_norm_relu_in_torch(torch, x, weight, bias, shortcut, **options):
    z = group_norm_in_torch(torch, x, weight, bias, **options)
    return torch.relu(z if shortcut is None else z + shortcut)


def standardize_weight_in_torch(torch, weight, eps=1e-8):
    axes = tuple(range(1, weight.ndim))
    return (weight - weight.mean(axes, True)) / torch.sqrt(weight.var(axes, correction=0, keepdim=True) + eps)


def global_response_norm_in_torch(torch, x, weight, bias, eps=1e-6):
    norms = x.norm(dim=tuple(range(1, x.ndim - 1)), keepdim=True)
    return x + weight * (x * norms / (norms.mean(-1, keepdim=True) + eps)) + bias


CASES = [
    Case(
        name="layer_norm",
        run=lambda x, weight, bias, normalized_shape, **eps: F.layer_norm(x, normalized_shape, weight, bias, **eps),
        calls=layer_norm_calls(),
        oracle=layer_norm,
        torch=lambda torch, x, weight, bias, normalized_shape, **eps: torch.nn.functional.layer_norm(
            x, np.atleast_1d(normalized_shape).tolist(), weight, bias, **eps
        ),
    ),
    Case(
        name="group_norm",
        run=lambda x, weight, bias, num_groups, **eps: F.group_norm(x, num_groups, weight, bias, **eps),
        calls=group_norm_calls(),
        oracle=group_norm,
        torch=group_norm_in_torch,
    ),
    Case(
        name="group_norm_relu",
        run=lambda x, weight, bias, shortcut, num_groups, **eps: F.group_norm_relu(
            x, num_groups, weight, bias, shortcut=shortcut, **eps
        ),
        calls=group_norm_relu_calls(),
        oracle=group_norm_relu,
        torch=group_norm_relu_in_torch,
        ops=3,
    ),
    Case(
        name="batch_norm_training",
        run=batch_norm_on_copies,
        calls=batch_norm_calls(training=True),
        oracle=batch_norm,
        torch=batch_norm_in_torch,
        differentiable=(0, 3, 4),
    ),
    Case(
        name="batch_norm",
        run=batch_norm_on_copies,
        calls=batch_norm_calls(training=False),
        oracle=batch_norm,
        torch=batch_norm_in_torch,
        differentiable=(0, 3, 4),
    ),
    Case(
        "standardize_weight",
        F.standardize_weight,
        standardize_weight_calls(),
        standardize_weight,
        standardize_weight_in_torch,
    ),
    Case(
        "global_response_norm",
        F.global_response_norm,
        global_response_norm_calls(),
        global_response_norm,
        global_response_norm_in_torch,
    ),
]
