"""EMA against its formula; `applied`; state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from minigrad.nn.module import Buffer


class Counting(nn.Module):
    """Parameters, a floating-point buffer, which is averaged, and an integer buffer, which is copied."""

    def __init__(self, dtype=np.float64):
        self.layer = nn.Linear(3, 2).to(dtype=dtype)
        self.mean = Buffer(np.zeros(2, dtype))
        self.count = Buffer(np.zeros((), np.int64))


def values(model):
    return {name: np.array(tensor.numpy()) for name, tensor in model.state_dict().items()}


def change(model, rng):
    """Change parameters and buffers in place, as an optimizer step and a forward do."""
    for name, tensor in model.state_dict().items():
        if name == "count":
            tensor.data += 1
        else:
            tensor.data[...] = Tensor(rng.standard_normal(tensor.shape).astype(tensor.dtype), device=tensor.device).data


@given(st.floats(0, 0.9999), st.booleans(), st.integers(0, 12), st.integers(0, 99))
def test_ema_follows_its_formula(decay, warmup, steps, seed):
    model, rng = Counting(), np.random.default_rng(seed)
    ema, expected = optim.EMA(model, decay, warmup=warmup), values(model)
    for t in range(steps):
        change(model, rng)
        ema.update()
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        for name, x in values(model).items():
            expected[name] = x if name == "count" else d * expected[name] + (1 - d) * x
    with ema.applied():
        found = values(model)
    assert ema.updates == steps and found["count"] == steps
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-12, atol=1e-14, err_msg=name)


def test_ema_on_every_device(device):
    model, rng = Counting(np.float32).to(device), np.random.default_rng(0)
    ema, expected = optim.EMA(model, 0.9), values(model)
    for _ in range(3):
        change(model, rng)
        ema.update()
        for name, x in values(model).items():
            expected[name] = x if name == "count" else 0.9 * expected[name] + (1 - 0.9) * x
    assert all(average.dtype == model.state_dict()[name].dtype for name, average in ema.averages.items())
    for name, x in ema.state_dict().items():
        np.testing.assert_allclose(x, expected[name] if name != "updates" else 3, rtol=1e-5, atol=1e-6, err_msg=name)


def test_average_of_a_constant_is_the_constant():
    """With decay · ema + (1 - decay) · x in float32, the error would be 1/6000."""
    model = Counting(np.float32)
    ema = optim.EMA(model, 0.9999)
    for average in ema.averages.values():
        average[...] = 0
    model.layer.weight.data[...] = 3
    for _ in range(200):
        ema.update()
    weight = ema.state_dict()["layer.weight"]
    np.testing.assert_allclose(weight, 3 * (1 - 0.9999**200), rtol=1e-5)
    ema.averages["layer.weight"][...] = 3
    ema.update()
    np.testing.assert_array_equal(ema.averages["layer.weight"], 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_averages_of_16_bit_parameters_are_in_float32(dtype):
    """0.001 of the difference underflows in 16 bits."""
    model = nn.Linear(3, 2).to(dtype=dtype)
    model.weight.data[...] = 1
    ema = optim.EMA(model, 0.999)
    model.weight.data[...] = 2
    for _ in range(100):
        ema.update()
    np.testing.assert_allclose(ema.state_dict()["weight"], 2 - 0.999**100, rtol=1e-5)
    with ema.applied():
        assert model.weight.dtype == dtype
        np.testing.assert_allclose(model.weight.float().numpy(), 2 - 0.999**100, rtol=2**-8)


def test_applied_restores_the_parameters(device):
    model = Counting().to(device)
    ema, before = optim.EMA(model, 0.5), [tensor.data for tensor in model.state_dict().values()]
    change(model, np.random.default_rng(0))
    expected = values(model)
    with pytest.raises(ZeroDivisionError), ema.applied(), ema.applied():
        assert (values(model)["layer.weight"] != expected["layer.weight"]).all()
        1 / 0  # noqa: B018
    after = [tensor.data for tensor in model.state_dict().values()]
    assert all(a is b for a, b in zip(after, before, strict=True))  # a CUDA graph reads the same addresses
    for name, x in values(model).items():
        np.testing.assert_array_equal(x, expected[name])


def test_restored_ema_continues_bit_for_bit(device):
    model, rng = Counting(np.float32).to(device), np.random.default_rng(0)
    one, two = (optim.EMA(model, 0.99, warmup=True) for _ in range(2))
    for _ in range(3):
        change(model, rng)
        one.update()
    two.load_state_dict({name: np.array(value) for name, value in one.state_dict().items()})
    change(model, rng)
    one.update()
    two.update()
    found = two.state_dict()
    for name, x in one.state_dict().items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("mean"), r"missing     mean \(2,\)"),
        (lambda state: state.pop("updates"), r"missing     updates \(\)"),
        (lambda state: state.update(other=np.ones(3)), r"unexpected  other \(3,\)"),
        (lambda state: state.update(mean=np.ones(1)), r"mismatch    mean: \(1,\) in the state, \(2,\) here"),
        (lambda state: state.update(mean=np.array([1j, 2])), "unfit       mean: complex128 with values that float64"),
        (lambda state: state.update(mean=np.array([np.nan, 2])), "unfit       mean: has values that are NaN"),
        (lambda state: state.update(count=np.array(1.5)), "unfit       count: float64 with values that int64 cannot"),
        (lambda state: state.update(updates=np.array(-1)), "unfit       updates: must be a whole number from 0 on"),
    ],
)
def test_state_of_another_model_raises(edit, message):
    ema = optim.EMA(Counting())
    state = {name: np.array(value) + 1 for name, value in ema.state_dict().items()}
    edit(state)
    before = {name: np.array(value) for name, value in ema.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        ema.load_state_dict(state)
    for name, x in ema.state_dict().items():
        np.testing.assert_array_equal(x, before[name])


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_model_on_another_device_raises(device):
    model = nn.Linear(2, 2)
    ema = optim.EMA(model)
    model.to(device)
    with pytest.raises(RuntimeError, match=r"weight is on cuda:0, its average on cpu"):
        ema.update()
    model.to("cpu")
    ema.update()


def test_invalid_options_raise():
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="decay must be from 0 to below 1"):
            optim.EMA(nn.Linear(2, 2), decay)
    with pytest.raises(ValueError, match="got none"):
        optim.EMA(nn.ReLU())
    model = nn.Linear(2, 2)
    model.updates = Buffer(np.zeros(1))
    with pytest.raises(ValueError, match="one named `updates`"):
        optim.EMA(model)


def change_shape(model):
    model.layer.weight.data = np.ones((5, 3))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: setattr(model, "layer", nn.Linear(3, 5)), r"layer.weight is \(5, 3\), its average \(2, 3\)"),
        (change_shape, r"layer.weight is \(5, 3\), its average \(2, 3\)"),
        (
            lambda model: setattr(model, "layer", nn.Linear(3, 2).to(dtype="float64")),
            "layer.weight .* another parameter",
        ),
        (lambda model: setattr(model.layer, "bias", None), r"layer.bias \(2,\) is gone"),
        (lambda model: setattr(model, "more", nn.Linear(1, 1)), r"more.weight \(1, 1\) is new"),
        (lambda model: model.to(dtype="float32"), "layer.weight is float32, its average float64"),
    ],
)
def test_changed_model_raises(edit, message):
    """`update` and `applied` refuse parameters that the model no longer has."""
    model = Counting()
    ema = optim.EMA(model, 0.5)
    edit(model)
    for use in (ema.update, lambda: ema.applied().__enter__()):
        with pytest.raises(RuntimeError, match=message):
            use()
    assert ema.updates == 0
    optim.EMA(model).update()


def test_buffer_can_be_replaced_and_dtype_cast_and_restored():
    model = Counting(np.float32)
    ema = optim.EMA(model, 0.5)
    model.mean = Buffer(np.float32([2, 4]))
    model.to(dtype="float16")
    ema.update()
    model.to(dtype="float32")
    ema.update()
    np.testing.assert_array_equal(ema.averages["mean"], [1.5, 3])
