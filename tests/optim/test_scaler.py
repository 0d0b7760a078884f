"""GradScaler: growth and backoff of the scale, the smallest scale, order of calls, 16 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, autocast, optim


@given(exponent=st.integers(-14, 20), factor=st.sampled_from([0.5, 0.3, 0.9]), value=st.sampled_from([np.nan, np.inf]))
def test_overflow_at_the_smallest_scale_raises(exponent, factor, value):
    """The error leaves the scale unchanged."""
    parameter = Tensor(np.zeros(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([parameter], lr=1.0)
    scaler, scale = optim.GradScaler(2.0**exponent, backoff_factor=factor), 2.0**exponent
    for _ in range(400):
        parameter.grad = Tensor(np.float32([1, value]))
        assert not scaler.step(optimizer)
        if scale * factor < 2.0**-14:
            with pytest.raises(FloatingPointError, match="infinite or NaN even with the smallest scale"):
                scaler.update()
        else:
            scaler.update()
            scale *= factor
        assert scaler.get_scale() == scale
    parameter.grad = Tensor(np.full(2, scale, np.float32))
    assert scaler.step(optimizer)
    scaler.update()
    np.testing.assert_allclose(parameter.numpy(), -1, rtol=1e-6)


def optimizers_with(*values, dtype=np.float32):
    """An optimizer for each value, with one parameter that is 0 and has this gradient."""
    optimizers = [optim.SGD([Tensor(np.zeros(1, dtype), requires_grad=True)], lr=1.0) for _ in values]
    for optimizer, value in zip(optimizers, values, strict=True):
        optimizer.param_groups[0]["params"][0].grad = Tensor(np.array([value], dtype))
    return optimizers


def parameter_of(optimizer):
    return optimizer.param_groups[0]["params"][0].item()


def test_unscale_and_step_run_once_between_updates():
    (optimizer,), scaler = optimizers_with(8.0), optim.GradScaler(8.0)
    with pytest.raises(RuntimeError, match=r"update\(\) was called without step\(\) or unscale_\(\)"):
        scaler.update()
    for _ in range(2):
        scaler.unscale_(optimizer)
        with pytest.raises(
            RuntimeError, match=r"unscale_\(\) has already been called on this optimizer since the last"
        ):
            scaler.unscale_(optimizer)
        assert scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"step\(\) has already been called since the last update\(\)"):
            scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step\(\)"):
            scaler.unscale_(optimizer)
        scaler.update(8.0)
        optimizer.param_groups[0]["params"][0].grad = Tensor(np.float32([8]))
    assert parameter_of(optimizer) == -2


def test_two_optimizers_share_a_scale():
    optimizers, scaler = optimizers_with(4.0, np.inf), optim.GradScaler(4.0)
    assert [scaler.step(optimizer) for optimizer in optimizers] == [True, False]
    scaler.update()
    assert [parameter_of(optimizer) for optimizer in optimizers] == [-1, 0] and scaler.get_scale() == 2
    optimizers[1].param_groups[0]["params"][0].grad = Tensor(np.float32([2]))
    assert scaler.step(optimizers[1]) and parameter_of(optimizers[1]) == -1


@pytest.mark.parametrize("scale", [2.0**20, np.float32(2.0**20), Tensor(2.0**20)])
def test_update_sets_a_new_scale(scale):
    scaler = optim.GradScaler(4.0)
    scaler.update(scale)
    assert scaler.get_scale() == 2.0**20 and type(scaler.get_scale()) is float
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="new_scale must be above 0"):
            scaler.update(wrong)


@pytest.mark.parametrize("exponent", [14, 30, 40])
def test_16_bit_gradients_are_unscaled_in_float32(exponent):
    """1/S underflows in float16."""
    (optimizer,), scaler = optimizers_with(2.0**14, dtype=np.float16), optim.GradScaler(2.0**exponent)
    scaler.unscale_(optimizer)
    assert optimizer.param_groups[0]["params"][0].grad.item() == float(np.float16(2.0 ** (14 - exponent)))


def test_a_16_bit_loss_is_scaled_in_float32():
    weight = Tensor(np.float16([2]), requires_grad=True)
    loss = optim.GradScaler(2.0**17).scale(weight.sum())
    assert loss.dtype == np.float32 and loss.item() == 2.0**18


@pytest.mark.parametrize("state", [{"scale": np.nan, "good_steps": 0}, {"scale": 0, "good_steps": 0},
                                   {"scale": 1, "good_steps": 0.5}])  # fmt: skip
def test_invalid_state_raises(state):
    scaler = optim.GradScaler(4.0)
    with pytest.raises(ValueError, match="GradScaler"):
        scaler.load_state_dict({name: np.asarray(value) for name, value in state.items()})
    assert scaler.get_scale() == 4


@given(st.lists(st.sampled_from([1.0, np.inf, np.nan]), max_size=12), st.integers(1, 3))
def test_scale_backs_off_and_grows(gradients, interval):
    parameter = Tensor(np.zeros(2, np.float32), requires_grad=True)
    optimizer, scaler = optim.SGD([parameter], lr=1.0), optim.GradScaler(2.0**4, growth_interval=interval)
    scale, good, updates = 2.0**4, 0, 0
    for gradient in gradients:
        assert scaler.get_scale() == scale
        scaler.scale(parameter.sum()).backward()
        assert (parameter.grad.numpy() == scale).all()
        parameter.grad = Tensor(np.float32([scale, scale * gradient]))
        assert scaler.step(optimizer) == np.isfinite(gradient)
        scaler.update()
        optimizer.zero_grad()
        if np.isfinite(gradient):
            updates, good = updates + 1, good + 1
            scale, good = (scale * 2, 0) if good == interval else (scale, good)
        else:
            scale, good = scale / 2, 0
    assert (parameter.numpy() == -updates).all()
    saved = {key: np.array(value) for key, value in scaler.state_dict().items()}
    other = optim.GradScaler()
    other.load_state_dict(saved)
    assert (other.get_scale(), other.good_steps) == (scale, good)


def test_unscale_before_clipping_only_once():
    parameter = Tensor(np.zeros(1, np.float32), requires_grad=True)
    optimizer, scaler = optim.SGD([parameter], lr=1.0), optim.GradScaler(8.0)
    scaler.scale(parameter.sum() * 3).backward()
    scaler.unscale_(optimizer)
    assert parameter.grad.item() == 3
    with pytest.raises(RuntimeError, match="already been called on this optimizer since the last update"):
        scaler.unscale_(optimizer)
    optim.clip_grad_norm_([parameter], 1.5)
    assert scaler.step(optimizer)
    assert abs(parameter.item() + 1.5) < 1e-5


def test_disabled_scaler_steps_without_scaling():
    parameter = Tensor(np.zeros(1, np.float32), requires_grad=True)
    optimizer, scaler = optim.SGD([parameter], lr=1.0), optim.GradScaler(enabled=False)
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)
    assert scaler.step(optimizer) and scaler.get_scale() == 1 and parameter.item() == -1
    scaler.update()


@pytest.mark.parametrize(
    "options", [{"init_scale": 0.0}, {"growth_factor": 1.0}, {"backoff_factor": 1.0}, {"growth_interval": 0}]
)
def test_invalid_arguments_raise(options):
    with pytest.raises(ValueError, match="GradScaler"):
        optim.GradScaler(**options)


def test_incomplete_state_raises():
    with pytest.raises(ValueError, match="lacks good_steps"):
        optim.GradScaler().load_state_dict({"scale": np.asarray(1.0)})


def test_loss_scaling_prevents_underflow():
    """A gradient of 1e-8 underflows to 0 in float16."""
    for scaler, expected in ((optim.GradScaler(enabled=False), 0.0), (optim.GradScaler(), 1e-8)):
        weight = Tensor(np.ones((1, 1), np.float32), requires_grad=True)
        optimizer = optim.SGD([weight], lr=1.0)
        with autocast("float16"):
            y = Tensor(np.ones((1, 1), np.float32)) @ weight
        scaler.scale(y.float().sum() * 1e-8).backward()
        scaler.unscale_(optimizer)
        np.testing.assert_allclose(weight.grad.item(), expected, rtol=1e-2)
