"""Optimizers against their formulas, learning-rate schedules, gradient clipping, state."""

from itertools import permutations

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
            p.grad = Tensor(np.asarray(rng.normal(size=p.shape), p.dtype))
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


def test_each_group_has_its_own_options():
    still, moving = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = optim.AdamW([{"params": [still], "lr": 0.0}, {"params": [moving], "weight_decay": 0.0}], lr=0.1)
    run(optimizer, [still, moving], 1)
    np.testing.assert_array_equal(still.data, 1)
    np.testing.assert_allclose(abs(moving.data - 1), 0.1, rtol=1e-6)


def test_defaults_of_optimizers():
    adamw = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    sgd = {"lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False}
    for make, expected in [
        (optim.SGD, sgd),
        (optim.AdamW, {**adamw, "amsgrad": False, "maximize": False}),
        (optim.Muon, {**adamw, "momentum": 0.95, "muon": False}),
    ]:
        (group,) = make(parameters()).param_groups
        assert {name: value for name, value in group.items() if name != "params"} == expected
    scaler = optim.GradScaler()
    factors = scaler.get_scale(), scaler.growth_factor, scaler.backoff_factor, scaler.growth_interval
    assert factors == (65536, 2, 0.5, 2000)
    assert optim.EMA(Linear(1, 1)).decay == 0.9998


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, 0.1, 0.9), lambda p: optim.AdamW(p, 0.1)])
def test_restored_optimizer_continues_bit_for_bit(make):
    params, copies = parameters(), parameters()
    one, two = make(params), make(copies)
    one.param_groups[0]["lr"] = 0.05  # as after a schedule's step
    run(one, params, 3)
    for p, c in zip(params, copies, strict=True):
        c.data[...] = p.data
    two.load_state_dict({name: np.copy(value) for name, value in one.flat_state_dict().items()})
    run(one, params, 3, seed=2)
    run(two, copies, 3, seed=2)
    for p, c in zip(params, copies, strict=True):
        np.testing.assert_array_equal(p.data, c.data)
    other = make([Parameter(np.ones(7))])
    with pytest.raises(ValueError, match="number of parameters of group 0: 3 in this state, 1 in this optimizer"):
        other.load_state_dict(one.flat_state_dict())
    assert other.state == [[{}]]


def test_float32_parameters_stay_float32():
    p = Parameter(np.ones(3, np.float32))
    p.grad = Tensor(np.ones(3, np.float32))
    optimizer = optim.AdamW([p])
    optimizer.step()
    assert p.dtype == np.float32 and optimizer.state[0][0]["m"].dtype == np.float32


def test_parameter_without_gradient_is_unchanged():
    p = Parameter(np.ones(3))
    optim.AdamW([p]).step()
    np.testing.assert_array_equal(p.data, 1)


def test_warmup_is_linear_then_decay_is_a_cosine():
    optimizer = optim.SGD([{"params": [Parameter(np.ones(1))]}, {"params": [Parameter(np.ones(1))], "lr": 2.0}], lr=1.0)
    schedule, rates = optim.WarmupCosine(optimizer, 4, 12, final=0.1), []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == 2 * rates[-1]
        schedule.step()
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(rates[8], 0.55)
    np.testing.assert_allclose(rates[12:], 0.1)  # also beyond total_steps
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
    """As in PyTorch, gradients with a norm of 1e-6 are scaled by max_norm / 2e-6."""
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
        (lambda p: optim.AdamW([{"params": p, "momentum": 1}]), "unknown options"),
        (lambda p: optim.AdamW([p[0] * 2]), "leaf Tensors"),
        (lambda p: optim.WarmupCosine(optim.SGD(p), 5, 4), "0 <= warmup_steps <= total_steps"),
        (lambda p: optim.clip_grad_norm_(p, 0), "max_norm must be above 0"),
        (lambda p: optim.clip_grad_norm_(p, Tensor(np.nan)), "max_norm must be above 0"),
        (lambda p: optim.AdamW(p, lr="0.1"), "lr must be a number, got '0.1'"),
        (lambda p: optim.AdamW(p, betas=(0.9, Tensor(np.nan))), "betas must be"),
        (lambda p: optim.AdamW(p, betas=(0.9,)), "betas must be two"),
        (lambda p: optim.WarmupCosine(optim.SGD(p), 1, 4, final=-0.1), "final must not be negative"),
    ],
)
def test_invalid_options_raise(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(parameters())


# State of a schedule -------------------------------------------------------------------------------------------------


ORDER = "make", "load", "load optimizer"  # a schedule must be made before it is loaded


def two_groups():
    groups = [{"params": [Parameter(np.ones(1))]}, {"params": [Parameter(np.ones(1))], "lr": 2.0}]
    return optim.AdamW(groups, lr=1.0)


def schedule_of(optimizer):
    return optim.WarmupCosine(optimizer, 4, 12, final=0.1)


def rates_from(optimizer, schedule, steps=5):
    rates = []
    for _ in range(steps):
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


@pytest.mark.parametrize("done", [0, 3, 7, 12])
@pytest.mark.parametrize("order", [order for order in permutations(ORDER) if order.index("make") < order.index("load")])
def test_schedule_and_optimizer_load_in_any_order(order, done):
    one = two_groups()
    schedule = schedule_of(one)
    for _ in range(done):
        schedule.step()
    states = one.flat_state_dict(), schedule.state_dict()
    two = two_groups()
    for what in order:
        if what == "make":
            again = schedule_of(two)
        elif what == "load optimizer":
            two.load_state_dict(states[0])
        else:
            again.load_state_dict(states[1])
    assert [group["lr"] for group in two.param_groups] == [group["lr"] for group in one.param_groups]
    assert rates_from(two, again) == rates_from(one, schedule)


def test_second_schedule_starts_from_initial_lr():
    optimizer = two_groups()
    first = optim.WarmupCosine(optimizer, 0, 3)
    for _ in range(3):
        first.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]
    optim.WarmupCosine(optimizer, 0, 3)
    assert [group["lr"] for group in optimizer.param_groups] == [1, 2]
    given = optim.SGD([{"params": parameters(), "lr": 0.1, "initial_lr": 0.5}])
    optim.WarmupCosine(given, 0, 3)
    assert given.param_groups[0]["lr"] == 0.5


def test_old_state_without_initial_lr_keeps_the_current_lr():
    one, two = two_groups(), two_groups()
    schedule, again = schedule_of(one), schedule_of(two)
    run(one, [p for group in one.param_groups for p in group["params"]], 1)
    schedule.step()
    two.load_state_dict({k: v for k, v in one.flat_state_dict().items() if k[2:] not in ("initial_lr", "has_state")})
    again.load_state_dict(schedule.state_dict())
    assert rates_from(two, again) == rates_from(one, schedule)


@pytest.mark.parametrize("t", [-1, 1.5, np.nan])
def test_schedule_rejects_invalid_t(t):
    schedule = schedule_of(two_groups())
    with pytest.raises(ValueError, match="WarmupCosine: t"):
        schedule.load_state_dict({"t": np.asarray(t)})
    assert schedule.t == 0


# State of other parameters -------------------------------------------------------------------------------------------

MAKE = {
    "sgd": lambda p: optim.SGD(p, 0.1, 0.9),
    "adamw": lambda p: optim.AdamW(p, 0.1),
    "muon": lambda p: optim.Muon(optim.matrices_apart([{"params": p}]), 0.1),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize(
    "change",
    [
        lambda state: {k: v for k, v in state.items() if k.endswith((".lr", ".has_state"))},
        lambda state: {k: v for k, v in state.items() if k.endswith(".lr")},
        lambda state: {k: v for k, v in state.items() if not k.startswith("0.0.")},
        lambda state: {k: v[:-1] if k == "0.has_state" else v for k, v in state.items()},
        lambda state: {**state, "7.lr": np.asarray(0.1)},
        lambda state: {**state, "0.lr": np.asarray(np.nan)},
        lambda state: {**state, "0.lr": np.asarray(-1.0)},
        lambda state: {**state, "0.-1.m": state["0.lr"]},
        lambda state: {k: np.full_like(v, np.inf) if v.ndim == 2 else v for k, v in state.items()},
        lambda state: {k: v.astype(np.int64) if v.ndim == 2 else v for k, v in state.items()},
        lambda state: {k: v.astype(np.complex128) if v.ndim == 2 else v for k, v in state.items()},
        lambda state: {k: v[:, :1] if v.ndim == 2 else v for k, v in state.items()},
        lambda state: {k: v * 1e300 if v.ndim == 2 else v for k, v in state.items()},
    ],
)
def test_state_that_does_not_fit_changes_nothing(make, change):
    rng = np.random.default_rng(0)
    (one, params), (two, _) = (
        (make(params), params)
        for params in ([Parameter(rng.normal(size=s).astype(np.float32)) for s in ((3, 2), (4,))] for _ in range(2))
    )
    run(one, params, 2)
    before = two.state
    state = {k: np.float64(v) if v.dtype == np.float32 else np.array(v) for k, v in one.flat_state_dict().items()}
    with pytest.raises(ValueError, match=type(two).__name__):
        two.load_state_dict(change(state))
    assert two.state is before
    two.load_state_dict(state)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize(("ours", "kept"), [("float32", "float32"), ("float64", "float64"), ("float16", "float32")])
def test_state_is_cast_to_the_dtype_of_the_update(make, ours, kept):
    params, others = parameters(), [Parameter(p.data.astype(ours)) for p in parameters()]
    one, two = make(params), make(others)
    run(one, params, 2)
    two.load_state_dict(one.flat_state_dict())
    arrays = [x for states in two.state for state in states for x in state.values() if not isinstance(x, int)]
    assert len(arrays) >= 3 and {x.dtype.name for x in arrays} == {kept}


def test_state_dict_says_which_parameters_have_state():
    still, moving = parameters()[:2]
    one, two = optim.AdamW([still, moving]), optim.AdamW(parameters()[:2])
    run(one, [moving], 1)
    two.load_state_dict(one.flat_state_dict())
    assert two.state[0][0] == {} and two.state[0][1]["step"] == 1


# 16-bit parameters and gradients -------------------------------------------------------------------------------------


def in_16_bits(values, dtype):
    return Tensor(np.float32(values)).to(dtype=dtype).data


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_16_bit_parameters_follow_float32(make, dtype):
    """The updates agree also if the squares of the gradients and eps underflow in float16."""
    start, grads = [[1.0, -2.0], [0.5, 3.0]], [[[1e-6, 300.0], [0.0, -6e4]], [[0.0, 1.0], [1e-5, -1.0]]]
    half, single = (Parameter(in_16_bits(start, d)) for d in (dtype, "float32"))
    optimizers = make([half]), make([single])
    for grad in grads:
        half.grad = Tensor(in_16_bits(grad, dtype))
        single.grad = half.grad.float()
        single.data[...] = half.data.astype(np.float32)  # rounding errors do not accumulate
        for optimizer in optimizers:
            optimizer.step()
        assert half.dtype == dtype
        np.testing.assert_array_equal(half.data, single.data.astype(half.dtype))
        assert np.isfinite(single.data).all()
    kept = [x.dtype for x in optimizers[0].state[0][0].values() if not isinstance(x, int)]
    assert set(kept) == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [1e-6, 300.0, 6e4])
def test_clipping_16_bit_gradients(dtype, value):
    p = Parameter(in_16_bits(np.ones(20), dtype))
    p.grad = Tensor(in_16_bits(np.full(20, value), dtype))
    exact = p.grad.data.astype(np.float64)
    norm = np.linalg.norm(exact)
    found = optim.clip_grad_norm_([p], norm / 2)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.data, in_16_bits(norm, dtype))
    np.testing.assert_allclose(p.grad.data.astype(np.float64), exact / (2 + 2e-6 / norm), rtol=2**-8, atol=3e-8)


@pytest.mark.parametrize("size", [1e30, 1e-30, 1.0])
def test_norm_if_squares_overflow_or_underflow_float32(size):
    p = Parameter(np.zeros((2, 8), np.float32))
    p.grad = Tensor(np.full((2, 8), size, np.float32))
    found = optim.clip_grad_norm_(p, 2.0)
    assert found.dtype == np.float32 and found.shape == ()
    np.testing.assert_allclose(found.item(), 4 * size, rtol=1e-6)
    np.testing.assert_allclose(p.grad.data, min(size, 0.5), rtol=1e-6)


def test_norm_of_several_dtypes_has_the_widest_dtype():
    params = [Parameter(in_16_bits(np.ones(2), dtype)) for dtype in ("float16", "bfloat16", "float64")]
    for p in params:
        p.grad = Tensor(p.data.copy())
    assert optim.clip_grad_norm_(params, 1.0).dtype == np.float64
    assert optim.clip_grad_norm_(params[:2], 1.0).dtype == np.float32


# Options that are NumPy scalars or Tensors ---------------------------------------------------------------------------

AS = [np.float64, np.float32, np.asarray, Tensor, lambda x: Tensor(np.float64([x]))]


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize(
    "make",
    [
        lambda p, of: optim.SGD(p, of(0.5), of(0.25), weight_decay=of(0.125), nesterov=True),
        lambda p, of: optim.AdamW(p, of(0.5), (of(0.5), of(0.75)), of(0.125), of(0.25)),
        lambda p, of: optim.Muon([{"params": p, "muon": True}], of(0.5), of(0.75), weight_decay=of(0.25)),
    ],
)
def test_numpy_and_tensor_options_keep_float32(make, kind):
    found, expected = (Parameter(np.float32([[1, 2], [3, 5]])) for _ in range(2))
    for p, of in ((found, kind), (expected, float)):
        optimizer = make([p], of)
        schedule = optim.WarmupCosine(optimizer, 2, 4, of(0.5))
        for _ in range(3):
            p.grad = Tensor(p.data.copy())
            optim.clip_grad_norm_([p], of(0.5))
            optimizer.step()
            schedule.step()
        assert p.dtype == np.float32 and type(optimizer.param_groups[0]["lr"]) is float
        assert {x.dtype for x in optimizer.state[0][0].values() if not isinstance(x, int)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found.data, expected.data)


def test_tensor_learning_rate_can_be_changed_and_saved():
    p, rate = Parameter(np.float32([1])), Tensor(0.5)
    optimizer = optim.SGD([p], rate)
    for change, expected in (
        (lambda: None, 0.5),
        (lambda: optimizer.param_groups[0].update(lr=np.float64(0.25)), 0.25),
    ):
        change()
        p.data[...], p.grad = 1, Tensor(np.float32([1]))
        optimizer.step()
        assert p.item() == 1 - expected and p.dtype == np.float32
        assert optimizer.flat_state_dict()["0.lr"] == expected


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("kind", [float, np.float32, Tensor])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
def test_negative_infinite_and_nan_options_raise(value, kind, name):
    for groups, settings in ((parameters(), {name: kind(value)}), ([{"params": parameters(), name: kind(value)}], {})):
        with pytest.raises(ValueError, match=f"AdamW: {name} must not be negative, infinite or NaN"):
            optim.AdamW(groups, **settings)


def test_repr_shows_the_options_of_each_group():
    w, v = Tensor(np.zeros(2), requires_grad=True), Tensor(np.zeros(2), requires_grad=True)
    lines = repr(optim.SGD([{"params": [w]}, {"params": [v], "lr": 1.0}], lr=0.1)).splitlines()
    assert lines[0] == "SGD (" and lines[-1] == ")" and "Parameter Group 0" in lines
    second = lines.index("Parameter Group 1")
    assert "    lr: 0.1" in lines[:second] and "    lr: 1.0" in lines[second:] and not any("params" in x for x in lines)
