"""DistributedDataParallel on ranks that are threads: equal to one process, with PyTorch's rules."""

import copy
import gc
import pickle
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, nn, no_grad, optim
from minigrad.backend.batch import current_sum
from minigrad.nn import functional as F
from minigrad.nn.parallel import DistributedDataParallel as DDP  # noqa: N817 (as in PyTorch's tutorials)
from minigrad.nn.parallel import broadcast_arrays
from minigrad.parallel import World
from tests.parallel.ranks import run_threads

SIZES = pytest.mark.parametrize("size", [2, 3])


def batch(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def values(model):
    return [x.numpy().copy() for x in model.state_dict().values()]


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8),
        nn.GELU(), nn.Linear(8, 5),
    ).double()  # fmt: skip


def train(model, part, wrap):
    """Three steps of two micro-batches with SGD. The loss is a mean over the batch, as a PyTorch user writes it."""
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, labels = batch(3, 2, 12, 3, 4, 4), np.arange(12) % 5
    for step in range(3):
        optimizer.zero_grad()
        for micro in range(2):
            with wrap(micro == 0):
                F.cross_entropy(model(Tensor(x[step, micro, part])), Tensor(labels[part])).backward()
        optimizer.step()


@SIZES
def test_training_equals_one_process(size):
    start = network().state_dict()

    def work(world):
        model = network()
        if not world.rank:
            model.load_state_dict(start)
        ddp = DDP(model, world=world)
        train(ddp, slice(world.rank, None, size), lambda first: ddp.no_sync() if first else nullcontext())
        ddp.eval()
        return values(ddp), world.log

    found, logs = zip(*run_threads(size, work), strict=True)
    for own in found[1:]:
        for a, b in zip(found[0], own, strict=True):
            np.testing.assert_array_equal(a, b)
    assert all(log == logs[0] for log in logs)
    model = network()
    model.load_state_dict(start)
    train(model, slice(None), lambda first: nullcontext())
    for a, b in zip(found[0], values(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_backward_reduces_unless_forward_ran_in_no_sync():
    def work(world):
        model = DDP(nn.Linear(2, 1, bias=False), world=world)
        x = Tensor(np.full((1, 2), world.rank + 1.0, np.float32))
        found = []
        with model.no_sync():
            inside = model(x).sum()
        inside.backward()
        found.append(model.module.weight.grad.tolist())
        model.zero_grad()
        outside = model(x).sum()
        with model.no_sync():
            outside.backward()
        found.append(model.module.weight.grad.tolist())
        model(x).sum().backward()  # the mean of equal gradients is the gradient
        found.append(model.module.weight.grad.tolist())
        return found

    for rank, found in enumerate(run_threads(2, work)):
        assert found == [[[rank + 1] * 2], [[1.5] * 2], [[3] * 2]]


def test_gradients_are_reduced_when_backward_returns_and_unused_parameters_are_found():
    class Branches(nn.Module):
        def __init__(self):
            self.branches = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(4))

        def forward(self, x, which):
            return sum(self.branches[i](x) for i in which)

    def work(world):
        model, x = DDP(Branches(), world=world), Tensor(np.ones((1, 2), np.float32))
        model(x, which=[0, world.rank]).sum().backward()
        return [None if p.grad is None else p.grad.tolist() for p in model.parameters()]

    third = np.float32(1) / np.float32(3)
    for found in run_threads(3, work):
        np.testing.assert_allclose(found[0], [[4 / 3] * 2])
        assert found[1:] == [[[third] * 2]] * 2 + [None]


@dataclass
class Output:
    logits: Any
    extra: Any


@pytest.mark.parametrize("pack", [lambda y: y, lambda y: [y, {"other": y * 2}], lambda y: {"a": Output(y, (y * 2,))}])
def test_batch_norm_sums_over_ranks_in_backward_for_all_kinds_of_outputs(pack):
    class Packing(nn.Module):
        def __init__(self):
            self.norm = nn.BatchNorm1d(3).double()

        def forward(self, x):
            return pack(self.norm(x))

    def first(output):
        return output["a"].logits if isinstance(output, dict) else output[0] if isinstance(output, list) else output

    def second(output):
        return (
            output["a"].extra[0] if isinstance(output, dict) else output[1]["other"] if isinstance(output, list) else 0
        )

    x, weight = batch(4, 3), batch(4, 3, seed=1)

    def gradient(model, part):
        inputs = Tensor(x[part], requires_grad=True)
        output = model(inputs)
        ((first(output) + second(output)) * Tensor(weight[part])).sum().backward()
        return inputs.grad.numpy()

    def work(world):
        found = gradient(DDP(Packing(), world=world), slice(world.rank, None, 2))
        assert current_sum() is None
        return found

    expected = gradient(Packing(), slice(None))
    for rank, found in enumerate(run_threads(2, work)):
        np.testing.assert_allclose(found, expected[rank::2], rtol=1e-9)


def test_after_an_exception_in_backward_the_ranks_are_out_of_step():
    def work(world):
        model = DDP(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), world=world, bucket_cap_mb=1e-6)
        x = Tensor(batch(3, 2).astype(np.float32))

        def fail(grad):
            raise ZeroDivisionError

        model.module[0].weight.register_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(x).sum().backward()
        assert current_sum() is None
        with pytest.raises(RuntimeError, match="out of step"):
            model(x).sum().backward()

    run_threads(2, work)


def test_batch_norm_outside_the_wrapper_is_of_this_rank():
    """A frozen or separate backbone before the wrapped head, and one after: only the head's gradients are averaged."""

    def work(world):
        before, after = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
        head = DDP(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), world=world)
        x = Tensor(np.random.default_rng(world.rank).standard_normal((3, 2)).astype(np.float32))
        after(head(before(x))).square().sum().backward()
        again = after(head(before(x)))
        (after(again) + before(x)).sum().backward()
        return head.module[1].running_mean.numpy(), before[1].running_mean.numpy()

    (head, before), (other, another) = run_threads(2, work)
    np.testing.assert_array_equal(head, other)
    assert (before != another).all()


def test_constructor_copies_parameters_and_buffers_of_rank_0():
    def work(world):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=None)).half()
        model.register_buffer("mask", Tensor(np.array([world.rank == 0, True])))
        for x in model.state_dict().values():
            if x.dtype.kind == "f":
                x.data[...] = world.rank
        DDP(model, world=world)
        return values(model)

    first, second = run_threads(2, work)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[0].tolist() == [True, True] and first[1].dtype == np.float16 and not first[1].any()


@pytest.mark.parametrize(
    "other, message",
    [
        (nn.Linear(2, 3), r"position 0: rank 0 has 0.weight \(3, 3\) float32.*, rank 1 has weight \(3, 2\) float32"),
        (nn.Sequential(nn.Linear(3, 3).double()), "rank 0 has 0.weight .* float32, .* rank 1 has 0.weight .* float64"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "position 2: rank 0 has nothing, rank 1 has 1.weight"),
        (nn.Sequential(nn.Linear(3, 3, bias=False)), r"position 1: rank 0 has 0.bias \(3,\).*, rank 1 has nothing"),
    ],
)
def test_ranks_with_different_modules_are_refused(other, message):
    def work(world):
        with pytest.raises(RuntimeError, match=message):
            DDP(other if world.rank else nn.Sequential(nn.Linear(3, 3)), world=world)

    run_threads(2, work)


def test_buffers_other_than_batch_norms_are_copied_before_forward():
    class Counting(nn.Module):
        def __init__(self):
            self.norm, self.count = nn.BatchNorm1d(2), nn.Buffer(np.zeros(1, np.float32))

        def forward(self, x):
            return self.norm(x) + self.count

    def work(world, **options):
        model = DDP(Counting(), world=world, **options)
        model.module.count.data[...] = world.rank + 5
        found = model(Tensor(batch(3, 2).astype(np.float32)))
        with no_grad():
            model(Tensor(batch(3, 2).astype(np.float32)))
        return float(found.mean()), world.log.count("broadcast")

    (first, count), (second, _) = run_threads(2, work)
    assert (round(first), round(second), count) == (5, 5, 2)
    (first, count), (second, _) = run_threads(2, lambda world: work(world, broadcast_buffers=False))
    assert (round(first), round(second), count) == (5, 6, 1)


def test_buffers_of_batch_norm_are_not_copied_before_forward():
    def work(world):
        model = DDP(nn.BatchNorm1d(2), world=world)
        model(Tensor(batch(3, 2).astype(np.float32)))
        return world.log.count("broadcast")

    assert run_threads(2, work) == [1, 1]  # by the constructor


def test_one_rank_runs_the_module_alone():
    model = DDP(nn.Linear(2, 1), world=World())
    model(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    assert not any(p._node.post_hooks for p in model.parameters())
    assert list(model.state_dict()) == ["module.weight", "module.bias"]
    assert list(model.module.state_dict()) == ["weight", "bias"]


def test_arguments_follow_pytorch():
    module = nn.Linear(2, 1)
    DDP(module, [0], 0, 0, find_unused_parameters=True, gradient_as_bucket_view=True, static_graph=True, world=World())
    with pytest.raises(ValueError, match="contain a single element"):
        DDP(module, [0, 1], world=World())
    with pytest.raises(ValueError, match="process_group is not supported: all ranks are one group"):
        DDP(module, process_group=object(), world=World())
    with pytest.raises(RuntimeError, match="not needed when a module doesn't have any parameters that require"):
        DDP(nn.ReLU(), world=World())
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got function"):
        DDP(lambda x: x, world=World())


def test_parameters_unfrozen_later_are_reduced():
    def work(world):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        model[0].requires_grad_(False)
        model, x = DDP(model, world=world), Tensor(np.full((1, 2), world.rank, np.float32))
        for frozen in (False, True, False):
            model.module[0].requires_grad_(not frozen)
            model.zero_grad()
            model(x).sum().backward()
        return model.module[0].weight.grad.numpy()

    first, second = run_threads(2, work)
    np.testing.assert_array_equal(first, second)
    assert first.any()


def test_copies_and_pickles():
    def work(world):
        model = DDP(nn.Linear(2, 1), world=world)
        other = copy.deepcopy(model)
        other(Tensor(np.full((1, 2), world.rank, np.float32))).sum().backward()
        assert model.module.weight.grad is None and pickle.loads(pickle.dumps(model)).module.weight.shape == (1, 2)
        return other.module.weight.grad.tolist()

    assert run_threads(2, work) == [[[0.5, 0.5]]] * 2


def test_models_are_freed_without_the_garbage_collector():
    def work(world):
        model = DDP(nn.Linear(2, 1), world=world)
        model(Tensor(np.ones((1, 2), np.float32))).sum().backward()
        return weakref.ref(model), weakref.ref(model.module)

    gc.disable()
    try:
        assert [[reference() for reference in pair] for pair in run_threads(2, work)] == [[None, None]] * 2
    finally:
        gc.enable()


def test_hooks_outlive_the_model_without_effect():
    def work(world):
        module = nn.Linear(2, 1)
        model = DDP(module, world=world)
        model(Tensor(np.ones((1, 2), np.float32))).sum().backward()
        module.zero_grad()
        del model
        module(Tensor(np.full((1, 2), world.rank, np.float32))).sum().backward()
        return module.weight.grad.tolist()

    assert run_threads(2, work) == [[[0, 0]], [[1, 1]]]


def test_arrays_of_all_dtypes_are_broadcast():
    def work(world):
        arrays = [np.full(shape, world.rank, dtype) for shape, dtype in (((), "i8"), ((2, 0), "f4"), ((3, 2), "f2"))]
        arrays.append(np.full((2, 3), world.rank, "f8").T)
        broadcast_arrays(arrays, world)
        return sum(x.sum() for x in arrays)

    assert run_threads(2, work) == [0, 0]
