"""`minigrad.autograd.grad`: values, no change of `x.grad`, only the ops on the way, memory, errors."""

import numpy as np
import pytest

import minigrad
from minigrad import Function, Tensor
from minigrad.autograd import grad
from tests.autograd.test_tape import leaf


def test_gradients_are_those_of_backward_and_change_no_grad():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    inner = x * y
    loss = (inner * inner + x).sum()
    found = grad(loss, [x, y, inner], retain_graph=True)
    assert x.grad is y.grad is None
    inner.retain_grad()
    loss.backward()
    for ours, expected in zip(found, (x.grad, y.grad, inner.grad), strict=True):
        np.testing.assert_array_equal(ours.data, expected.data)
        assert not ours.requires_grad


def test_only_ops_on_the_way_to_the_inputs_run():
    ran = []

    class Noted(Function):
        def forward(self, x, *, name):
            self.name = name
            return x * 2

        def backward(self, grad_output):
            ran.append(self.name)
            return grad_output * 2

    x, y = leaf(1.0), leaf(2.0)
    a, b = Noted.apply(x, name="a"), Noted.apply(y, name="b")
    assert grad((Noted.apply(a, name="top") + b).sum(), a)[0].tolist() == [2.0]
    assert ran == ["top"]


def test_results_share_no_memory():
    """Add passes one array to both inputs, and a reshape passes a view."""
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    z = x.reshape(2, 1).reshape(2)
    first, second, third = grad((z + y).sum(), [x, y, z])
    first += 10
    assert second.tolist() == third.tolist() == [1.0, 1.0]


def test_hooks_run():
    x = leaf(1.0, 2.0)
    inner = x * 3
    inner.register_hook(lambda g: g * 10)
    assert grad(inner.sum(), x)[0].tolist() == [30.0, 30.0]


def test_several_outputs_and_outputs_of_one_op():
    x = leaf(1.0, 2.0)
    a, b = (x * 2).unbind(0)
    assert grad([a, b, a], x)[0].tolist() == [4.0, 2.0]
    parts = (x * 2).unbind(0)
    assert [g.tolist() for g in grad((parts[0] * parts[1]).sum(), parts)] == [4.0, 2.0]


def test_backward_into_chosen_leaves():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    for _ in range(2):
        (x * y).sum().backward(inputs=[y])
    assert x.grad is None and y.grad.tolist() == [2.0, 4.0]


def test_unused_inputs():
    x, unused = leaf(1.0), leaf(2.0, 3.0)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        grad(x * 2, [x, unused])
    assert grad(x * 2, [x, unused], allow_unused=True)[1] is None
    assert grad(x * 2, [unused], materialize_grads=True)[0].tolist() == [0.0, 0.0]


def test_errors_say_what_must_hold():
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad(x.sum(), Tensor([1.0]))
    with pytest.raises(RuntimeError, match="can be omitted only for a tensor with one element"):
        grad(x * 2, x)
    with pytest.raises(RuntimeError, match="one gradient per output, 2, got 1"):
        grad([x.sum(), x.sum()], x, [Tensor(1.0)])
    with pytest.raises(NotImplementedError, match="first-order"):
        grad(x.sum(), x, create_graph=True)


def test_function_is_applied_by_its_class():
    class Square(Function):
        def forward(self, x):
            self.x = x
            return x * x

        def backward(self, grad_output):
            return 2 * grad_output * self.x

    x = leaf(3.0)
    y = Square.apply(x)
    y.backward()
    assert type(y.grad_fn) is Square and x.grad.tolist() == [6.0]


def test_static_methods_of_torch_are_explained():
    with pytest.raises(TypeError, match="without @staticmethod"):

        class Square(Function):
            @staticmethod
            def forward(ctx, x):
                return x * x


def test_grad_mode_set_from_now_on():
    x = leaf(1.0)
    minigrad.set_grad_enabled(False)
    try:
        assert not (x * 2).requires_grad
        with minigrad.set_grad_enabled(True):
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    finally:
        minigrad.set_grad_enabled(True)
    assert (x * 2).requires_grad

    @minigrad.set_grad_enabled(False)
    def product():
        return x * 2

    assert not product().requires_grad and not product().requires_grad and (x * 2).requires_grad
