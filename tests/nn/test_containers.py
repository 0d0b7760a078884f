"""Containers: slicing, renaming, registered names, refused elements."""

import numpy as np
import pytest

from minigrad import Tensor, nn


def kinds(container):
    return [type(module).__name__ for module in container]


def names(container):
    return [name for name, _ in container.named_children()]


def test_list_operations_keep_names_in_order():
    layers = nn.ModuleList([nn.ReLU()])
    assert layers.append(nn.Tanh()) is layers and layers.extend([nn.SiLU(), nn.GELU()]) is layers
    layers.insert(1, nn.Sigmoid())
    assert kinds(layers) == ["ReLU", "Sigmoid", "Tanh", "SiLU", "GELU"] and names(layers) == list("01234")
    assert kinds([layers.pop(), layers.pop(0)]) == ["GELU", "ReLU"]
    del layers[-1]
    layers[0] = nn.Identity()
    assert kinds(layers) == ["Identity", "Tanh"] and names(layers) == ["0", "1"]
    layers += [nn.ReLU()]
    assert kinds(layers + layers[1:]) == ["Identity", "Tanh", "ReLU", "Tanh", "ReLU"]
    assert type(layers[:1]) is nn.ModuleList and layers[:1][0] is layers[0]
    with pytest.raises(IndexError):
        layers[3]


def test_slice_of_a_sequential_shares_layers_and_names():
    net = nn.Sequential({"fc": nn.Linear(4, 3), "act": nn.ReLU(), "head": nn.Linear(3, 2)})
    part = net[1:]
    assert list(part.state_dict()) == ["head.weight", "head.bias"] and part[1] is net.head
    x = Tensor(np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(part(net[:1](x)).numpy(), net(x).numpy())
    assert type(net + part) is nn.Sequential and len(net + part) == 5


def test_module_dict_is_a_dict():
    layers = nn.ModuleDict(modules={"a": nn.Linear(2, 2), "b": nn.ReLU()})
    layers["c"] = nn.Tanh()
    assert list(layers) == ["a", "b", "c"] == list(layers.keys()) and len(layers) == 3 and "a" in layers
    assert layers.pop("b") is not None and "b" not in layers and list(layers.state_dict()) == ["a.weight", "a.bias"]
    assert layers == layers and layers != nn.ModuleDict() and hash(layers) == hash(layers)
    with pytest.raises(KeyError):
        layers["b"]
    with pytest.raises(KeyError, match="'items' already exists"):
        layers["items"] = nn.ReLU()
    layers.clear()
    assert not layers.state_dict() and len(layers) == 0


def test_containers_of_parameters_register_tensors():
    values = nn.ParameterList([Tensor(np.ones(2)), nn.Parameter(np.zeros(3))])
    values.append(Tensor(np.ones(1)))
    assert list(values.state_dict()) == ["0", "1", "2"] and all(isinstance(p, nn.Parameter) for p in values)
    assert [p.shape for p in values[1:]] == [(3,), (1,)] and len(list(values.parameters())) == 3
    named = nn.ParameterDict({"a": Tensor(np.ones(2))})
    assert list(named.state_dict()) == ["a"] and named["a"].requires_grad and named.a is named["a"]


@pytest.mark.parametrize(
    "change",
    [
        lambda: nn.ModuleList([1]),
        lambda: nn.ModuleList([nn.ReLU()]).insert(0, len),
        lambda: nn.Sequential(nn.ReLU()).append("x"),
        lambda: nn.ModuleDict({"a": 1}),
        lambda: nn.ParameterList([1.0]),
        lambda: nn.ParameterDict({"a": np.ones(1)}),
        lambda: nn.ModuleList([nn.ReLU()]).__setitem__(0, 3),
    ],
)
def test_elements_of_another_kind_are_refused(change):
    with pytest.raises(TypeError):
        change()
