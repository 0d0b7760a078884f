"""Optimisers against their formulas written out, schedules, clipping, state."""

import numpy as np
import pytest

from minigrad import Tensor, optim
from minigrad.nn import Linear, Parameter


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(rng.normal(size=shape)) for shape in ((3, 2), (4,), ())]


def run(optimizer, params, steps, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for p in params:
            p.grad = Tensor(rng.normal(size=p.shape))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_follows_its_formula(momentum, nesterov):
    params, lr, decay = parameters(), 0.1, 0.01
    expected, velocity = [p.data.copy() for p in params], [None] * 3
    run(optim.SGD(params, lr, momentum, weight_decay=decay, nesterov=nesterov), params, 5)
    rng = np.random.default_rng(1)
    for _ in range(5):
        for i, x in enumerate(expected):
            g = rng.normal(size=x.shape) + decay * x
            velocity[i] = g if velocity[i] is None else momentum * velocity[i] + g
            step = g + momentum * velocity[i] if nesterov else velocity[i] if momentum else g
            expected[i] = x - lr * step
    for p, x in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.data, x, rtol=1e-13)


def test_adamw_follows_its_formula():
    params, lr, (b1, b2), eps, decay = parameters(), 0.01, (0.8, 0.95), 1e-6, 0.1
    expected = [p.data.copy() for p in params]
    m, v = [0.0] * 3, [0.0] * 3
    run(optim.AdamW(params, lr, (b1, b2), eps, decay), params, 6)
    rng = np.random.default_rng(1)
    for t in range(1, 7):
        for i in range(3):
            g = rng.normal(size=expected[i].shape)
            m[i], v[i] = b1 * m[i] + (1 - b1) * g, b2 * v[i] + (1 - b2) * g * g
            step = m[i] / (1 - b1**t) / (np.sqrt(v[i] / (1 - b2**t)) + eps)
            expected[i] = expected[i] * (1 - lr * decay) - lr * step
    for p, x in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.data, x, rtol=1e-12)


def test_a_group_has_settings_of_its_own():
    still, moving = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = optim.AdamW([{"params": [still], "lr": 0.0}, {"params": [moving], "weight_decay": 0.0}], lr=0.1)
    run(optimizer, [still, moving], 1)
    np.testing.assert_array_equal(still.data, 1)
    np.testing.assert_allclose(abs(moving.data - 1), 0.1, rtol=1e-6)


def test_defaults_of_optimizers():
    adamw = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    for make, expected in [
        (optim.SGD, {"lr": 1e-3, "momentum": 0, "weight_decay": 0, "nesterov": False}),
        (optim.AdamW, adamw),
        (optim.Muon, {**adamw, "momentum": 0.95, "muon": False}),
    ]:
        (group,) = make(parameters()).param_groups
        assert {name: value for name, value in group.items() if name != "params"} == expected
    scaler = optim.GradScaler()
    factors = scaler.get_scale(), scaler.growth_factor, scaler.backoff_factor, scaler.growth_interval
    assert factors == (65536, 2, 0.5, 2000)
    assert optim.EMA(Linear(1, 1)).decay == 0.9998


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, 0.1, 0.9), lambda p: optim.AdamW(p, 0.1)])
def test_a_restored_optimizer_goes_on_bit_for_bit(make):
    params, copies = parameters(), parameters()
    one, two = make(params), make(copies)
    one.param_groups[0]["lr"] = 0.05  # as a schedule leaves it
    run(one, params, 3)
    for p, c in zip(params, copies, strict=True):
        c.data[...] = p.data
    two.load_state_dict({name: np.copy(value) for name, value in one.state_dict().items()})
    run(one, params, 3, seed=2)
    run(two, copies, 3, seed=2)
    for p, c in zip(params, copies, strict=True):
        np.testing.assert_array_equal(p.data, c.data)
    other = make([Parameter(np.ones(7))])
    with pytest.raises(ValueError, match="does not fit these parameters"):
        other.load_state_dict(one.state_dict())
    assert other.state == [[{}]]


def test_float32_parameters_stay_float32():
    p = Parameter(np.ones(3, np.float32))
    p.grad = Tensor(np.ones(3, np.float32))
    optimizer = optim.AdamW([p])
    optimizer.step()
    assert p.dtype == np.float32 and optimizer.state[0][0]["m"].dtype == np.float32


def test_a_parameter_without_a_gradient_stays():
    p = Parameter(np.ones(3))
    optim.AdamW([p]).step()
    np.testing.assert_array_equal(p.data, 1)


def test_warmup_and_cosine():
    optimizer = optim.SGD([{"params": [Parameter(np.ones(1))]}, {"params": [Parameter(np.ones(1))], "lr": 2.0}], lr=1.0)
    schedule, rates = optim.WarmupCosine(optimizer, 4, 12, final=0.1), []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == 2 * rates[-1]
        schedule.step()
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(rates[8], 0.55)
    np.testing.assert_allclose(rates[12:], 0.1)  # and beyond the end
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_clipping_scales_all_gradients_by_one_factor():
    params = parameters()
    for p in params:
        p.grad = Tensor(np.full(p.shape, 3.0))
    count = sum(p.data.size for p in params)
    assert optim.clip_grad_norm_(params, 1.0).item() == pytest.approx(3 * count**0.5)
    assert sum(float((p.grad.data**2).sum()) for p in params) == pytest.approx(1, rel=1e-5)
    assert optim.clip_grad_norm_(params, 100.0).item() == pytest.approx(1, rel=1e-5)
    params[0].grad.data[0, 0] = np.nan
    before = params[1].grad.numpy().copy()
    assert np.isnan(optim.clip_grad_norm_(params, 0.1).item())
    np.testing.assert_array_equal(params[1].grad.numpy(), before)


def test_clipping_divides_by_the_norm_plus_1e_6():
    """As PyTorch does: a norm of 1e-6 is scaled by max_norm / 2e-6."""
    p = Parameter(np.ones(1))
    p.grad = Tensor(np.array([1e-6]))
    optim.clip_grad_norm_(p, 1e-7)
    np.testing.assert_allclose(p.grad.numpy(), [1e-6 * 1e-7 / 2e-6], rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.SGD(p, lr=-1), "lr must not be negative"),
        (lambda p: optim.SGD(p, nesterov=True), "nesterov needs a momentum"),
        (lambda p: optim.AdamW(p, betas=(0.9, 1.0)), "betas must be"),
        (lambda p: optim.AdamW([*p, p[0]]), "in two groups, or twice"),
        (lambda p: optim.AdamW([]), "no parameters"),
        (lambda p: optim.AdamW([{"params": p, "momentum": 1}]), "unknown settings"),
        (lambda p: optim.AdamW([p[0] * 2]), "leaf Tensors"),
        (lambda p: optim.WarmupCosine(optim.SGD(p), 5, 4), "0 <= warmup_steps <= total_steps"),
        (lambda p: optim.clip_grad_norm_(p, 0), "max_norm must be above 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(parameters())
