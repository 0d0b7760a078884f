"""Hooks that run after a leaf has accumulated its gradient, and the order of backward with them."""

import gc
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Function, Tensor, autograd, nn
from minigrad.autograd import tape
from minigrad.utils.checkpoint import checkpoint


def leaf(*values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def test_hook_gets_the_tensor_with_its_gradient():
    x, seen = leaf(1.0, 2.0), []
    handle = x.register_post_accumulate_grad_hook(lambda p: seen.append((p, p.grad.tolist())))
    for _ in range(2):
        (x * 3).sum().backward()
    assert [p is x for p, _ in seen] == [True, True] and [g for _, g in seen] == [[3, 3], [6, 6]]
    handle.remove()
    x.sum().backward()
    assert len(seen) == 2


def test_errors_are_those_of_pytorch():
    with pytest.raises(RuntimeError, match="cannot register a hook on a tensor that doesn't require gradient"):
        Tensor([1.0]).register_post_accumulate_grad_hook(print)
    with pytest.raises(RuntimeError, match="post accumulate grad hooks cannot be registered on non-leaf tensors"):
        (leaf(1.0) * 2).register_post_accumulate_grad_hook(print)


def test_hook_runs_directly_after_the_last_consumer():
    """Parameters of later layers are complete first; a parameter used twice waits for its oldest use."""
    order = []

    def traced(x, name):
        y = x * 1
        y.register_hook(lambda grad: order.append(name))
        return y

    a, b, c = leaf(1.0), leaf(2.0), leaf(3.0)
    for p, name in ((a, "a"), (b, "b"), (c, "c")):
        p.register_post_accumulate_grad_hook(lambda p, name=name: order.append(f"{name} complete"))
    x = traced(a * 1, "first")
    x = traced(x * b, "second")
    x = traced(x * c * b, "third")
    x.backward()
    assert order == ["third", "c complete", "second", "b complete", "first", "a complete"]


def test_frozen_leaves_and_other_inputs_run_no_hook():
    x, y, seen = leaf(1.0), leaf(2.0), []
    x.register_post_accumulate_grad_hook(seen.append)
    z = x * y
    autograd.grad(z, [x, y], retain_graph=True)
    z.backward(inputs=[y], retain_graph=True)
    assert not seen
    z.backward(inputs=[x], retain_graph=True)
    assert seen == [x] and x.grad.tolist() == [2]
    x.requires_grad_(False)
    z.backward()
    assert seen == [x]


def test_hooks_may_update_the_parameters():
    """The parameter of a later layer is updated while backward still runs: its saved values are no longer needed."""
    first, second = leaf(2.0), leaf(3.0)

    def step(p):
        p.data -= p.grad.data
        p._note_write()
        p.grad = None

    for p in (first, second):
        p.register_post_accumulate_grad_hook(step)
    (first * second).backward()
    assert (first.tolist(), second.tolist()) == ([-1], [1])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.integers(0, 63))
def test_gradients_are_bit_equal_with_and_without_hooks(edges, hooked):
    def gradients(bits):
        rng = np.random.default_rng(0)
        leaves = [Tensor(rng.standard_normal(3).astype(np.float32), requires_grad=True) for _ in range(6)]
        for i, p in enumerate(leaves):
            if bits >> i & 1:
                p.register_post_accumulate_grad_hook(lambda p: None)
        values = list(leaves)
        for i, (a, b) in enumerate(edges):
            a, b = values[a % len(values)], values[-1 - b % len(values)]
            values.append(a * b if i % 2 else (a + b).tanh())
        values[-1].sum().backward()
        return [None if p.grad is None else p.grad.tolist() for p in leaves]

    assert gradients(hooked) == gradients(0)


@pytest.mark.parametrize("registered", [False, True])
def test_gradients_of_checkpoints_are_complete_when_the_hook_runs(registered):
    """A checkpoint adds to the gradient in its own backward. The hook waits for the other uses of the parameter, and
    for the end of backward if the checkpoint does not know the parameter."""
    layer, seen = nn.Linear(2, 2), []
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.tolist()))
    x = Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    body = layer if registered else lambda x: layer(x)
    y = checkpoint(body, x) + checkpoint(body, x * 2)
    (y + layer(x) if registered else y).sum().backward()
    assert seen == [[[4, 4], [4, 4]] if registered else [[3, 3], [3, 3]]]


def test_ends_run_after_all_nodes_and_with_the_exception():
    x, seen = leaf(1.0), []
    x.register_post_accumulate_grad_hook(lambda p: tape.at_end(lambda error: seen.append((p.grad, error))))
    first = leaf(1.0)
    first.register_hook(lambda grad: seen.append("first leaf"))
    (first * 1 * x).backward()
    assert seen[0] == "first leaf" and seen[1][1] is None

    class Failing(Function):
        def forward(self, x):
            return x * 1

        def backward(self, grad_output):
            tape.at_end(lambda error: seen.append(("reverse", error)))
            raise ZeroDivisionError

    seen.clear()
    with pytest.raises(ZeroDivisionError):
        (Failing.apply(first) * x).backward()
    assert [(e[0] == "reverse", type(e[1])) for e in seen] == [(True, ZeroDivisionError), (False, ZeroDivisionError)]
    (first * x).backward()
    assert seen[-1][1] is None


def test_all_ends_run_also_if_one_raises():
    x, seen = leaf(1.0), []

    def fail(error):
        raise ValueError("end")

    def hook(p):
        for end in (lambda error: seen.append(error), fail, lambda error: seen.append(error)):
            tape.at_end(end)

    x.register_post_accumulate_grad_hook(hook)
    with pytest.raises(ValueError, match="end"):
        (x * 2).backward()
    assert len(seen) == 2


def test_hooks_leave_no_reference_cycle_and_are_not_pickled():
    x = leaf(1.0)
    x.register_post_accumulate_grad_hook(lambda p: None)
    assert pickle.loads(pickle.dumps(x)).requires_grad
    y, reference = x * 2, weakref.ref(x)
    gc.disable()
    try:
        del x
        assert reference() is None
        y.backward()
    finally:
        gc.enable()
