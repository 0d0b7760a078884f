"""AdamW as a kernel: the same steps as the formula in minigrad/optim/optimizer.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, optim
from minigrad.kernels.cuda.launch import Recorder, use_device
from tests.cuda.runner import ORDERS, emulated, guarded, needs_compiler

pytestmark = needs_compiler


def steps(x, grads, **choices):
    parameter = Tensor(x.copy(), requires_grad=True)
    optimizer = optim.AdamW([parameter], **choices)
    for grad in grads:
        parameter.grad = Tensor(grad)
        optimizer.step()
    return parameter.numpy(), optimizer.state_dict()


@given(
    st.lists(st.integers(1, 40), max_size=2), st.floats(1e-5, 1.0), st.floats(0, 0.99), st.floats(0, 0.999),
    st.sampled_from([1e-8, 1e-3]), st.sampled_from([0.0, 0.05]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_steps(shape, lr, beta1, beta2, eps, weight_decay, order, seed):
    rng = np.random.default_rng(seed)
    x, *grads = (rng.standard_normal(shape) for _ in range(4))
    choices = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
    expected, _ = steps(x, grads, **choices)
    with emulated(order):
        found, state = steps(x.astype(np.float32), [g.astype(np.float32) for g in grads], **choices)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * max(1, lr))
    assert state["0.0.step"] == 3


def test_many_numbers_take_turns(monkeypatch):
    """More numbers than threads."""
    monkeypatch.setattr("minigrad.kernels.cuda.optim.MOST_BLOCKS", 2)
    x, grad = np.random.default_rng(0).standard_normal((2, 1500)).astype(np.float32)
    expected, _ = steps(x.astype(np.float64), [grad.astype(np.float64)])
    with emulated():
        found, _ = steps(x, [grad])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["before", "after"])
def test_it_stays_within_its_arrays(side):
    with emulated(guard=side):
        parameter = Tensor(guarded(300, side=side), requires_grad=True)
        parameter.data[...] = 1
        parameter.grad = Tensor(guarded(300, side=side))
        parameter.grad.data[...] = 1
        optim.AdamW([parameter], lr=0.1, weight_decay=0.0).step()
    np.testing.assert_allclose(parameter.numpy(), 0.9, rtol=1e-5)


def test_a_gradient_in_another_order_of_memory():
    x, grad = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)
    expected, _ = steps(x.astype(np.float64), [grad.astype(np.float64)])
    with emulated():
        found, _ = steps(x, [np.asfortranarray(grad)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_one_launch_for_a_parameter():
    recorder = Recorder()
    with use_device(recorder):
        steps(np.ones(10, np.float32), [np.ones(10, np.float32)])
    (launch,) = recorder.launches
    assert launch.kernel.name == "adamw" and launch.args[4] == 10


def test_other_dtypes_go_by_the_formula():
    recorder = Recorder()
    with use_device(recorder):
        steps(np.ones(10), [np.ones(10)])
    assert not recorder.launches
