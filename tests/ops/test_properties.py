"""What holds for every op, on drawn calls: the oracle's values, right gradients, kept dtypes, and no surprises."""

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


def tensors_of(call, device, dtype=np.float64, wanted=()):
    """The inputs as Tensors of one floating dtype; those numbered in `wanted` require a gradient."""
    tensors = []
    for i, x in enumerate(call.inputs):
        if x is not None and x.dtype.kind == "f":
            x = x.astype(dtype, copy=False)
        tensors.append(None if x is None else Tensor(to_device(x, device), requires_grad=i in wanted))
    return tensors


def assert_near(actual, expected, tolerance):
    """Same shape, and entries within `tolerance` of the largest one (or of 1, if they are small)."""
    actual, expected = to_device(actual, "cpu"), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.max(abs(expected), initial=1.0, where=np.isfinite(expected))
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=tolerance * scale)


def cotangent(y):
    """An upstream gradient in the dtype of y, the same for the same shape, of numbers that every dtype has."""
    u = (np.random.default_rng(1).standard_normal(y.shape) * 16).round() / 16
    return Tensor(to_device(np.asarray(u).astype(y.dtype), y.device))


def gradients(case, call, device, dtype=np.float64, wanted=()):
    """The output and the gradients of the inputs numbered in `wanted`, the contract watched on the way."""
    tensors = tensors_of(call, device, dtype, wanted)
    y = case.run(*tensors, **call.options)
    watch(y, *(t.data for t in tensors if t is not None))
    y.backward(cotangent(y))
    return y, [tensors[i].grad.data for i in wanted]


@every_case
@given(data=st.data())
def test_forward_equals_oracle(case, device, data):
    call = data.draw(case.calls)
    originals = [None if x is None else x.copy() for x in call.inputs]
    y = case.run(*tensors_of(call, device), **call.options)
    for x, original in zip(call.inputs, originals, strict=True):
        np.testing.assert_array_equal(x, original, err_msg="forward wrote into an input")
    assert_near(y.data, case.oracle(*originals, **call.options), 1e-12)


@every_case
@given(data=st.data())
def test_gradcheck(case, device, data):
    call = data.draw(case.calls)
    arrays = [None if x is None else to_device(x, device) for x in call.inputs]
    gradcheck(case.run, *arrays, wrt=case.wanted(call), **call.options)


@every_case
@given(data=st.data())
def test_dtype_is_kept(case, device, data):
    call = data.draw(case.calls)
    wanted = case.wanted(call)
    exact, exact_gradients = gradients(case, call, device, np.float64, wanted)
    y, found = gradients(case, call, device, np.float32, wanted)
    assert exact.dtype == np.float64
    assert y.dtype == np.float32
    assert_near(y.data, to_device(exact.data, "cpu"), 1e-4)
    for gradient, expected in zip(found, exact_gradients, strict=True):
        assert gradient.dtype == np.float32
        assert_near(gradient, to_device(expected, "cpu"), 1e-3)
    with np.errstate(all="ignore"), no_grad():  # float16 overflows early; here only the dtype matters
        assert case.run(*tensors_of(call, device, np.float16), **call.options).dtype == np.float16


@every_case
@given(data=st.data())
def test_bfloat16(case, device, data):
    """Numbers are rounded where they are kept, and nowhere between: to 8 bits, so by 1 in 512 at most."""
    call = data.draw(case.calls)
    wanted = case.wanted(call)
    kept = [x if x is None or x.dtype.kind != "f" else x.astype(BFLOAT16).astype(np.float64) for x in call.inputs]
    exact, exact_gradients = gradients(case, type(call)(tuple(kept), call.options), device, np.float64, wanted)
    y, found = gradients(case, call, device, BFLOAT16, wanted)
    assert y.dtype == BFLOAT16
    assert_near(y.data, to_device(exact.data, "cpu"), case.ops * 2**-8)
    for gradient, expected in zip(found, exact_gradients, strict=True):
        assert gradient.dtype == BFLOAT16
        assert_near(gradient, to_device(expected, "cpu"), case.ops * 2**-7)


@every_case
@given(data=st.data())
def test_layout_does_not_matter(case, device, data):
    call = data.draw(case.calls)
    plain = type(call)(tuple(None if x is None else x.copy() for x in call.inputs), call.options)
    wanted = case.wanted(call)
    y, found = gradients(case, call, device, wanted=wanted)
    expected, expected_gradients = gradients(case, plain, device, wanted=wanted)
    assert_near(y.data, to_device(expected.data, "cpu"), 1e-12)
    for gradient, other in zip(found, expected_gradients, strict=True):
        assert_near(gradient, to_device(other, "cpu"), 1e-12)


@every_case
@given(data=st.data())
def test_gradients_come_only_where_wanted(case, device, data):
    call = data.draw(case.calls)
    wanted = case.wanted(call)
    together, all_gradients = gradients(case, call, device, wanted=wanted)
    for i, expected in zip(wanted, all_gradients, strict=True):
        tensors = tensors_of(call, device, wanted=(i,))
        y = case.run(*tensors, **call.options)
        y.backward(cotangent(y))
        assert [j for j, t in enumerate(tensors) if t is not None and t.grad is not None] == [i]
        assert_near(tensors[i].grad.data, to_device(expected, "cpu"), 1e-12)
    with no_grad():
        y = case.run(*tensors_of(call, device, wanted=wanted), **call.options)
    assert y.grad_fn is None
    assert_near(y.data, to_device(together.data, "cpu"), 1e-12)


@every_case
@given(data=st.data())
def test_no_node_outlives_its_output(case, device, data):
    call = data.draw(case.calls)
    gc.disable()  # else the collector could hide a reference cycle
    try:
        for with_backward in (False, True):
            y = case.run(*tensors_of(call, device, wanted=case.wanted(call)), **call.options)
            nodes = [weakref.ref(node) for node in graph(y)]
            if with_backward:
                y.backward(cotangent(y))
            del y
            assert [node() for node in nodes if node() is not None] == []
    finally:
        gc.enable()
