"""Modules and optimizers as in PyTorch: state_dict, attribute assignment, learning rates, schedules."""

import numpy as np
import pytest

from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.parallel import Shards

torch = pytest.importorskip("torch")


def pair_of_norms(momentum):
    ours, theirs = nn.BatchNorm2d(3, momentum=momentum), torch.nn.BatchNorm2d(3, momentum=momentum)
    return nn.Sequential(nn.Conv2d(3, 3, 1), ours), torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), theirs)


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_batch_norm_exchanges_its_state_with_pytorch(momentum):
    ours, theirs = pair_of_norms(momentum)
    rng = np.random.default_rng(0)
    for start in (True, False):
        if start:
            theirs(torch.tensor(rng.standard_normal((4, 3, 2, 2)), dtype=torch.float32))
            ours.load_state_dict({name: x.numpy() for name, x in theirs.state_dict().items()})
        for _ in range(3):
            x = rng.standard_normal((4, 3, 2, 2)).astype(np.float32)
            ours(Tensor(x)), theirs(torch.tensor(x))
        actual, expected = ours.state_dict(), theirs.state_dict()
        names = [name for name in expected if momentum is None or not name.endswith("num_batches_tracked")]
        assert list(actual) == names
        for name in names:
            np.testing.assert_allclose(actual[name].numpy(), expected[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
        theirs.load_state_dict({name: torch.tensor(x.numpy()) for name, x in actual.items()})


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_batch_norm_of_threads_equals_pytorch_on_the_batch(threads):
    x, grad = (a.reshape(23, 3, 4, 4) for a in np.random.default_rng(0).standard_normal((2, 23 * 48)))
    x, grad = (x * [[[0.1]], [[1]], [[10]]] + [[[20]], [[300]], [[-1000]]]).astype(np.float32), grad.astype(np.float32)

    def in_torch(dtype):
        norm, images = torch.nn.BatchNorm2d(3).to(dtype), torch.tensor(x, dtype=dtype, requires_grad=True)
        y = norm(images)
        y.backward(torch.tensor(grad, dtype=dtype))
        found = y, images.grad, norm.running_mean, norm.running_var, norm.weight.grad, norm.bias.grad
        return [a.detach().numpy() for a in found]

    norm = nn.BatchNorm2d(3)

    def work(x, grad):
        images = Tensor(x, requires_grad=True)
        y = norm(images)
        y.backward(Tensor(grad))
        return y.numpy(), images.grad.numpy()

    with Shards(threads) as shards:
        ours = [np.concatenate(parts) for parts in zip(*shards.run(work, x, grad), strict=True)]
    ours += [a.numpy() for a in (norm.running_mean, norm.running_var, norm.weight.grad, norm.bias.grad)]
    for found, theirs, exact in zip(ours, in_torch(torch.float32), in_torch(torch.float64), strict=True):
        assert found.dtype == np.float32
        assert np.abs(found - exact).max() <= 2 * np.abs(theirs - exact).max() + 1e-6 * np.abs(exact).max()


def test_convert_sync_batchnorm_as_in_pytorch():
    def network(library):
        inner = library.Sequential(library.Conv2d(3, 4, 1), library.BatchNorm2d(4, affine=False, momentum=None))
        return library.Sequential(inner, library.BatchNorm2d(4, eps=1e-3, momentum=0.3), library.GroupNorm(2, 4)).eval()

    ours, theirs = (n.SyncBatchNorm.convert_sync_batchnorm(network(n)) for n in (nn, torch.nn))
    kinds = [[(name, type(part).__name__) for name, part in net.named_modules()] for net in (ours, theirs)]
    assert kinds[0] == kinds[1] and not any(part.training for part in ours.modules())
    assert [(p.eps, p.momentum) for p in (ours[0][1], ours[1])] == [
        (p.eps, p.momentum) for p in (theirs[0][1], theirs[1])
    ]
    assert set(theirs.state_dict()) - set(ours.state_dict()) == {"1.num_batches_tracked"}  # not with a momentum
    before = nn.BatchNorm1d(2)
    after = nn.SyncBatchNorm.convert_sync_batchnorm(before)
    assert all(getattr(after, name) is getattr(before, name) for name in ("weight", "bias", "running_var"))
    assert nn.SyncBatchNorm.convert_sync_batchnorm(after) is after


def network_with_tied_weights(library, parameter):
    net = library.Sequential(library.Linear(2, 2), library.Linear(2, 2), library.BatchNorm2d(2))
    getattr(net, "1").weight = getattr(net, "0").weight
    net.again = getattr(net, "0")
    net.scale = parameter
    return net


def test_names_and_order_in_state_dict():
    ours = network_with_tied_weights(nn, nn.Parameter(np.ones(1, np.float32)))
    theirs = network_with_tied_weights(torch.nn, torch.nn.Parameter(torch.ones(1)))
    names = [name for name in theirs.state_dict() if not name.endswith("num_batches_tracked")]
    assert list(ours.state_dict()) == names
    for remove_duplicate in (True, False):
        actual = [name for name, _ in ours.named_parameters(remove_duplicate=remove_duplicate)]
        assert actual == [name for name, _ in theirs.named_parameters(remove_duplicate=remove_duplicate)]
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    ours.load_state_dict({name: x.numpy() for name, x in theirs.state_dict().items()})
    np.testing.assert_array_equal(ours[1].weight.numpy(), theirs[0].weight.detach().numpy())


def module_and_values(library, tensor, parameter, buffer):
    module = library.Module()
    module.plain, module.parameter, module.buffer, module.child = 3, parameter(), buffer(), library.Identity()
    module.absent_parameter, module.absent_buffer, module.absent_child = parameter(), buffer(), library.Identity()
    module.absent_parameter = module.absent_buffer = module.absent_child = None
    values = {
        "tensor": tensor(), "parameter": parameter(), "buffer": buffer(), "module": library.Identity(),
        "function": len, "number": 3, "none": None,
    }  # fmt: skip
    return module, values


def modules():
    array = np.ones(1, np.float32)
    theirs = torch.nn.Module, lambda: torch.ones(1), lambda: torch.nn.Parameter(torch.ones(1))
    return (
        module_and_values(nn, lambda: Tensor(array), lambda: nn.Parameter(array), lambda: nn.Buffer(array)),
        module_and_values(torch.nn, *theirs[1:], lambda: torch.nn.Buffer(torch.ones(1))),
    )


ATTRIBUTES = ["plain", *(f"{kind}{name}" for kind in ("", "absent_") for name in ("parameter", "buffer", "child"))]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute_assignment_equals_pytorch(name):
    for value in modules()[0][1]:
        results = []
        for module, values in modules():
            try:
                setattr(module, name, values[value])
                error = None
            except (TypeError, KeyError) as refusal:
                error = type(refusal)
            named = [*module.named_parameters(), *module.named_buffers(), *module.named_children()]
            results.append((error, [name for name, _ in named], list(module.state_dict())))
        if (name, value) == ("plain", "buffer"):
            # minigrad turns the attribute into a buffer; PyTorch requires `del` first
            assert [error for error, *_ in results] == [None, KeyError]
        else:
            assert results[0] == results[1], (name, value)


@pytest.mark.parametrize("eps", [1e-12, 1e-25, 1e-30])
def test_normalize_with_a_small_eps(eps):
    values = np.float32([[0, 0], [1e-25, 1e-26], [3, 4], [1e-10, 0]])
    ours, theirs = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    actual, expected = F.normalize(ours, eps=eps), torch.nn.functional.normalize(theirs, eps=eps)
    np.testing.assert_allclose(actual.numpy(), expected.detach().numpy(), rtol=1e-6)
    (actual * 2).sum().backward()
    (expected * 2).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_clip_grad_norm_and_the_dtype_of_the_norm(dtype):
    values = np.random.default_rng(0).standard_normal((2, 30))
    ours, theirs = [], []
    for grad in values:
        theirs.append(torch.nn.Parameter(torch.zeros(30, dtype=getattr(torch, dtype))))
        theirs[-1].grad = torch.tensor(grad).to(theirs[-1].dtype)
        ours.append(nn.Parameter(Tensor(np.zeros(30)).to(dtype=dtype)))
        ours[-1].grad = Tensor(grad).to(dtype=dtype)
    actual, expected = optim.clip_grad_norm_(ours, 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert str(actual.dtype) == str(expected.dtype).removeprefix("torch.") and actual.shape == ()
    tolerance = {"float16": 2**-9, "bfloat16": 2**-6}.get(dtype, 1e-5)
    np.testing.assert_allclose(actual.item(), expected.item(), rtol=tolerance)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.double().numpy(), b.grad.double().numpy(), rtol=2 * tolerance, atol=1e-6)


@pytest.mark.parametrize("zero_d", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_learning_rates_that_are_0d_tensors(name, zero_d):
    settings = {"SGD": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, "AdamW": {"weight_decay": 0.1}}[name]
    start = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    ours, theirs = nn.Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(optim, name)([ours], lr=Tensor(0.1) if zero_d else 0.1, **settings)
    torch_optimizer = getattr(torch.optim, name)([theirs], lr=torch.tensor(0.1) if zero_d else 0.1, **settings)
    torch_schedule = torch.optim.lr_scheduler.LambdaLR(
        torch_optimizer, (schedule := optim.WarmupCosine(optimizer, 2, 6)).factor
    )
    for _ in range(6):
        ours.grad, theirs.grad = Tensor(ours.numpy() * 2), theirs.detach() * 2
        for step in (optimizer, torch_optimizer, schedule, torch_schedule):
            step.step()
        np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=2e-6, atol=1e-7)
        assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(
            float(torch_optimizer.param_groups[0]["initial_lr"])
        )
