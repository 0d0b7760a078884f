"""Hooks of modules and tensors: order, replaced values, handles."""

import numpy as np
import pytest

from minigrad import Tensor, nn, no_grad


def layer():
    linear = nn.Linear(3, 2)
    linear.weight.data[...] = [[1, 2, 3], [4, 5, 6]]
    linear.bias.data[...] = 0
    return linear


def x(requires_grad=False):
    return Tensor(np.ones((1, 3), np.float32), requires_grad)


def test_pre_hook_replaces_the_arguments():
    linear = layer()
    handle = linear.register_forward_pre_hook(lambda module, args: args[0] * 2)
    linear.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert linear(x()).tolist() == [[18, 45]]
    handle.remove()
    assert linear(x()).tolist() == [[12, 30]]


def test_prepended_hook_runs_first():
    linear, order = layer(), []
    for name, prepend in (("a", False), ("b", True)):
        linear.register_forward_pre_hook(lambda *_, name=name: order.append(f"pre {name}"), prepend=prepend)
        linear.register_forward_hook(lambda *_, name=name: order.append(name), prepend=prepend)
    linear(x())
    assert order == ["pre b", "pre a", "b", "a"]


class Scaled(nn.Module):
    def forward(self, x, factor=1.0):
        return x * factor


def test_hooks_with_kwargs_see_and_replace_them():
    module, seen = Scaled(), []
    module.register_forward_pre_hook(lambda m, args, kwargs: (args, {"factor": kwargs["factor"] + 1}), with_kwargs=True)
    module.register_forward_hook(lambda m, args, kwargs, output: seen.append(kwargs), with_kwargs=True)
    assert module(x(), factor=2.0).tolist() == [[3, 3, 3]] and seen == [{"factor": 3.0}]
    module.register_forward_pre_hook(lambda m, args, kwargs: args, with_kwargs=True)
    with pytest.raises(RuntimeError, match=r"must return None or a tuple \(args, kwargs\)"):
        module(x(), factor=2.0)


def test_handle_removes_one_registration():
    linear, calls = layer(), []
    hook = lambda *_: calls.append(1)  # noqa: E731
    first, _ = linear.register_forward_hook(hook), linear.register_forward_hook(hook)
    first.remove()
    first.remove()
    linear(x())
    assert calls == [1]


def test_handle_is_a_context_manager():
    linear, calls = layer(), []
    with linear.register_forward_hook(lambda *_: calls.append(1)):
        linear(x())
    linear(x())
    t = x(True)
    with t.register_hook(lambda grad: grad * 10):
        t.sum().backward()
    t.sum().backward()
    assert calls == [1] and t.grad.tolist() == [[11, 11, 11]]


def test_backward_hook_sees_and_replaces_gradients():
    linear, seen, t = layer(), [], x(True)
    linear.register_full_backward_hook(lambda m, grad_input, grad_output: seen.append((m, grad_input, grad_output)))
    linear.register_full_backward_hook(lambda m, grad_input, grad_output: (grad_input[0] * 2,))
    linear(t).sum().backward()
    ((module, (grad_input,), (grad_output,)),) = seen
    assert module is linear and grad_input.tolist() == [[5, 7, 9]] and grad_output.tolist() == [[1, 1]]
    assert t.grad.tolist() == [[10, 14, 18]] and linear.weight.grad.tolist() == [[1, 1, 1]] * 2


def test_backward_hook_of_a_module_whose_input_needs_no_gradient():
    linear, seen = layer(), []
    linear.register_full_backward_hook(lambda m, grad_input, grad_output: seen.append((grad_input, grad_output)))
    linear(x()).sum().backward()
    assert seen[0][0] == (None,) and seen[0][1][0].tolist() == [[1, 1]]
    with no_grad():
        linear(x(True))
    assert len(seen) == 1


class Pair(nn.Module):
    def forward(self, a, b, c):
        return a * b, a + 1, c


def test_backward_hook_of_several_inputs_and_outputs():
    pair, seen = Pair(), []
    pair.register_full_backward_hook(lambda m, grad_input, grad_output: seen.append((grad_input, grad_output)))
    a, b = Tensor([2.0], requires_grad=True), Tensor([3.0], requires_grad=True)
    product, _, number = pair(a, b, 7)
    product.sum().backward()
    grad_input, grad_output = seen[0]
    assert number == 7 and [g and g.tolist() for g in grad_input] == [[3], [2], None]
    assert [g and g.tolist() for g in grad_output] == [[1], None, None]
    assert a.grad.tolist() == [3] and b.grad.tolist() == [2]


def test_backward_hook_with_a_wrong_number_of_gradients_is_refused():
    linear = layer()
    linear.register_full_backward_hook(lambda *_: (None, None))
    with pytest.raises(RuntimeError, match="must return None or one gradient for each input, 1,"):
        linear(x(True)).sum().backward()


def test_hooks_stop_the_fused_residual():
    """A module with a hook runs by itself, not inside the op that computes residual and norm together."""
    for register in ("register_forward_pre_hook", "register_full_backward_hook"):
        norm, calls = nn.LayerNorm(3), []
        getattr(norm, register)(lambda *_, calls=calls: calls.append(1))
        from minigrad.nn.residual import residual_add_norm

        t = x(True)
        residual_add_norm(t, t, nn.DropPath(), norm)[1].sum().backward()
        assert calls == [1], register
