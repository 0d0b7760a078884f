"""Weight standardisation in CUDA, run on the CPU, against the reference in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.kernels.cuda.norm import CUDALayerNorm
from tests.cuda.runner import ORDERS, emulated, guarded, needs_compiler, worst

pytestmark = needs_compiler


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outcome(weight, grad):
    """The node, ŵ and ∂w."""
    w = Tensor(weight, requires_grad=True)
    y = F.standardize_weight(w)
    node = y.grad_fn
    y.backward(Tensor(grad.astype(weight.dtype)))
    return node, [y.numpy(), w.grad.numpy()]


@given(
    st.integers(1, 9), st.sampled_from([(3, 3, 3), (8, 1, 1), (4, 2, 3), (7,), (130, 3, 3)]),
    st.booleans(), st.sampled_from(["after", "before"]), st.sampled_from(ORDERS),
)  # fmt: skip
def test_standardize_weight_matches_reference(O, filters, as_a_convolution_leaves_it, guard, order):  # noqa: E741
    """A warp or a block for a filter; the gradient may be (O, KH, KW, C) in memory."""
    weight, grad = guarded((O, *filters), side=guard), drawn(1, O, *filters)
    weight[...] = 1 + drawn(0, *weight.shape)
    if as_a_convolution_leaves_it:
        grad = np.moveaxis(np.ascontiguousarray(np.moveaxis(grad, 1, -1)), -1, 1)
    with emulated(order, guard=guard) as device, use_device(recorder := Recorder(device)):
        _, found = outcome(weight, grad)
    with minigrad.without_fast_paths():
        _, exact = outcome(weight.astype(np.float64), grad)
    assert worst(found, exact) <= 1e-5
    assert [launch.kernel.name for launch in recorder.launches] == ["layer_norm_forward", "layer_norm_backward"]


@pytest.mark.parametrize(
    "weight", [drawn(0, 4, 3, 3).astype(np.float64), drawn(0, 4, 6)[:, ::2], drawn(0, 0, 4), drawn(0, 2, 8193)]
)
def test_unsupported_arrays_run_the_reference(weight):
    with emulated():
        y = F.standardize_weight(Tensor(weight, requires_grad=True))
    assert not isinstance(y.grad_fn.norm, CUDALayerNorm)


def test_errors_are_those_of_the_reference():
    for weight in (drawn(0, 4), drawn(0, 4, 0)):
        with emulated(), pytest.raises(ValueError, match=r"the weight must be \(O, \.\.\.\)"):
            F.standardize_weight(Tensor(weight))
