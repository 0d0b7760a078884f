"""Leaves: setting requires_grad, copying, pickling."""

import copy
import pickle

import numpy as np
import pytest

from minigrad import Tensor, nn, optim


def leaf(*values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def test_requires_grad_false_keeps_gradient_and_hooks():
    p = leaf(1.0, 2.0)
    p.register_hook(lambda grad: grad * 3)
    p.sum().backward()
    p.requires_grad_(False)
    assert p.grad.tolist() == [3, 3] and not p.requires_grad and p.is_leaf and not (p * 2).requires_grad
    p.requires_grad_().sum().backward()
    assert p.grad.tolist() == [6, 6]
    p.requires_grad = False
    p.grad = None
    assert p.grad is None


def test_gradients_of_frozen_leaves_are_dropped():
    """As in PyTorch, an earlier graph accumulates gradients again once requires_grad is True again."""
    p, q = leaf(1.0, 2.0), leaf(1.0, 1.0)
    first, second = (p * p * q).sum(), (p * 2).sum()
    p.requires_grad_(False)
    first.backward()
    assert p.grad is None and q.grad.tolist() == [1, 4]
    p.requires_grad_(True)
    second.backward()
    assert p.grad.tolist() == [2, 2]


def test_freezing_a_module_keeps_its_gradients():
    model = nn.Linear(2, 1)
    model(Tensor([[1.0, 2.0]])).sum().backward()
    model.requires_grad_(False)
    model.requires_grad_(True)
    assert model.weight.grad.tolist() == [[1, 2]]


def test_deepcopy_of_a_graph_is_refused():
    x = leaf(1.0, 2.0)
    y = x * 2
    module = nn.Linear(2, 2)
    module.cache = y
    for holder in (y, [x, y], module):
        with pytest.raises(RuntimeError, match=r"Only Tensors created explicitly .* output of <Mul>"):
            copy.deepcopy(holder)
    for _ in range(3000):
        y = y + 1
    with pytest.raises(RuntimeError, match="<Add>"):
        copy.deepcopy(y)
    assert copy.deepcopy(y.detach()).tolist() == y.tolist()


def test_deepcopy_of_leaves_copies_values_and_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm2d(2))
    first, second, norm = model
    second.weight = first.weight  # tied
    first.weight.note = ["copied"]
    first.weight.register_hook(lambda grad: grad * 100)
    second(first(Tensor([[1.0, 2.0]]))).sum().backward()
    first.bias.requires_grad_(False)
    a, b, c = copied = copy.deepcopy(model)
    assert a.weight is b.weight and isinstance(a.weight, nn.Parameter) and a.weight.note == ["copied"]
    assert a.weight.grad.tolist() == first.weight.grad.tolist() and not a.bias.requires_grad
    assert a.bias.grad.tolist() == first.bias.grad.tolist() and c.running_mean.data is not norm.running_mean.data
    before = first.weight.numpy().copy(), first.weight.grad.numpy().copy()
    optim.SGD(copied.parameters(), 1.0).step()
    copied.zero_grad()
    a.weight.sum().backward()
    assert a.weight.grad.tolist() == [[1, 1], [1, 1]]  # without the hook
    np.testing.assert_array_equal(first.weight.numpy(), before[0])
    np.testing.assert_array_equal(first.weight.grad.numpy(), before[1])


def test_shallow_copy_shares_the_array():
    x = leaf(1.0, 2.0)
    x.sum().backward()
    y, z = copy.copy(x), copy.copy(x * 2)
    assert y.data is x.data and y.grad is None and y.requires_grad
    y.requires_grad_(False)
    z.sum().backward()
    assert x.requires_grad and x.grad.tolist() == [3, 3]


def test_long_graphs_can_be_pickled():
    x = leaf(1.0, 2.0)
    y = x
    for _ in range(3000):
        y = y + x
    x, y = pickle.loads(pickle.dumps((x, y)))
    y.sum().backward()
    assert x.grad.tolist() == [3001, 3001]
    assert pickle.loads(pickle.dumps(y)).tolist() == y.tolist()  # a graph freed by backward
    p = pickle.loads(pickle.dumps(nn.Parameter(np.ones(2))))
    assert isinstance(p, nn.Parameter) and p.requires_grad and p.tolist() == [1, 1]
