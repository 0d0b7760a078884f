"""Module: names, state_dict, assignment, hooks, modes."""

import copy

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn
from minigrad import functional as F


class Net(nn.Module):
    def __init__(self):
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2))])
        self.scale = nn.Parameter(np.ones(2, np.float32))
        self.tied = self.scale

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x))).mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return x * self.scale


def images(n=2):
    return Tensor(np.random.default_rng(0).normal(size=(n, 3, 5, 5)).astype(np.float32))


def test_parameters_have_dotted_names():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == [
        "scale", "stem.weight", "norm.weight", "norm.bias", "blocks.0.weight", "blocks.0.bias",
        "blocks.1.0.weight", "blocks.1.0.bias", "blocks.1.2.weight", "blocks.1.2.bias",
    ]  # fmt: skip
    assert [name for name, _ in net.named_buffers()] == ["norm.running_mean", "norm.running_var"]
    assert len(list(net.modules())) == 9 and len(net.blocks) == 2 and net.blocks[1][2].weight.shape == (2, 4)


def test_state_dict_loads_into_another_model():
    minigrad.manual_seed(0)
    one, two = Net(), Net()
    one(images())
    two.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(one.eval()(images()).numpy(), two.eval()(images()).numpy())
    assert one.stem.weight.data is not two.stem.weight.data


def test_mismatches_are_listed_and_nothing_is_loaded():
    net = Net()
    before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    state = {name: value.numpy() + 1 for name, value in net.state_dict().items()}
    state["blocks.0.weight"] = np.zeros((5, 4))
    state["head.weight"] = state.pop("scale")
    del state["tied"]
    with pytest.raises(ValueError, match="none was loaded") as caught:
        net.load_state_dict(state)
    message = str(caught.value)
    assert "mismatch    blocks.0.weight: (5, 4) in the file, (4, 4) here" in message
    assert "missing     scale (2,)" in message and "unexpected  head.weight (2,)" in message
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    del state["blocks.0.weight"]
    net.load_state_dict(state, strict=False)
    np.testing.assert_array_equal(net.stem.weight.data, before["stem.weight"] + 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(["1", "2"]), r"unfit       last: <U1 with values that float32 cannot hold"),
        (np.array([1j, 2]), "unfit       last: complex128"),
        (np.array([{}, None]), "unfit       last: object"),
        ({"count": np.array(np.nan)}, "unfit       count: float64 with values that int64 cannot hold"),
        ({"count": np.array(1e30)}, "unfit       count"),
        (np.array([1e300, 2]), "unfit       last: float64 with values that float32 cannot hold"),
        ({"count": np.array(1.5)}, "unfit       count"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_out_of_range_are_refused_before_loading(values, message):
    net = nn.Module()
    net.first, net.last = nn.Parameter(np.zeros(2, np.float32)), nn.Parameter(np.zeros(2, np.float32))
    net.count = nn.Buffer(np.array(0))
    state = {"first": np.ones(2), "last": np.ones(2), "count": np.array(3.0)}
    net.load_state_dict(state)
    assert net.count.item() == 3 and net.count.dtype == np.int64
    state |= {"first": np.zeros(2)} | (values if isinstance(values, dict) else {"last": values})
    with pytest.raises(ValueError, match=message):
        net.load_state_dict(state)
    assert net.first.tolist() == [1, 1] and net.last.tolist() == [1, 1] and net.count.item() == 3


@pytest.mark.parametrize(("count", "end"), [(20, "missing     19.bias (1,)"), (21, "and 1 more"), (25, "and 5 more")])
def test_only_the_first_20_mismatches_are_listed(count, end):
    net = nn.Sequential(*(nn.LayerNorm(1) for _ in range(count)))
    state = {name: x for name, x in net.state_dict().items() if not name.endswith("bias")}
    with pytest.raises(ValueError, match="none was loaded") as caught:
        net.load_state_dict(state)
    _, *lines, _ = str(caught.value).split("\n")
    assert [line.split()[1] for line in lines[:20]] == [f"{i}.bias" for i in range(20)]
    assert lines[-1] == f"  {end}" and len(lines) == min(count, 21)


# Assignment -----------------------------------------------------------------------------------------------------------


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net.stem, "weight", net.stem.weight * 2), "'Tensor' as parameter 'weight' of Conv2d"),
        (lambda net: setattr(net.stem, "weight", ones(4, 3, 3, 3)), "'ndarray' as parameter 'weight'"),
        (lambda net: setattr(net.stem, "weight", nn.Buffer(ones(2))), "'Buffer' as parameter 'weight'"),
        (lambda net: setattr(net.stem, "weight", nn.Identity()), "'Identity' as parameter 'weight'"),
        (
            lambda net: setattr(net.stem, "bias", Tensor(ones(4))),
            r"'Tensor' as parameter 'bias' .*nn.Parameter or None expected",
        ),
        (
            lambda net: setattr(net, "stem", lambda x: x),
            r"'function' as child module 'stem' .*nn.Module or None expected",
        ),
        (lambda net: setattr(net, "stem", Tensor(ones(4))), "'Tensor' as child module 'stem'"),
        (
            lambda net: setattr(net.norm, "running_mean", 3.0),
            r"'float' as buffer 'running_mean' .*Tensor or None expected",
        ),
        (lambda net: setattr(net.norm, "running_mean", ones(4)), "'ndarray' as buffer 'running_mean'"),
    ],
)
def test_registered_name_refuses_another_kind(change, message):
    net = Net()
    before = {name: value.data for name, value in net.state_dict().items()}
    with pytest.raises(TypeError, match=f"cannot assign {message}"):
        change(net)
    assert all(value.data is before[name] for name, value in net.state_dict().items()) and len(before) == 13


def test_tensor_assigned_to_a_buffer_becomes_the_buffer():
    norm = nn.BatchNorm2d(2)
    mean = Tensor(np.float32([1, 2]))
    norm.running_mean = mean
    assert norm.running_mean is mean and [name for name, _ in norm.named_buffers()] == ["running_mean", "running_var"]
    assert norm.state_dict()["running_mean"].tolist() == [1, 2]
    norm.to(dtype="float64").load_state_dict({**norm.state_dict(), "running_mean": np.zeros(2)})
    assert norm.running_mean.tolist() == [0, 0] and norm.running_mean.dtype == np.float64
    norm.running_mean = None
    assert "running_mean" not in norm.state_dict()
    with pytest.raises(TypeError, match="as buffer 'running_mean'"):
        norm.running_mean = [1, 2]


def test_assigning_none_keeps_kind_and_order():
    layer = nn.Linear(2, 2)
    weight, layer.weight = layer.weight, None
    assert list(layer.state_dict()) == ["bias"]
    with pytest.raises(TypeError, match="as parameter 'weight'"):
        layer.weight = Tensor(ones(2, 2))
    layer.weight = weight
    assert list(layer.state_dict()) == ["weight", "bias"]
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    setattr(net, "0", None)
    with pytest.raises(TypeError, match="as child module '0'"):
        setattr(net, "0", F.relu)


def test_deleted_name_is_no_longer_registered():
    layer = nn.Linear(2, 2)
    del layer.weight
    assert list(layer.state_dict()) == ["bias"] and not hasattr(layer, "weight")
    layer.weight = Tensor(ones(2, 2))  # now a plain attribute, such as a computed weight
    assert list(layer.state_dict()) == ["bias"] and layer(Tensor(ones(1, 2))).shape == (1, 2)
    with pytest.raises(AttributeError):
        del layer.other


def test_parameter_replaces_any_kind():
    module = nn.Module()
    module.a, module.b, module.c, module.d = nn.Buffer(ones(1)), nn.Linear(1, 1), 3, nn.Parameter(ones(1))
    for name in "abcd":
        with minigrad.no_grad():
            setattr(module, name, nn.Parameter(ones(2)))
    assert [name for name, _ in module.named_parameters()] == ["d", "a", "b", "c"]
    assert not [*module.named_buffers(), *module.named_children()]
    module.e = nn.Buffer(ones(1))
    module.e = nn.Identity()
    assert [name for name, _ in module.named_children()] == ["e"] and not [*module.named_buffers()]


def test_copy_has_its_own_registered_names():
    layer = nn.Linear(2, 2)
    other = copy.copy(layer)
    other.extra = nn.Parameter(ones(1))
    del other.bias
    assert list(layer.state_dict()) == ["weight", "bias"] and list(other.state_dict()) == ["weight", "extra"]


@pytest.mark.parametrize("name", ["", "a.b"])
def test_invalid_names_are_refused(name):
    with pytest.raises(KeyError, match="must not contain"):
        setattr(nn.Module(), name, nn.Parameter(ones(1)))


# Shared parameters and num_batches_tracked ----------------------------------------------------------------------------


class Tied(nn.Module):
    """One parameter under two names, and one layer in two places."""

    def __init__(self):
        self.first = nn.Linear(2, 2, bias=False)
        self.again = self.first
        self.head = nn.Linear(2, 2)
        self.head.weight = self.first.weight


NAMES = ["first.weight", "again.weight", "head.weight", "head.bias"]


def test_state_dict_has_every_name_of_a_shared_parameter():
    net = Tied()
    assert list(net.state_dict()) == NAMES and len(list(net.modules())) == 3
    assert [name for name, _ in net.named_parameters()] == ["first.weight", "head.bias"]
    assert [name for name, _ in net.named_parameters(remove_duplicate=False)] == NAMES


@pytest.mark.parametrize("dropped", [(), NAMES[:1], NAMES[1:3], NAMES[:2]])
def test_any_name_of_a_shared_parameter_loads_it(dropped):
    source, net = Tied(), Tied()
    net.load_state_dict({name: x for name, x in source.state_dict().items() if name not in dropped})
    np.testing.assert_array_equal(net.first.weight.data, source.first.weight.data)
    assert net.head.weight is net.first.weight


def test_two_values_for_a_shared_parameter_are_refused():
    net = Tied()
    before, state = net.first.weight.numpy().copy(), {n: x.numpy() + 1 for n, x in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"differing   first\.weight and head\.weight"):
        net.load_state_dict({**state, "head.weight": state["head.weight"] + 1})
    with pytest.raises(ValueError, match=r"missing     first\.weight"):
        net.load_state_dict({"head.bias": state["head.bias"]})
    np.testing.assert_array_equal(net.first.weight.data, before)
    net.load_state_dict({name: x * np.nan for name, x in state.items()})


def test_num_batches_tracked_is_optional():
    net, cumulative = nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.BatchNorm2d(2, momentum=None))
    state = {**net.state_dict(), "0.num_batches_tracked": np.array(7)}
    net.load_state_dict(state)
    assert "0.num_batches_tracked" not in net.state_dict()
    cumulative.load_state_dict(state)
    cumulative.load_state_dict(net.state_dict())
    assert cumulative.state_dict()["0.num_batches_tracked"].item() == 7
    with pytest.raises(ValueError, match="unexpected  num_batches_tracked"):
        net.load_state_dict({**state, "num_batches_tracked": np.array(7)})


def test_modes_requires_grad_and_zero_grad():
    net = Net().eval()
    assert not any(module.training for module in net.modules())
    assert all(module.training for module in net.train().modules())
    net.requires_grad_(False)
    assert not net(images()).requires_grad
    net.requires_grad_(True)
    net(images()).sum().backward()
    assert net.scale.grad is not None
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_forward_hooks_may_replace_the_output():
    net, seen = Net(), []
    remove = net.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    net(images())
    assert seen[0][0] is net.blocks[0] and seen[0][1][0].shape == (2, 4) and seen[0][2].shape == (2, 4)
    remove()
    net.register_forward_hook(lambda module, inputs, output: output * 0)
    assert net(images()).sum().item() == 0 and len(seen) == 1


def test_to_casts_parameters():
    net = Net().to(dtype=np.float64)
    assert {p.dtype for p in net.parameters()} == {np.dtype(np.float64)}
    assert net(Tensor(images().numpy().astype(np.float64))).dtype == np.float64


def test_repr_shows_nested_modules():
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1))) == (
        "Sequential(\n  (0): Linear(2, 3, bias=True)\n  (1): Dropout(p=0.1)\n)"
    )
    assert "Conv2d(3, 4, kernel_size=(3, 3), stride=1, padding=1, groups=1, bias=False)" in repr(Net())


def test_to_device_and_back(device, tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm2d(4))
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.to(device)
    assert all(p.device.startswith(device) for p in model.parameters())
    model.load_state_dict({name: value + 1 for name, value in before.items()})
    model.to("cpu")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name] + 1)


def test_to_keeps_gradients_unless_parameters_change():
    layer = nn.Linear(3, 2)
    layer(x=Tensor(ones(3))).sum().backward()
    assert layer.to("cpu").weight.grad is not None
    assert layer.to(np.float64).weight.grad is None and layer.weight.dtype == np.float64


# PyTorch's everyday methods -------------------------------------------------------------------------------------------


def test_nested_modules_parameters_and_buffers_by_name():
    net = Net()
    assert net.get_submodule("blocks.1.2") is net.blocks[1][2] and net.get_submodule("") is net
    assert net.get_parameter("stem.weight") is net.stem.weight
    assert net.get_buffer("norm.running_mean") is net.norm.running_mean
    for get, name in ((net.get_submodule, "blocks.7"), (net.get_parameter, "norm.running_mean"), (net.get_buffer, "x")):
        with pytest.raises(AttributeError, match="has no"):
            get(name)


def test_children_are_direct_and_listed_once():
    net = Tied()
    assert [name for name, _ in net.named_children()] == ["first", "head"]
    assert list(net.children()) == [net.first, net.head]


def test_apply_visits_children_first():
    seen = []
    net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
    assert net.apply(lambda module: seen.append(type(module).__name__)) is net
    assert seen == ["Linear", "ReLU", "Sequential", "Sequential"]


def test_register_buffer_persistent_or_not():
    net = nn.Sequential(nn.Module())
    net[0].register_buffer("kept", Tensor(ones(1)))
    net[0].register_buffer("cache", Tensor(ones(2)), persistent=False)
    net[0].register_buffer("absent", None)
    assert list(net.state_dict()) == ["0.kept"] and [n for n, _ in net.named_buffers()] == ["0.kept", "0.cache"]
    net.load_state_dict({"0.kept": ones(1) * 2})
    assert net[0].kept.tolist() == [2] and net.half()[0].cache.dtype == np.float16
    net[0].register_buffer("cache", Tensor(ones(2)))
    assert list(net.state_dict()) == ["0.kept", "0.cache"]


@pytest.mark.parametrize(
    ("register", "error"),
    [
        (lambda m: m.register_buffer("forward", Tensor(ones(1))), KeyError),
        (lambda m: m.register_buffer("a.b", Tensor(ones(1))), KeyError),
        (lambda m: m.register_buffer("a", ones(1)), TypeError),
        (lambda m: m.register_buffer(1, Tensor(ones(1))), TypeError),
        (lambda m: m.register_parameter("a", Tensor(ones(1))), TypeError),
        (lambda m: m.register_parameter("training", nn.Parameter(ones(1))), KeyError),
        (lambda m: m.add_module("eval", nn.ReLU()), KeyError),
        (lambda m: m.add_module("a", F.relu), TypeError),
    ],
)
def test_invalid_registrations_are_refused(register, error):
    module = nn.Module()
    with pytest.raises(error):
        register(module)
    assert not module.state_dict() and not hasattr(module, "a")


def test_load_state_dict_returns_missing_and_unexpected_names():
    layer = nn.Linear(2, 2)
    found = layer.load_state_dict({"weight": ones(2, 2), "other": ones(1)}, strict=False)
    assert found == (["bias"], ["other"]) and found.missing_keys == ["bias"] and found.unexpected_keys == ["other"]
    assert layer.load_state_dict(layer.state_dict()) == ([], [])


def test_casts_return_the_module():
    layer = nn.Linear(2, 2)
    assert layer.half() is layer and layer.weight.dtype == np.float16
    assert layer.double().weight.dtype == np.float64 and layer.float().bias.dtype == np.float32
    assert layer.bfloat16().weight.dtype == "bfloat16" and layer.cpu() is layer


def test_zero_grad_in_place():
    layer = nn.Linear(2, 2)
    layer(Tensor(ones(1, 2))).sum().backward()
    gradient = layer.weight.grad.data
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad.data is gradient and not gradient.any()


def test_state_dict_with_prefix_and_variables():
    layer = nn.Linear(2, 2)
    state = layer.state_dict(prefix="fc.", keep_vars=True)
    assert list(state) == ["fc.weight", "fc.bias"] and state["fc.weight"] is layer.weight
    assert [n for n, _ in nn.Sequential(layer).named_parameters(prefix="net")] == ["net.0.weight", "net.0.bias"]
    assert not list(nn.Sequential(layer).parameters(recurse=False))
