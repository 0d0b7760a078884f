"""Backward: order and accumulation of gradients, memory, hooks, threads, errors."""

import gc
import itertools
import pickle
import subprocess
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import minigrad
from minigrad import Function, Tensor, nn, no_grad, optim
from minigrad import functional as F
from minigrad.autograd.function import Partial


def leaf(*numbers: float) -> Tensor:
    return Tensor(np.array(numbers, np.float64), requires_grad=True)


def test_leaf_used_twice_gets_the_sum():
    x = leaf(2.0, -3.0)
    (x * x + x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * x.data + 1)


def test_backward_runs_once_per_node():
    visits = []

    class Triple(Function):
        def forward(self, x):
            return 3 * x

        def backward(self, grad_output):
            visits.append(grad_output.copy())
            return 3 * grad_output

    x = leaf(1.0, 2.0)
    top = Tensor.apply(Triple, x)
    (top * top + top).sum().backward()
    assert len(visits) == 1
    np.testing.assert_array_equal(x.grad.numpy(), 3 * (2 * top.data + 1))


def test_in_place_accumulation_does_not_change_other_gradients():
    """Add returns one array for both inputs; accumulating in place into the gradient of a must not change that of b."""
    x = leaf(1.0, 2.0)
    a, b = x * 1.0, x * 1.0
    a.retain_grad(), b.retain_grad()
    (a + b + a + a).sum().backward()
    np.testing.assert_array_equal(a.grad.numpy(), [3, 3])
    np.testing.assert_array_equal(b.grad.numpy(), [1, 1])
    np.testing.assert_array_equal(x.grad.numpy(), [4, 4])


class Scale(Function):
    """y = s x, an op that can add to the gradient that x has received so far."""

    def forward(self, x, s):
        self.s = s
        return x * s

    def backward(self, grad_output):
        return grad_output * self.s, None

    def backward_accumulate(self, grad_output, total):
        received.append(total.tolist())
        return grad_output * self.s + total, None


received = []  # by backward_accumulate


def test_an_op_may_add_to_the_gradient_received_so_far():
    x, branch = Tensor([1.0, 2.0], requires_grad=True), Tensor(np.float32(3))
    for uses, totals in ((1, []), (2, [[1.0, 1.0]]), (3, [[1.0, 1.0], [4.0, 4.0]])):
        received.clear()
        x.grad = None
        inner = x * 1
        y = Tensor.apply(Scale, inner, branch)
        for _ in range(uses - 2):
            y = y + Tensor.apply(Scale, inner, branch)
        z = y if uses == 1 else y + inner
        z.sum().backward()
        assert received == totals
        assert x.grad.tolist() == [{1: 3.0, 2: 4.0, 3: 7.0}[uses]] * 2


def test_gradient_added_by_an_op_changes_no_shared_array():
    """The residual connection passes one array to both inputs; `a` accumulates, `b` must not see the sum."""
    a, b = (Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    inner = a * 1
    loss = (Tensor.apply(Scale, inner, Tensor(np.float32(3))) + (inner + b)).sum()
    loss.backward()
    assert a.grad.tolist() == [4.0, 4.0] and b.grad.tolist() == [1.0, 1.0]


def test_no_gradient_is_added_to_an_input_without_one():
    x, s = Tensor([1.0, 2.0]), Tensor(np.float32(3))
    received.clear()
    y = Tensor.apply(Scale, x, s) * Tensor([1.0, 1.0], requires_grad=True)
    y.sum().backward()
    assert received == []


def test_leaf_gradients_never_share_memory():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    upstream = Tensor(np.ones(2))
    (x + y).backward(upstream)
    x.grad.data *= 10
    np.testing.assert_array_equal(y.grad.numpy(), [1, 1])
    np.testing.assert_array_equal(upstream.numpy(), [1, 1])


def test_gradients_accumulate_over_calls_of_backward():
    x = leaf(2.0)
    for _ in range(3):
        (x * x).sum().backward()
    assert x.grad.item() == 12
    x.grad = None
    (x * x).sum().backward()
    assert x.grad.item() == 4


def test_long_chains_need_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.item() == 1
    for _ in range(100_000):  # deleting a graph that no backward has freed must not overflow the stack
        y = y + x
    del y


def test_backward_through_a_graph_pickled_to_another_process():
    for _ in range(100):
        leaf(1.0) * 2
    x = leaf(1.0, 2.0)
    y = x * 3  # the other process continues this graph
    code = (
        "import pickle, sys; x, y = pickle.load(sys.stdin.buffer); (x * x + y).sum().backward(); "
        "sys.stdout.buffer.write(pickle.dumps(x.grad.numpy()))"
    )
    there = subprocess.run([sys.executable, "-c", code], input=pickle.dumps((x, y)), capture_output=True, check=True)
    np.testing.assert_array_equal(pickle.loads(there.stdout), 2 * x.data + 3)


def test_backward_after_the_counter_of_nodes_restarts(monkeypatch):
    layer = nn.Linear(2, 2)
    y = layer(leaf(1.0, 2.0)) * 2
    layer, y = pickle.loads(pickle.dumps((layer, y)))
    for module in ("minigrad._tensor", "minigrad.autograd.node"):
        monkeypatch.setattr(f"{module}.next_age", itertools.count(1).__next__)
    layer(y.detach()).sum().backward()
    np.testing.assert_array_equal(layer.bias.grad.numpy(), [1, 1])
    layer.zero_grad()
    layer, y = pickle.loads(pickle.dumps((layer, y)))
    (y * 1 + layer.bias).sum().backward()
    np.testing.assert_array_equal(layer.bias.grad.numpy(), [3, 3])


def test_chain_of_adds_saves_no_activations():
    x = Tensor(np.zeros(1 << 17), requires_grad=True)  # 1 MiB
    tracemalloc.start()
    y = x
    for _ in range(50):
        y = y + 1.0
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.2 * 2**20, f"{held / 2**20:.1f} MiB after 50 adds, more than the last result"
    assert peak < 2.3 * 2**20


def test_step_leaves_no_reference_cycles():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    nodes = []

    class Referenced(Function):
        def forward(self, x):
            nodes.append(weakref.ref(self))
            self.x = x
            return x * 2

        def backward(self, grad_output):
            return grad_output * 2

    def step():
        output = Tensor.apply(Referenced, model(Tensor(np.ones((3, 4), np.float32))))
        output.retain_grad()
        output.register_hook(lambda grad: None)
        F.cross_entropy(output, Tensor([0, 1, 0])).backward()
        model.zero_grad()

    step()  # imports on first use leave cycles
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(5):
            step()
        assert all(node() is None for node in nodes)
        assert len(gc.get_objects()) <= before + 5
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_saved_arrays_are_freed_during_backward():
    x = Tensor(np.ones(1 << 17), requires_grad=True)
    y = x
    for _ in range(20):
        y = y.exp().log()
    tracemalloc.start()
    y.sum().backward()
    _, peak = tracemalloc.get_traced_memory()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1.1 * 2**20 and peak < 4.1 * 2**20


def test_refused_second_backward_changes_no_gradient():
    x, y = leaf(2.0), leaf(5.0)
    shared = x * x
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        (shared * y).sum().backward()
    assert y.grad is None and x.grad.item() == 4


def test_retain_graph_allows_a_second_backward():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8


def test_unrecorded_writes_are_refused():
    x = leaf(1.0, 2.0)
    y = x * 2
    with pytest.raises(RuntimeError, match="in-place write"):
        x[0] = 5.0
    with pytest.raises(RuntimeError, match="in-place write"):
        y[0] = 5.0
    with minigrad.no_grad(), pytest.raises(RuntimeError, match="detach"):
        y[0] = 5.0
    with minigrad.no_grad():
        x[0] = 5.0
    with pytest.raises(ValueError, match="read-only"):
        y.numpy()[0] = 1
    assert x.data[0] == 5.0


def test_two_threads_sum_gradients_of_shared_parameters():
    minigrad.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)).to(dtype=np.float64)
    x, target = np.random.default_rng(0).normal(size=(8, 6)), np.arange(8) % 3

    def backward(part: slice) -> None:
        for _ in range(20):
            F.cross_entropy(model(Tensor(x[part])), Tensor(target[part]), reduction="sum").backward()

    backward(slice(None))
    expected = [p.grad.numpy().copy() for p in model.parameters()]
    model.zero_grad()
    threads = [threading.Thread(target=backward, args=(part,)) for part in (slice(0, 4), slice(4, 8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for p, grad in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), grad, rtol=1e-10, atol=1e-12)


def test_hooks_get_and_may_replace_the_complete_gradient():
    x = leaf(1.0, 2.0)
    y = x * 2
    seen = []
    y.register_hook(lambda grad: seen.append(grad.numpy().copy()))
    remove = y.register_hook(lambda grad: grad * 10)
    z = y.sum() + (y * y).sum()
    z.backward(retain_graph=True)
    np.testing.assert_array_equal(seen[0], 1 + 2 * y.data)
    np.testing.assert_array_equal(x.grad.numpy(), 20 * (1 + 2 * y.data))
    remove()
    x.grad = None
    z.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * (1 + 2 * y.data))
    scaled = leaf(1.0)
    scaled.register_hook(lambda grad: grad * 3)
    (scaled + scaled).sum().backward()
    assert scaled.grad.item() == 6


def test_retain_grad_of_a_non_leaf():
    x = leaf(1.0, 2.0)
    y = x * x
    y.retain_grad()
    (y * 3).sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), [3, 3])


def test_retained_gradient_is_the_result_of_all_hooks():
    x, seen = leaf(1.0, 2.0), []
    y = x * 3
    y.register_hook(lambda grad: grad + 1)
    y.retain_grad()
    y.register_hook(lambda grad: grad * 2)
    remove = y.register_hook(lambda grad: grad * 100)
    y.register_hook(lambda grad: seen.append(grad.tolist()))
    remove()
    y.sum().backward()
    assert y.grad.tolist() == seen[0] == [4, 4] and x.grad.tolist() == [12, 12]


def test_hook_must_keep_the_dtype():
    x = Tensor([1.0], requires_grad=True)
    x.register_hook(lambda grad: grad.double())
    with pytest.raises(TypeError, match=r"shape and dtype, \(1,\) float32: got Tensor\(\[2.\], dtype=float64"):
        (x * 2).sum().backward()
    assert x.grad is None


def test_gradients_of_slices_are_summed():
    x = Tensor(np.arange(12.0).reshape(3, 4), requires_grad=True)
    (x[0] * 2 + x[1] * 3 + x[[1, 1, 2]].sum(0) + x.sum(0)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[3] * 4, [6] * 4, [2] * 4])


def test_partial_sums_values_at_duplicate_indices():
    partial = Partial(np.array([1.0, 2.0]), np.array([1, 1]), repeats=True)
    np.testing.assert_array_equal(partial.add_to(np.zeros(3)), [0, 3, 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_each_gradient_has_the_dtype_of_its_input(dtype):
    x, y = Tensor(np.ones(3, dtype), requires_grad=True), leaf(1.0, 2.0, 3.0)
    (x * y).sum().backward()
    assert x.grad.dtype == dtype and y.grad.dtype == np.float64
    assert (Tensor(np.ones(2, dtype)) * np.float64(2) + np.float64(1) - 1).dtype == dtype


def test_error_messages_of_backward_and_requires_grad():
    with pytest.raises(RuntimeError, match="requires_grad=True"):
        Tensor([1.0]).backward()
    with pytest.raises(RuntimeError, match=r"x\.sum\(\)\.backward"):
        (leaf(1.0, 2.0) * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        (leaf(1.0, 2.0) * 2).backward(Tensor(np.ones(3)))
    with pytest.raises(RuntimeError, match="only on a leaf"):
        (leaf(1.0) * 2).requires_grad = False
    with pytest.raises(TypeError, match="floating-point"):
        Tensor([1, 2], requires_grad=True)


def test_wrong_number_of_gradients_is_refused():
    class Wrong(Function):
        def forward(self, a, b):
            return a + b

        def backward(self, grad_output):
            return grad_output

    with pytest.raises(TypeError, match="one gradient per input, 2, returned 1"):
        Tensor.apply(Wrong, leaf(1.0), leaf(1.0)).backward()


def test_0d_gradients_are_arrays():
    x = Tensor(np.float32(3.0), requires_grad=True)
    (x[None].sum() + x * 3).backward()
    assert isinstance(x.grad.data, np.ndarray) and x.grad.item() == 4
    assert optim.clip_grad_norm_(x, 1.0).item() == 4 and x.grad.item() == pytest.approx(1, rel=1e-5)


def test_masked_infinity_gives_zero_gradient():
    with np.errstate(divide="ignore"):
        x = Tensor([-1.0, 4.0], requires_grad=True)
        F.relu(x).sqrt().sum().backward()
        assert x.grad.tolist() == [0, 0.25]
        x.grad = None
        minigrad.where(x > 0, x, 0.0).sqrt().sum().backward()
        assert x.grad.tolist() == [0, 0.25]


def test_hook_may_store_the_gradient():
    x, stored = Tensor([1.0], requires_grad=True), []
    x.register_hook(stored.append)
    for _ in range(2):
        (x * 2).sum().backward()
    assert [g.tolist() for g in stored] == [[2], [2]] and x.grad.tolist() == [4]
    x.register_hook(lambda grad: grad.numpy())
    with pytest.raises(TypeError, match="a hook must return None or a Tensor"):
        (x * 2).sum().backward()


# Ops with several outputs ---------------------------------------------------------------------------------------------


class Twice(Function):
    """y = x, z = 2x;  ∂x = ∂y + 2 ∂z, or the array ∂y itself if z is not used."""

    def forward(self, x):
        return x.copy(), 2 * x

    def backward(self, grad_outputs):
        grad_y, grad_z = grad_outputs
        if grad_z is None:
            return grad_y
        return 2 * grad_z if grad_y is None else grad_y + 2 * grad_z


@pytest.mark.parametrize(("use_y", "use_z"), [(True, True), (True, False), (False, True)])
def test_gradient_is_the_sum_over_the_used_outputs(use_y, use_z):
    x = Tensor(np.ones(3), requires_grad=True)
    y, z = Tensor.apply(Twice, x * 1.0)
    used = [part * factor for part, factor, use in ((y, 3.0, use_y), (z, 5.0, use_z)) if use]
    sum(used).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 3.0 * use_y + 10.0 * use_z)


def test_gradients_of_ops_with_several_outputs_are_not_modified():
    """∂b, ∂y and the first gradient of a are one array: the second gradient of a must not be added in place."""
    leaf, other = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2), requires_grad=True)
    b = other * 1.0
    a = leaf * 1.0
    c = a * 7.0
    y, _ = Tensor.apply(Twice, a)
    ((y + b + c) * Tensor(np.ones(2))).sum().backward()
    np.testing.assert_array_equal(other.grad.numpy(), 1)
    np.testing.assert_array_equal(leaf.grad.numpy(), 8)


def test_several_outputs_share_one_node():
    x = Tensor(np.ones(3), requires_grad=True)
    with no_grad():
        assert [part.grad_fn for part in Tensor.apply(Twice, x)] == [None, None]
    y, z = Tensor.apply(Twice, x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        z.sum().backward()


class SumAndDifference(Function):
    """Backward returns one new array for both inputs, or the gradient of the first output."""

    def forward(self, a, b):
        return a + b, a - b

    def backward(self, grad_outputs):
        first, second = grad_outputs
        if second is None:
            return first, None
        grad = first + second
        return grad, grad


def test_gradients_of_an_op_with_several_outputs_are_not_aliased():
    a, b = (Tensor(np.ones(3, np.float32), requires_grad=True) for _ in range(2))
    grad = Tensor(np.ones(3, np.float32))
    for _ in range(2):  # the second gradient is added in place
        y, z = Tensor.apply(SumAndDifference, a, b)
        (y + z).backward(grad)
    assert a.grad.data.tolist() == b.grad.data.tolist() == [4, 4, 4] and grad.data.tolist() == [1, 1, 1]
    a.grad = None
    y, _ = Tensor.apply(SumAndDifference, a, b)
    y.backward(grad)
    assert not np.shares_memory(a.grad.data, grad.data)
