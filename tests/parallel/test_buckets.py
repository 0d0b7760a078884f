"""Buckets: gradients summed over ranks, which are threads here, equal those of one process."""

import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

from minigrad import Tensor, nn, optim
from minigrad.parallel import Buckets, Shards
from tests.parallel.ranks import run_threads

SIZES = pytest.mark.parametrize("size", [2, 3])


def tensor(*shape, seed=0, dtype=np.float32, requires_grad=True):
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=requires_grad)


def grads(parameters):
    return [None if p.grad is None else p.grad.numpy().copy() for p in parameters]


def assert_ranks_agree(found):
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)


@SIZES
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("megabytes", [1e-6, 25])
def test_gradients_are_sums_over_the_ranks(size, mean, megabytes):
    x = np.random.default_rng(1).standard_normal((6 * size, 5)).astype(np.float32)

    def model():
        return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3, bias=False), nn.LayerNorm(3), nn.Linear(3, 2))

    weights = model().state_dict()

    def work(world):
        own = model()
        own.load_state_dict(weights)
        buckets = Buckets(own.parameters(), world, megabytes, mean=mean)
        with buckets.reducing():
            (own(Tensor(x[world.rank :: size])) ** 2).sum().backward()
        overlapped, log = grads(own.parameters()), list(world.log)
        own.zero_grad()
        (own(Tensor(x[world.rank :: size])) ** 2).sum().backward()
        buckets.reduce()
        for a, b in zip(overlapped, grads(own.parameters()), strict=True):
            np.testing.assert_array_equal(a, b)
        return overlapped, log

    found, logs = zip(*run_threads(size, work), strict=True)
    assert_ranks_agree(found)
    assert all(log == logs[0] for log in logs) and len(logs[0]) == (2 if megabytes == 25 else 8)
    own = model()
    own.load_state_dict(weights)
    (own(Tensor(x)) ** 2).sum().backward()
    for p, g in zip(own.parameters(), found[0], strict=True):
        np.testing.assert_allclose(g * (size if mean else 1), p.grad.numpy(), rtol=2e-5, atol=1e-4)


def test_buckets_start_while_backward_runs():
    """The first bucket starts before the op of the first layer runs backward."""
    first, last = tensor(4, 4), tensor(4, 4, seed=1)

    def work(world):
        seen = []
        a, b = tensor(4, 4), tensor(4, 4, seed=1)
        x = tensor(4, 4, seed=2) @ a
        x.register_hook(lambda grad: seen.append(list(world.log)))
        with Buckets([a, b], world, 1e-5).reducing():
            (x @ b).sum().backward()
        return seen, world.log

    for seen, log in run_threads(2, work):
        assert seen == [[("start", last.data.size)]]
        assert log == [("start", 16), ("start", first.data.size), "all_reduce"]


def test_bucket_order_is_the_same_whichever_gradient_arrives_first():
    def work(world):
        a, b, c = (tensor(n, seed=n) for n in (2, 3, 4))
        first, second = (a, c) if world.rank else (c, a)
        with Buckets([a, b, c], world, 1e-6).reducing():
            ((second.sum() * 2) + b.sum() + first.sum()).backward()
        return world.log, grads([a, b, c])

    (log, found), (other, also) = run_threads(2, work)
    assert log == other == [("start", 4), ("start", 3), ("start", 2), "all_reduce"]
    assert_ranks_agree([found, also])
    np.testing.assert_array_equal(found[0], [3, 3])


def test_parameters_are_grouped_by_dtype_and_size():
    parameters = [tensor(256, dtype=d, seed=i) for i, d in enumerate(["f4", "f2", "f4", "f2", "f4", "f8"])]

    def work(world):
        buckets = Buckets(parameters, world, 1.5 / 1024)
        buckets.begin()
        buckets.finish()
        return [bucket.indices for bucket in buckets.buckets], [bucket.flat.dtype.char for bucket in buckets.buckets]

    for indices, dtypes in run_threads(2, work)[:1]:
        assert indices == [[5], [4, 2], [3, 1], [0]] and dtypes == ["d", "f", "e", "f"]


def test_the_first_bucket_is_small():
    parameters = [tensor(150_000, seed=i) for i in range(4)]

    def work(world):
        buckets = Buckets(parameters, world)
        buckets.begin()
        buckets.finish()
        return [bucket.indices for bucket in buckets.buckets]

    assert run_threads(2, work)[0] == [[3, 2], [1, 0]]


@SIZES
def test_unused_parameters(size):
    def work(world):
        a, b, c, frozen = (tensor(3, seed=i) for i in range(4))
        frozen.requires_grad_(False)
        own = {0: a * 2, 1: a + b}.get(world.rank, a)
        with Buckets([a, b, c, frozen], world).reducing():
            (own * frozen).sum().backward()
        return grads([a, b, c, frozen])

    found = run_threads(size, work)
    assert_ranks_agree(found)
    a, b, c, frozen = found[0]
    np.testing.assert_allclose(a, tensor(3, seed=3).numpy() * (3 if size == 2 else 4), rtol=1e-6)
    np.testing.assert_array_equal(b, tensor(3, seed=3).numpy())
    assert c is None and frozen is None


def test_parameter_unused_after_an_earlier_step_contributes_zeros():
    def work(world):
        a, b = tensor(3), tensor(3, seed=1)
        buckets = Buckets([a, b], world)
        for step in range(2):
            a.grad = b.grad = None
            with buckets.reducing():
                ((a + b) * 2 if step == 0 or world.rank else a * 2).sum().backward()
        return b.grad.tolist()

    assert run_threads(2, work) == [[2, 2, 2]] * 2


@SIZES
def test_micro_batches_are_reduced_once(size):
    x = np.random.default_rng(1).standard_normal((4, size, 3)).astype(np.float32)

    def work(world):
        w, unused_at_last = tensor(3), tensor(3, seed=5)
        buckets = Buckets([w, unused_at_last], world)
        for step in range(2):
            (w * Tensor(x[2 * step, world.rank]) + unused_at_last).sum().backward()
            with buckets.reducing():
                (w * Tensor(x[2 * step + 1, world.rank])).sum().backward()
            np.testing.assert_allclose(w.grad.numpy(), x[2 * step : 2 * step + 2].sum((0, 1)), rtol=1e-5)
            np.testing.assert_array_equal(unused_at_last.grad.numpy(), np.full(3, size))
            w.grad = unused_at_last.grad = None
        with buckets.reducing(backwards=2):
            for i in range(2):
                (w * Tensor(x[i, world.rank])).sum().backward()
        np.testing.assert_allclose(w.grad.numpy(), x[:2].sum((0, 1)), rtol=1e-5)
        return world.log

    assert run_threads(size, work)[0] == [("start", 6), "all_reduce"] * 3


def test_gradient_views_keep_their_addresses():
    def work(world):
        w = tensor(3)
        buckets = Buckets([w, tensor(2)], world)
        with buckets.reducing():
            (w * 2).sum().backward()
        first = w.grad.data
        w.grad[...] = 0  # optimizer.zero_grad(set_to_none=False)
        with buckets.reducing():
            (w * 3).sum().backward()
        assert w.grad.data is first and np.shares_memory(first, buckets.buckets[0].flat)
        w.grad = None
        with buckets.reducing():
            (w * 3).sum().backward()
        assert w.grad.data is first
        return first

    np.testing.assert_array_equal(run_threads(2, work), np.full((2, 3), 6))


def test_layout_follows_frozen_and_cast_parameters():
    def work(world):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        buckets, x = Buckets(model.parameters(), world), Tensor(np.ones((1, 2), np.float32))
        sizes = []
        for change in (lambda: None, lambda: model[0].requires_grad_(False), lambda: model[0].requires_grad_(True)):
            change()
            model.zero_grad()
            with buckets.reducing():
                model(x).sum().backward()
            sizes.append(world.log[-2][1])
        model.double()
        with buckets.reducing():
            model(x.double()).sum().backward()
        return sizes, model[0].weight.grad.dtype

    assert run_threads(2, work)[1] == ([9, 3, 9], np.float64)


def test_threads_of_a_rank_reduce_together():
    x = np.random.default_rng(1).standard_normal((2, 8, 3))

    def work(world):
        layer = nn.Linear(3, 2).to(dtype=np.float64)
        buckets = Buckets(layer.parameters(), world)
        with Shards(2) as shards, buckets.reducing(backwards=2):
            shards.run(lambda part: layer(Tensor(part)).sum().backward(), x[world.rank])
        return grads(layer.parameters())

    found = run_threads(2, work)
    assert_ranks_agree(found)
    np.testing.assert_allclose(found[0][0], [x.sum((0, 1))] * 2, rtol=1e-12)


def test_gradients_after_the_last_backward_are_refused():
    def work(world):
        w = tensor(3)
        buckets = Buckets([w], world)
        message = r"2 calls of backward reached parameter 0, .* after 1: pass the number"
        with pytest.raises(RuntimeError, match=message), buckets.reducing():
            for _ in range(2):
                (w * 2).sum().backward()
        with pytest.raises(RuntimeError, match="out of step"):
            buckets.reduce()

    run_threads(2, work)


def test_after_an_exception_in_backward_the_ranks_are_out_of_step():
    def fail(grad):
        raise ZeroDivisionError("in backward")

    def work(world):
        a, b = tensor(3), tensor(4)
        buckets = Buckets([a, b], world, 1e-6)
        y = a * 2
        y.register_hook(fail)
        with pytest.raises(ZeroDivisionError, match="in backward"), buckets.reducing():
            (y.sum() * b.sum()).backward()
        assert not a._node.post_hooks
        with pytest.raises(RuntimeError, match="out of step"):
            buckets.reduce()

    run_threads(2, work)


def test_after_an_error_in_communication_the_ranks_are_out_of_step():
    class Broken:
        rank, size = 0, 2

        def start_all_reduce(self, flat):
            raise ConnectionError("no network")

    w = tensor(3)
    buckets = Buckets([w], Broken())
    with pytest.raises(ConnectionError), buckets.reducing():
        (w * 2).sum().backward()
    with pytest.raises(RuntimeError, match="out of step"):
        buckets.reduce()


def test_blocks_are_not_nested():
    def work(world):
        buckets = Buckets([tensor(3)], world)
        with pytest.raises(RuntimeError, match="must not be nested"), buckets.reducing(), buckets.reducing():
            pass

    run_threads(2, work)
    with pytest.raises(ValueError, match="megabytes must be positive, got 0"):
        Buckets([], None, 0)


def test_one_rank_copies_nothing():
    class Alone:
        rank, size = 0, 1

    w = tensor(3)
    buckets = Buckets([w], Alone())
    with buckets.reducing():
        assert not w._node.post_hooks
        (w * 2).sum().backward()
    before = w.grad.data
    buckets.reduce()
    assert w.grad.data is before and not buckets.buckets


def test_buckets_leave_no_reference_cycles():
    def work(world):
        w = tensor(3)
        buckets = Buckets([w], world)
        with buckets.reducing():
            (w * 2).sum().backward()
        return weakref.ref(buckets)

    gc.disable()
    try:
        assert [reference() for reference in run_threads(2, work)] == [None, None]
    finally:
        gc.enable()


@SIZES
def test_training_equals_one_process(size):
    """Three steps of AdamW with clipping, shared, frozen and unused parameters, and two micro-batches per step."""
    x = np.random.default_rng(1).standard_normal((3, 2, 2 * size, 5))

    class Model(nn.Module):
        def __init__(self):
            self.body, self.head, self.unused = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 1)
            self.head.weight = self.body.weight
            self.body.bias.requires_grad = False
            self.half = nn.Parameter(np.ones(5, np.float32))

        def forward(self, x):
            return self.head(self.body(x).tanh()) * self.half.double()

    weights = Model().to(dtype=np.float64).state_dict()

    def train(part, reduced):
        model = Model().to(dtype=np.float64)
        model.load_state_dict(weights)
        model.half.data = np.ones(5, np.float32)
        optimizer, reduce = optim.AdamW(model.parameters(), lr=1e-2), reduced(model)
        for step in range(3):
            optimizer.zero_grad()
            for micro in range(2):
                with reduce(last=micro == 1):
                    ((model(Tensor(x[step, micro, part])) ** 2).sum() / (4 * size)).backward()
            optim.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        return [p.numpy().copy() for p in model.parameters()]

    def work(world):
        def reduced(model):
            buckets = Buckets(model.parameters(), world, 1e-4)
            return lambda last: buckets.reducing() if last else nullcontext()

        return train(slice(world.rank, None, size), reduced)

    def alone(model):
        return lambda last: nullcontext()

    found = run_threads(size, work)
    assert_ranks_agree(found)
    for a, b in zip(found[0], train(slice(None), alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8 if a.dtype == np.float64 else 1e-5)
