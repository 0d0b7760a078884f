"""Properties of all ops on random calls: outputs, gradients, dtypes, memory layouts, and freed graphs."""

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, no_grad
from minigrad.backend import to_device
from minigrad.testing import gradcheck, graph, watch
from tests.cases import ALL_CASES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

every_case = pytest.mark.parametrize("case", ALL_CASES, ids=[case.name for case in ALL_CASES])


def to_tensors(call, device, dtype=np.float64, differentiable=()):
    """The inputs as Tensors of one floating-point dtype. Inputs at the indices `differentiable` require a gradient."""
    tensors = []
    for i, x in enumerate(call.inputs):
        if x is not None and x.dtype.kind == "f":
            x = x.astype(dtype, copy=False)
        tensors.append(None if x is None else Tensor(to_device(x, device), requires_grad=i in differentiable))
    return tensors


def assert_near(actual, expected, tolerance):
    """Equal shapes, and errors of at most `tolerance`, relative to the maximum absolute value (at least 1)."""
    actual, expected = to_device(actual, "cpu"), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.max(abs(expected), initial=1.0, where=np.isfinite(expected))
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=tolerance * scale)


def grad_output(y):
    """An upstream gradient in the dtype of y, always the same for a shape, of values that all dtypes represent."""
    u = (np.random.default_rng(1).standard_normal(y.shape) * 16).round() / 16
    return Tensor(to_device(np.asarray(u).astype(y.dtype), y.device))


def gradients(case, call, device, dtype=np.float64, differentiable=()):
    """The output, and the gradients of the inputs in `differentiable`. `watch` checks the contract of Function."""
    tensors = to_tensors(call, device, dtype, differentiable)
    y = case.run(*tensors, **call.options)
    watch(y, *(t.data for t in tensors if t is not None))
    y.backward(grad_output(y))
    return y, [tensors[i].grad.data for i in differentiable]


@every_case
@given(data=st.data())
def test_forward_equals_oracle(case, device, data):
    call = data.draw(case.calls)
    originals = [None if x is None else x.copy() for x in call.inputs]
    y = case.run(*to_tensors(call, device), **call.options)
    for x, original in zip(call.inputs, originals, strict=True):
        np.testing.assert_array_equal(x, original, err_msg="forward wrote into an input")
    assert_near(y.data, case.oracle(*originals, **call.options), 1e-12)


@every_case
@given(data=st.data())
def test_gradcheck(case, device, data):
    call = data.draw(case.calls)
    arrays = [None if x is None else to_device(x, device) for x in call.inputs]
    gradcheck(case.run, *arrays, wrt=case.differentiable_inputs(call), **call.options)


@every_case
@given(data=st.data())
def test_dtype_is_preserved(case, device, data):
    call = data.draw(case.calls)
    differentiable = case.differentiable_inputs(call)
    exact, exact_gradients = gradients(case, call, device, np.float64, differentiable)
    y, actual_gradients = gradients(case, call, device, np.float32, differentiable)
    assert exact.dtype == np.float64
    assert y.dtype == np.float32
    assert_near(y.data, to_device(exact.data, "cpu"), 1e-4)
    for gradient, expected in zip(actual_gradients, exact_gradients, strict=True):
        assert gradient.dtype == np.float32
        assert_near(gradient, to_device(expected, "cpu"), 1e-3)
    with np.errstate(all="ignore"), no_grad():  # float16 overflows early: check only the dtype
        assert case.run(*to_tensors(call, device, np.float16), **call.options).dtype == np.float16


@every_case
@given(data=st.data())
def test_bfloat16_rounds_only_inputs_and_outputs(case, device, data):
    """Intermediate results are float32. Rounding to 8 bits has a relative error of at most 2⁻⁹."""
    call = data.draw(case.calls)
    differentiable = case.differentiable_inputs(call)
    rounded = [x if x is None or x.dtype.kind != "f" else x.astype(BFLOAT16).astype(np.float64) for x in call.inputs]
    exact, exact_gradients = gradients(
        case, type(call)(tuple(rounded), call.options), device, np.float64, differentiable
    )
    y, actual_gradients = gradients(case, call, device, BFLOAT16, differentiable)
    assert y.dtype == BFLOAT16
    assert_near(y.data, to_device(exact.data, "cpu"), case.ops * 2**-8)
    for gradient, expected in zip(actual_gradients, exact_gradients, strict=True):
        assert gradient.dtype == BFLOAT16
        assert_near(gradient, to_device(expected, "cpu"), case.ops * 2**-7)


@every_case
@given(data=st.data())
def test_memory_layout_does_not_change_results(case, device, data):
    call = data.draw(case.calls)
    contiguous = type(call)(tuple(None if x is None else x.copy() for x in call.inputs), call.options)
    differentiable = case.differentiable_inputs(call)
    y, actual_gradients = gradients(case, call, device, differentiable=differentiable)
    expected, expected_gradients = gradients(case, contiguous, device, differentiable=differentiable)
    assert_near(y.data, to_device(expected.data, "cpu"), 1e-12)
    for gradient, expected_gradient in zip(actual_gradients, expected_gradients, strict=True):
        assert_near(gradient, to_device(expected_gradient, "cpu"), 1e-12)


@every_case
@given(data=st.data())
def test_only_inputs_that_require_grad_get_a_gradient(case, device, data):
    call = data.draw(case.calls)
    differentiable = case.differentiable_inputs(call)
    y_all, all_gradients = gradients(case, call, device, differentiable=differentiable)
    for i, expected in zip(differentiable, all_gradients, strict=True):
        tensors = to_tensors(call, device, differentiable=(i,))
        y = case.run(*tensors, **call.options)
        y.backward(grad_output(y))
        assert [j for j, t in enumerate(tensors) if t is not None and t.grad is not None] == [i]
        assert_near(tensors[i].grad.data, to_device(expected, "cpu"), 1e-12)
    with no_grad():
        y = case.run(*to_tensors(call, device, differentiable=differentiable), **call.options)
    assert y.grad_fn is None
    assert_near(y.data, to_device(y_all.data, "cpu"), 1e-12)


@every_case
@given(data=st.data())
def test_graph_nodes_are_freed_with_their_output(case, device, data):
    call = data.draw(case.calls)
    gc.disable()  # the garbage collector would hide a reference cycle
    try:
        for with_backward in (False, True):
            y = case.run(*to_tensors(call, device, differentiable=case.differentiable_inputs(call)), **call.options)
            nodes = [weakref.ref(node) for node in graph(y)]
            if with_backward:
                y.backward(grad_output(y))
            del y
            assert [node() for node in nodes if node() is not None] == []
    finally:
        gc.enable()
