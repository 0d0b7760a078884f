"""Optimizers against PyTorch in float64: parameters and state after several steps; states exchanged both ways."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, optim

torch = pytest.importorskip("torch")

CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "sgd maximize": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "maximize": True}),
    "adam": ("Adam", {}),
    "adam amsgrad": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.5)}),
    "adam maximize": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    "adam l2": ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}),
    "adam decoupled": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw amsgrad": ("AdamW", {"lr": 0.01, "amsgrad": True, "maximize": True, "betas": (0.8, 0.5)}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop all": ("RMSprop", {"alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.1, "eps": 1e-6}),
    "rmsprop maximize": ("RMSprop", {"weight_decay": 0.1, "maximize": True}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad maximize": ("Adagrad", {"weight_decay": 0.1, "maximize": True}),
    "adagrad all": ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1}),
}
SHAPES = (3, 2), (4,), ()


def both(name, options, seed=0, dtype=np.float64):
    """Parameters and optimizer of minigrad and of PyTorch."""
    values = [np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype) for shape in SHAPES]
    ours, theirs = [nn.Parameter(x.copy()) for x in values], [torch.nn.Parameter(torch.tensor(x)) for x in values]
    return ours, theirs, getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)


def run(ours, theirs, optimizers, steps=10, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for p, q in zip(ours, theirs, strict=True):
            grad = np.asarray(rng.standard_normal(p.shape), p.dtype)
            p.grad, q.grad = Tensor(grad), torch.tensor(grad)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES)
def test_optimizer_equals_pytorch(name, options):
    ours, theirs, *optimizers = both(name, options)
    run(ours, theirs, optimizers)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-12, atol=1e-14)
    actual, expected = (optimizer.state_dict() for optimizer in optimizers)
    assert actual["param_groups"][0]["params"] == expected["param_groups"][0]["params"]
    for i, state in expected["state"].items():
        for key, value in state.items():
            if value is not None:
                np.testing.assert_allclose(actual["state"][i][key].numpy(), value.numpy(), rtol=1e-12, atol=1e-14)
        assert set(actual["state"].get(i, {})) == {key for key, value in state.items() if value is not None}


@pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES)
def test_state_is_exchanged_with_pytorch(name, options):
    ours, theirs, optimizer, reference = both(name, options)
    run(ours, theirs, [optimizer, reference], 3)
    copies, others, second, other = both(name, {})
    for p, q, x in zip(copies, others, ours, strict=True):
        p.data[...], q.data[...] = x.data, torch.tensor(x.data)
    state = reference.state_dict()
    arrays = {
        i: {key: value.numpy() for key, value in x.items() if value is not None} for i, x in state["state"].items()
    }
    second.load_state_dict({**state, "state": arrays})
    own = optimizer.state_dict()
    tensors = {i: {key: torch.tensor(value.numpy()) for key, value in x.items()} for i, x in own["state"].items()}
    defaults = [{**other.param_groups[0], **group} for group in own["param_groups"]]
    other.load_state_dict({"state": tensors, "param_groups": defaults})
    for side in ([ours, theirs, [optimizer, reference]], [copies, others, [second, other]]):
        run(*side, steps=3, seed=2)
    for values in zip(ours, theirs, copies, others, strict=True):
        for value in values[1:]:
            np.testing.assert_allclose(value.detach().numpy(), values[0].numpy(), rtol=1e-12, atol=1e-14)


def test_state_of_other_parameters_is_refused():
    ours, theirs, optimizer, reference = both("Adam", {})
    run(ours, theirs, [optimizer, reference], 1)
    state, fresh = optimizer.state_dict(), optim.Adam(ours[:2])
    changes = [
        ({**state, "param_groups": state["param_groups"] * 2}, "number of groups: 2 in this state, 1 in this"),
        (state, "group 0: 3 in this state, 2 here"),
    ]
    for changed, message in changes:
        with pytest.raises(ValueError, match=message):
            fresh.load_state_dict(changed)
    differentiable = [{**state["param_groups"][0], "differentiable": True}]
    with pytest.raises(ValueError, match="differentiable, which is not supported"):
        optim.Adam(ours).load_state_dict({**state, "param_groups": differentiable})
    amsgrad = [{**state["param_groups"][0], "amsgrad": True}]
    with pytest.raises(ValueError, match="v_max is missing"):
        optim.Adam(ours).load_state_dict({**state, "param_groups": amsgrad})
    negative = [{**state["param_groups"][0], "eps": -1.0}]
    again = optim.Adam(ours)
    with pytest.raises(ValueError, match="eps must not be negative"):
        again.load_state_dict({**state, "param_groups": negative})
    assert again.param_groups[0]["eps"] == 1e-8 and again.state == [[{}, {}, {}]]


def test_closure_is_called_once_and_its_loss_returned():
    p = nn.Parameter(np.ones(2))
    optimizer = optim.SGD([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with minigrad.no_grad():
        assert optimizer.step(closure).item() == 2
    assert p.tolist() == [0, 0]


def test_added_group_is_optimized_with_its_options():
    first, second = nn.Parameter(np.ones(1)), nn.Parameter(np.ones(1))
    optimizer = optim.SGD([first], lr=0.1)
    optimizer.add_param_group({"params": second, "lr": 0.5})
    for p in (first, second):
        p.grad = Tensor(np.ones(1))
    optimizer.step()
    assert first.tolist() == [0.9] and second.tolist() == [0.5] and len(optimizer.state) == 2
    for group, error in [({"params": first}, ValueError), ({"params": {nn.Parameter(np.ones(1))}}, TypeError)]:
        with pytest.raises(error):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 2


def test_zero_grad_in_place():
    p = nn.Parameter(np.ones(2))
    p.grad = Tensor(np.ones(2))
    gradient, optimizer = p.grad.data, optim.SGD([p])
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.data is gradient and not gradient.any()
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_options_without_effect_are_accepted_and_others_refused(name):
    make, p = getattr(optim, name), [nn.Parameter(np.ones(1))]
    make(p, foreach=True, fused=None, maximize=False, differentiable=False)
    with pytest.raises(ValueError, match="differentiable=True is not supported"):
        make(p, differentiable=True)
    with pytest.raises(TypeError, match="unexpected option 'rate'"):
        make(p, rate=1)


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_momentum_without_dampening(options):
    for library, p in ((optim, nn.Parameter(np.ones(1))), (torch.optim, torch.nn.Parameter(torch.ones(1)))):
        with pytest.raises(ValueError, match="momentum"):
            library.SGD([p], nesterov=True, **options)


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_state_of_16_bit_parameters_is_float32(name, dtype):
    p = nn.Parameter(np.ones(3, dtype))
    optimizer = getattr(optim, name)([p])
    p.grad = Tensor(np.ones(3, dtype))
    optimizer.step()
    arrays = [x for x in optimizer.state[0][0].values() if not isinstance(x, int)]
    assert p.dtype == dtype and arrays and {x.dtype.name for x in arrays} == {"float32"}


def test_adam_under_a_schedule_reads_the_current_rate():
    """Adam hides weight decay from the update of AdamW behind a view of the group, not a copy."""
    p, q = nn.Parameter(np.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizers = optim.Adam([p], 0.1, weight_decay=0.1), torch.optim.Adam([q], 0.1, weight_decay=0.1)
    schedules = optim.lr_scheduler.StepLR(optimizers[0], 1), torch.optim.lr_scheduler.StepLR(optimizers[1], 1)
    for _ in range(3):
        p.grad, q.grad = Tensor(np.ones(2)), torch.ones(2, dtype=torch.float64)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-12)


# nn.utils -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_by_norm_equals_pytorch(norm_type, max_norm):
    ours, theirs, *_ = both("SGD", {})
    run(ours, theirs, [], 1)
    actual = nn.utils.clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-12)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)


def test_clipping_by_norm_refuses_a_norm_that_is_not_finite():
    p = nn.Parameter(np.ones(2))
    p.grad = Tensor(np.array([1.0, np.inf]))
    with pytest.raises(RuntimeError, match="norm of the gradients is inf"):
        nn.utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    with pytest.raises(ValueError, match="norm_type must be above 0"):
        nn.utils.clip_grad_norm_(p, 1.0, norm_type=0)
    assert p.grad.tolist() == [1, np.inf]


def test_clipping_by_value_equals_pytorch():
    ours, theirs, *_ = both("SGD", {})
    run(ours, theirs, [], 1)
    nn.utils.clip_grad_value_(ours, 0.3)
    torch.nn.utils.clip_grad_value_(theirs, 0.3)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())
    with pytest.raises(ValueError, match="clip_value"):
        nn.utils.clip_grad_value_(ours, -1)


def test_parameters_as_a_vector():
    ours, theirs, *_ = both("SGD", {})
    vector = nn.utils.parameters_to_vector(ours)
    np.testing.assert_array_equal(vector.numpy(), torch.nn.utils.parameters_to_vector(theirs).detach().numpy())
    vector.sum().backward()
    assert all((p.grad.numpy() == 1).all() for p in ours)
    nn.utils.vector_to_parameters(vector.detach() * 2, iter(ours))
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(p.numpy(), 2 * q.detach().numpy())
    with pytest.raises(ValueError, match="a vector of 11 elements"):
        nn.utils.vector_to_parameters(vector[1:], ours)
