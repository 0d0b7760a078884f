"""ShardedOptimizer: equal to one process and to all-reduce, on ranks that are threads, and by mpiexec."""

import copy
from functools import partial
from itertools import chain
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, nn, no_grad, optim, serialize
from minigrad.backend.batch import split
from minigrad.nn.parallel import DistributedDataParallel
from minigrad.optim.muon import matrices_apart
from minigrad.parallel import World, buckets, sharded
from minigrad.parallel.sharded import Flat, ShardedOptimizer, ZeroRedundancyOptimizer, assign_owners
from tests.parallel.mpiexec import needs_mpi, run
from tests.parallel.ranks import run_threads

IMAGES, STEPS = 12, 4
RANKS = [1, 2, 3, 4]
LONELY = World()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks per reduction, whose limits cut parameters."""
    monkeypatch.setattr(sharded, "CHUNK", 2048)


class Net(nn.Module):
    """A model whose parameters are updated by different rules, or not at all."""

    def __init__(self, dtype=np.float64):
        rng = np.random.default_rng(0)

        def weights(*shape):
            return nn.Parameter((rng.standard_normal(shape) / 4).astype(np.float32), dtype=dtype)

        self.embed, self.hidden = weights(31, 7), weights(31, 31)  # 961 elements: more than a row of a chunk
        self.bias, self.scale, self.head = weights(31), weights(), weights(5, 31)
        self.unused, self.frozen, self.sometimes = weights(3, 3), weights(31), weights(5)
        self.frozen.requires_grad = False

    def forward(self, x, first):
        """first: (N, 1), 1 for the image that uses `sometimes`, 0 for others; None if no image does."""
        h = (x @ self.embed.T + self.bias).tanh()
        h = (h @ self.hidden.T + self.frozen).tanh() * self.scale
        y = h @ self.head.T
        return y if first is None else y + Tensor(first) * self.sometimes


EARLY_AND_LATE = ["embed", "hidden", "frozen"], ["bias", "scale", "head", "unused", "sometimes"]
USED = ["bias", "embed", "head", "hidden", "scale", "sometimes"]


def adamw(net, **options):
    """AdamW with layer decay groups."""
    early, late = ([getattr(net, name) for name in names] for names in EARLY_AND_LATE)
    groups = [{"params": early, "lr": 3e-3, "weight_decay": 0.1}, {"params": late}]
    return optim.AdamW(groups, lr=1e-2, **options)


def muon(net):
    return optim.Muon(matrices_apart([{"params": net.parameters()}], [net.head]), lr=1e-2)


def with_state(optimizer):
    """The names of the parameters with a state, for the groups of `adamw`, sorted."""
    pairs = zip(chain(*EARLY_AND_LATE), chain(*optimizer.state), strict=True)
    return sorted(name for name, state in pairs if state)


OPTIMIZERS = {
    "adamw": adamw,
    "amsgrad": partial(adamw, amsgrad=True),
    "maximize": partial(adamw, maximize=True),
    "adam": lambda net: optim.Adam(net.parameters(), lr=1e-2, weight_decay=0.1),
    "muon": muon,
    "sgd": lambda net: optim.SGD(net.parameters(), lr=1e-2),
    "momentum": lambda net: optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda net: optim.RMSprop(net.parameters(), lr=1e-3, centered=True),
}


def batch(step):
    rng = np.random.default_rng([1, step])
    return rng.standard_normal((IMAGES, 7)), rng.standard_normal((IMAGES, 5))


def backward(net, step, rows, scale=1.0):
    """Backward of the sum over these images / IMAGES. Image 0 uses the parameter `sometimes`, in odd steps."""
    x, y = batch(step)
    first = np.where(rows == 0, 1.0, 0.0)[:, None] if step % 2 and 0 in rows else None
    loss = (net(Tensor(x[rows]), first) - Tensor(y[rows])).square().sum() / IMAGES
    (loss * scale).backward()


def part(world):
    return split(IMAGES, world.size)[world.rank].index


def values(net):
    return {name: p.data.copy() for name, p in net.named_parameters()}


def train_one(make, steps=range(STEPS), clip=0.0, net=None, optimizer=None):
    net = net or Net()
    optimizer = optimizer or make(net)
    norms = []
    for step in steps:
        optimizer.zero_grad()
        backward(net, step, np.arange(IMAGES))
        if clip:
            norms.append(nn.utils.clip_grad_norm_(net.parameters(), clip).item())
        optimizer.step()
    return net, optimizer, norms


def train_sharded(make, world, steps=range(STEPS), clip=0.0, state=None, net=None):
    net = net or Net()
    optimizer = ShardedOptimizer(make(net), world)
    if state is not None:
        optimizer.load_state_dict(state)
    norms = []
    for step in steps:
        optimizer.zero_grad()
        for rows in np.array_split(part(world), 2):  # two batches are accumulated
            if len(rows):
                backward(net, step, rows)
        optimizer.reduce()
        if clip:
            norms.append(optimizer.clip_grad_norm_(clip).item())
        optimizer.step()
    return net, optimizer, norms


def expect_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        if tolerance:
            np.testing.assert_allclose(found[name], expected[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("size", RANKS)
def test_equals_one_process(make, size):
    expected = values(train_one(make)[0])
    found = run_threads(size, lambda world: values(train_sharded(make, world)[0]))
    for other in found:
        expect_equal(other, found[0])  # bit for bit
        expect_equal(other, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_equals_all_reduce(size):
    def all_reduce(world):
        net = Net()
        optimizer = adamw(net)
        for step in range(STEPS):
            optimizer.zero_grad()
            backward(net, step, part(world))
            for p in net.parameters():
                used = np.array([p.grad is not None])
                world.all_reduce(used, op="max")
                if used[0]:
                    p.grad = p.grad if p.grad is not None else Tensor(np.zeros(p.shape, p.dtype))
                    world.all_reduce(p.grad.data)
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
        return values(net)

    expected = run_threads(size, all_reduce)
    found = run_threads(size, lambda world: values(train_sharded(adamw, world, clip=0.5)[0]))
    for one, other in zip(found, expected, strict=True):
        expect_equal(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("size", RANKS)
def test_clipping_uses_the_global_norm(size):
    net, _, expected = train_one(adamw, clip=0.3)
    for found, _, norms in run_threads(size, lambda world: train_sharded(adamw, world, clip=0.3)):
        np.testing.assert_allclose(norms, expected, rtol=1e-12)
        expect_equal(values(found), values(net), rtol=1e-9, atol=1e-12)
    assert min(expected) > 0.3


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, np.inf])
def test_norms_and_their_dtype(p):
    def norms(world):
        net = Net()
        net.head.data = net.head.data.astype(np.float32)
        optimizer = ShardedOptimizer(optim.SGD([net.hidden, net.head, net.bias]), world, mean=True)
        for x in (net.hidden, net.head):
            x.grad = Tensor(np.arange(x.data.size, dtype=x.dtype).reshape(x.shape))
        optimizer.reduce()
        return optimizer.clip_grad_norm_(5.0, p), [x.grad for x in (net.hidden, net.head)]

    grads = [Tensor(np.arange(961.0).reshape(31, 31)), Tensor(np.arange(155.0, dtype=np.float32).reshape(5, 31))]
    parameters = [Tensor(np.zeros(g.shape, g.dtype), requires_grad=True) for g in grads]
    for x, g in zip(parameters, grads, strict=True):
        x.grad = g
    expected = nn.utils.clip_grad_norm_(parameters, 5.0, p)
    found = run_threads(2, norms)
    for norm, _ in found:
        assert norm.dtype == expected.dtype == np.float64
        np.testing.assert_allclose(norm.numpy(), expected.numpy(), rtol=1e-14)
    for i, g in enumerate(grads):
        own = [own[i] for _, own in found if own[i] is not None]
        assert len(own) == 1
        np.testing.assert_allclose(own[0].numpy(), g.numpy(), rtol=1e-6)


def test_nonfinite_norm():
    def norm(world):
        net = Net()
        optimizer = ShardedOptimizer(optim.SGD([net.hidden, net.bias]), world)
        if world.rank == 1:
            net.bias.grad = Tensor(np.full(31, np.nan))
        net.hidden.grad = Tensor(np.ones((31, 31)))
        optimizer.reduce()
        assert np.isnan(optimizer.clip_grad_norm_(1.0).item())
        if optimizer.owns(net.hidden):
            np.testing.assert_array_equal(net.hidden.grad.numpy(), np.full((31, 31), 2.0))  # not scaled
        with pytest.raises(RuntimeError, match="norm of the gradients is nan"):
            optimizer.clip_grad_norm_(1.0, error_if_nonfinite=True)
        assert not optimizer.all_finite(world.rank == 0)
        assert optimizer.all_finite(True)

    run_threads(2, norm)


def test_invalid_arguments():
    optimizer = ShardedOptimizer(optim.SGD([Tensor(np.ones(3), requires_grad=True)]), LONELY)
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        optimizer.clip_grad_norm_(0.0)
    with pytest.raises(ValueError, match="norm_type must be above 0"):
        optimizer.clip_grad_norm_(1.0, -1.0)


def test_each_parameter_has_gradient_and_state_on_one_rank():
    def owned(world):
        net, optimizer, _ = train_sharded(adamw, world)
        have_gradient = [name for name, p in net.named_parameters() if p.grad is not None]
        assert all(optimizer.owns(net.get_parameter(name)) for name in have_gradient)
        assert sorted(have_gradient) == with_state(optimizer)
        return have_gradient, sum(map(optimizer.owns, net.parameters()))

    found = run_threads(3, owned)
    assert sorted(chain(*(names for names, _ in found))) == USED
    assert sum(count for _, count in found) == len(list(Net().parameters()))


def test_gradient_on_one_rank_only():
    """`sometimes` has gradients in odd steps, on rank 0: its owner counts two steps, and skips weight decay in even."""

    def count(world):
        net, optimizer, _ = train_sharded(adamw, world)
        state = optimizer.state[1][[p is net.sometimes for p in optimizer.param_groups[1]["params"]].index(True)]
        return optimizer.owns(net.sometimes), state.get("step")

    for size in (2, 3, 4):
        assert sorted(run_threads(size, count))[-1] == (True, 2)


def test_step_needs_reduced_gradients():
    def work(world):
        net = Net()
        optimizer = ShardedOptimizer(adamw(net), world)
        for reset in (lambda: None, optimizer.zero_grad, optimizer.step):
            if reset is not optimizer.step:
                backward(net, 0, part(world))
                optimizer.reduce()
            if reset is optimizer.zero_grad or reset is optimizer.step:
                reset()
                with pytest.raises(RuntimeError, match=r"call reduce\(\) after backward"):
                    optimizer.step()
            else:
                optimizer.step()
            if reset is optimizer.zero_grad:
                optimizer.reduce()

    run_threads(2, work)


def test_capture_does_what_the_eager_step_did(monkeypatch):
    """During the capture of a CUDA graph, nothing is exchanged by the host."""

    def work(world):
        a, b = (Tensor(np.zeros(300), requires_grad=True) for _ in range(2))
        optimizer = ShardedOptimizer(optim.SGD([a, b], lr=1.0), world)
        for captured in (False, True):
            monkeypatch.setattr(buckets, "is_capturing", lambda captured=captured: captured)
            (a if world.rank else b).sum().backward()  # each is used by one rank, which does not own it
            del world.log[:]
            world.barrier()
            optimizer.reduce()
            assert ("all_reduce" in world.log) != captured
            optimizer.step()
            optimizer.zero_grad()
        (a.sum() + b.sum()).backward()
        with pytest.raises(RuntimeError, match="other parameters receive gradients than in the eager step"):
            optimizer.reduce()
        return a.data[0], b.data[0]

    assert run_threads(2, work) == [(-2.0, -2.0)] * 2


def test_mean():
    def gradient(world):
        x = Tensor(np.zeros(700), requires_grad=True)
        optimizer = ShardedOptimizer(optim.SGD([x], lr=1.0), world, mean=True)
        (x * Tensor(np.arange(700.0) * (world.rank + 1))).sum().backward()
        optimizer.reduce()
        optimizer.step()
        return x.data

    for x in run_threads(3, gradient):
        np.testing.assert_array_equal(x, -2 * np.arange(700.0))


def test_step_after_an_all_reduce():
    """PyTorch's ZeroRedundancyOptimizer: DistributedDataParallel has reduced the gradients before `step`."""

    def work(world):
        net = Net()
        optimizer = ShardedOptimizer(adamw(net), world)
        for step in range(STEPS):
            optimizer.zero_grad()
            backward(net, step, np.arange(IMAGES))
            optimizer.clip_grad_norm_(0.3)
            optimizer.needs_reduce = False
            optimizer.step()
        return values(net), with_state(optimizer)

    found = run_threads(3, work)
    for parameters, _ in found:
        expect_equal(parameters, values(train_one(adamw, clip=0.3)[0]), rtol=1e-9, atol=1e-12)
    assert sorted(chain(*(names for _, names in found))) == USED


def test_zero_redundancy_optimizer():
    """PyTorch's lines: DistributedDataParallel averages, all ranks consolidate the state, rank 0 has it."""

    def train(model, optimizer, rows):
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            (model(Tensor(x[rows])) - Tensor(y[rows])).square().mean().backward()
            optimizer.step()
        return values(getattr(model, "module", model))

    def layers():
        rng = np.random.default_rng(0)
        net = nn.Sequential(nn.Linear(7, 31), nn.GELU(), nn.Linear(31, 5)).to(dtype=np.float64)
        for p in net.parameters():
            p.data[...] = rng.standard_normal(p.shape) / 4
        return net

    def work(world):
        net = layers()
        model = DistributedDataParallel(net, world=world)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.AdamW, lr=1e-2, world=world)
        found = train(model, optimizer, part(world))
        with pytest.raises(RuntimeError, match="has not been consolidated on this rank"):
            optimizer.state_dict()
        optimizer.consolidate_state_dict()
        if world.rank:
            with pytest.raises(RuntimeError, match="has not been consolidated on this rank"):
                optimizer.state_dict()
        return found, optimizer.state_dict() if world.rank == 0 else None

    net = layers()
    one = optim.AdamW(net.parameters(), lr=1e-2)
    expected = train(net, one, np.arange(IMAGES))
    found = run_threads(3, work)
    for parameters, _ in found:
        expect_equal(parameters, expected, rtol=1e-9, atol=1e-12)
    again = optim.AdamW(layers().parameters())
    again.load_state_dict(found[0][1])
    expect_equal(again.flat_state_dict(), one.flat_state_dict(), rtol=1e-9, atol=1e-12)


def test_zero_redundancy_optimizer_refuses():
    x = Tensor(np.ones(3), requires_grad=True)
    for refused in ({"process_group": "a group"}, {"overlap_with_ddp": True}):
        with pytest.raises(ValueError, match=r"process_group must be None, .* and overlap_with_ddp False"):
            ZeroRedundancyOptimizer([x], optim.SGD, **refused)
    optimizer = ZeroRedundancyOptimizer([x], optim.SGD, lr=0.5)  # the World of this process
    assert (optimizer.world.size, optimizer.param_groups[0]["lr"]) == (1, 0.5)
    with pytest.raises(ValueError, match="only rank 0 gets the state, got to=1"):
        optimizer.consolidate_state_dict(to=1)


def test_closure():
    def work(world):
        net = Net()
        optimizer = ShardedOptimizer(adamw(net), world)

        def closure():
            backward(net, 1, part(world))
            optimizer.reduce()
            return 5

        with no_grad():
            assert optimizer.step(closure) == 5
        return values(net)

    expect_equal(run_threads(2, work)[1], values(train_one(adamw, [1])[0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [2, 3])
def test_half_precision_parameters(dtype, size):
    def work(world=None):
        net = Net(np.float32).to(dtype=dtype)
        net.scale.data = net.scale.data.astype(np.float32)  # two dtypes: two flat arrays
        optimizer = adamw(net) if world is None else ShardedOptimizer(adamw(net), world)
        for _ in range(STEPS):
            optimizer.zero_grad()
            if world is None or world.rank == 0:  # a sum with zeros rounds nothing
                for p in net.parameters():
                    if p is not net.unused and p.requires_grad:
                        p.grad = Tensor((np.ones(p.shape) / 8).astype(p.dtype))
            if world is not None:
                optimizer.reduce()
            optimizer.step()
        return {name: x.astype(np.float32) for name, x in values(net).items()}

    expected = work()
    for found in run_threads(size, work):
        expect_equal(found, expected)


@pytest.mark.parametrize("overflow_on", [0, 1, 2])
def test_grad_scaler_skips_the_step_on_all_ranks(overflow_on):
    def work(world):
        net = Net()
        optimizer, scaler = ShardedOptimizer(adamw(net), world), optim.GradScaler(2.0**10)
        counts = []
        for step in range(STEPS):
            optimizer.zero_grad()
            backward(net, step, part(world), scaler.get_scale())
            if step == 2 and world.rank == overflow_on:
                net.head.grad.data[0, 0] = np.inf
            before = values(net)
            optimizer.reduce()
            scaler.unscale_(optimizer)
            counts.append(scaler.step(optimizer))
            if step == 2:
                expect_equal(values(net), before)
            scaler.update()
        assert counts == [True, True, False, True]
        assert scaler.get_scale() == 2.0**9
        return values(net)

    expected = values(train_one(adamw, (0, 1, 3))[0])
    for found in run_threads(3, work):
        expect_equal(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "amsgrad", "muon", "momentum"])
@pytest.mark.parametrize("form", ["state_dict", "flat_state_dict"])
def test_resume_with_another_number_of_ranks(name, form, tmp_path):
    """4 ranks -> 2 -> one process -> 3."""
    make = OPTIMIZERS[name]
    expected = values(train_one(make, range(8))[0])

    def stage(steps, saved, world):
        net, state = Net(), None
        if saved is not None:
            net.load_state_dict(saved[0])
            state = saved[1]
        net, optimizer, _ = train_sharded(make, world, steps, state=state, net=net)
        whole = getattr(optimizer, form)()
        return {name: x.copy() for name, x in values(net).items()}, whole

    saved = run_threads(4, partial(stage, range(2), None))[0]
    saved = run_threads(2, partial(stage, range(2, 4), saved))[0]
    net = Net()
    net.load_state_dict(saved[0])
    optimizer = make(net)
    optimizer.load_state_dict(saved[1])
    train_one(make, range(4, 6), net=net, optimizer=optimizer)
    saved = values(net), getattr(optimizer, form)()
    if form == "flat_state_dict":
        serialize.save(tmp_path / "state.npz", saved[1], {})
        saved = saved[0], serialize.load(tmp_path / "state.npz")[0]
    for found, _ in run_threads(3, partial(stage, range(6, 8), saved)):
        expect_equal(found, expected, rtol=1e-9, atol=1e-12)


def test_state_dicts():
    """Rank 0 has the state of one process; the other ranks have learning rates, and which parameters have a state."""
    _, one, _ = train_one(adamw)
    expected = one.flat_state_dict()

    def work(world):
        optimizer = train_sharded(adamw, world)[1]
        return optimizer.flat_state_dict(), optimizer.state_dict()

    first, *others = run_threads(3, work)
    assert first[0].keys() == expected.keys()
    expect_equal(first[0], expected, rtol=1e-9, atol=1e-12)
    pytorch = one.state_dict()
    assert first[1]["param_groups"] == pytorch["param_groups"]
    assert first[1]["state"].keys() == pytorch["state"].keys()
    for flat, torch in others:
        assert flat.keys() == {"0.lr", "0.has_state", "1.lr", "1.has_state"}
        expect_equal(flat, {name: expected[name] for name in flat})
        assert torch == {"state": {}, "param_groups": pytorch["param_groups"]}


@pytest.mark.parametrize("form", ["state_dict", "flat_state_dict"])
def test_a_misfit_on_one_rank_is_an_error_on_all(form):
    """Each rank checks the states of its own parameters."""
    state = getattr(train_one(adamw)[1], form)()
    if form == "flat_state_dict":
        state["1.2.m"] = np.ones(3)
    else:
        state["state"][5]["exp_avg"] = np.ones(3)

    def work(world):
        net = Net()
        optimizer = ShardedOptimizer(adamw(net), world)
        with pytest.raises(ValueError, match=r"'1\.2\.m' does not fit .* shape \(3,\), the parameter \(5, 31\)"):
            optimizer.load_state_dict(state)
        return optimizer.owns(net.head), any(map(any, optimizer.state))

    assert sorted(run_threads(3, work)) == [(False, False), (False, False), (True, False)]


@pytest.mark.parametrize("form", ["state_dict", "flat_state_dict"])
def test_loaded_states_are_kept_by_the_owners(form):
    parameters = [Tensor(np.full(3, i), requires_grad=True) for i in np.arange(12.0)]
    one = optim.SGD(parameters, momentum=0.9)
    sum(p.square().sum() for p in parameters).backward()
    one.step()
    state = getattr(one, form)()

    def work(world):
        optimizer = ShardedOptimizer(optim.SGD([Tensor(np.zeros(3), requires_grad=True) for _ in parameters]), world)
        optimizer.param_groups[0]["momentum"] = 0.9
        optimizer.load_state_dict(state)
        assert optimizer.state_names(optimizer.param_groups[0]) == ("v",)
        return {i: own["v"][0] for i, own in enumerate(optimizer.state[0]) if own}

    first, second = run_threads(2, work)
    assert not first.keys() & second.keys()
    assert first | second == {i: 2.0 * i for i in range(12)}


def test_older_state_without_has_state():
    state = {"0.lr": np.asarray(0.5), "0.0.v": np.ones(700), "0.1.v": np.ones(3)}

    def work(world):
        parameters = [Tensor(np.zeros(n), requires_grad=True) for n in (700, 3)]
        optimizer = ShardedOptimizer(optim.SGD(parameters, momentum=0.9), world)
        optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["lr"] == 0.5
        return [list(own) for own in optimizer.state[0]]

    assert run_threads(2, work) == [[["v"], []], [[], ["v"]]]


def test_state_at_creation_is_kept_by_the_owners():
    state = train_one(adamw)[1].flat_state_dict()

    def work(world):
        optimizer = adamw(Net())
        optimizer.load_state_dict(state)
        optimizer = ShardedOptimizer(optimizer, world)
        return optimizer.flat_state_dict(), with_state(optimizer)

    found = run_threads(3, work)
    expect_equal(found[0][0], state)
    assert sorted(chain(*(names for _, names in found))) == USED


def test_added_groups():
    def work(world):
        a, b = (Tensor(np.zeros(n), requires_grad=True) for n in (700, 300))
        optimizer = ShardedOptimizer(optim.SGD([a], lr=1.0, momentum=0.5), world)
        optimizer.add_param_group({"params": [b], "lr": 2.0})
        for _ in range(2):
            optimizer.zero_grad()
            (a.sum() + b.sum()).backward()
            optimizer.reduce()
            optimizer.step()
        return a.data[0], b.data[0], [len(state) for states in optimizer.state for state in states]

    found = run_threads(2, work)
    assert [x[:2] for x in found] == [(-5.0, -10.0)] * 2
    assert [x[2] for x in found] == [[1, 1], [0, 0]]  # apart from each other, both go to rank 0


def test_parameters_start_equal_to_rank_0():
    def work(world):
        net = Net()
        for p in net.parameters():
            p.data[...] += world.rank
        ShardedOptimizer(adamw(net), world)
        return values(net)

    for found in run_threads(2, work):
        expect_equal(found, values(Net()))


def test_different_models_are_refused():
    def work(world):
        x = Tensor(np.zeros(3 + world.rank), requires_grad=True)
        with pytest.raises(ValueError, match="parameters of the ranks differ"):
            ShardedOptimizer(optim.SGD([x]), world)

    run_threads(2, work)


def test_views_work_as_parameters(tmp_path):
    """Views of the flat array behave as arrays of their own in checkpoints, EMA, copies and in-place writes."""
    net = Net()
    ema = optim.EMA(net, 0.5)
    net, optimizer, _ = train_sharded(adamw, LONELY, net=net)
    before = values(net)
    ema.update()
    with ema.applied():
        assert not np.array_equal(net.hidden.data, before["hidden"])
        with pytest.raises(RuntimeError, match=r"another array than at the creation .* EMA\.applied\(\)"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="another array"):
            optimizer.reduce()
    expect_equal(values(net), before)
    serialize.save(tmp_path / "net.npz", net.state_dict(), {})
    other = Net()
    other.load_state_dict(serialize.load(tmp_path / "net.npz")[0])
    expect_equal(values(other), before)
    copied = copy.deepcopy(net)
    assert copied.hidden.data.base is None or copied.hidden.data.base.size == copied.hidden.data.size
    expect_equal(values(copied), before)
    net.load_state_dict(values(Net()))
    optimizer.flats[0].expect_views()
    expect_equal(values(net), values(Net()))


def test_to_another_dtype_is_refused():
    net = Net()
    optimizer = ShardedOptimizer(adamw(net), LONELY)
    net.to(dtype=np.float32)
    with pytest.raises(RuntimeError, match="create the optimizer after model"):
        optimizer.step()


def test_backward_after_clipping_is_refused():
    x, w = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    optimizer = ShardedOptimizer(optim.SGD([x]), LONELY)
    x.sum().backward()
    loss = (w * x.grad).sum()
    optimizer.clip_grad_norm_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("size", [1, 2])
def test_backward_after_a_step_is_refused(size):
    """Also on ranks that update no parameter, whose parameters change by the all-gather."""

    def work(world):
        x = Tensor(np.ones((3, 3)), requires_grad=True)
        optimizer = ShardedOptimizer(optim.SGD([x]), world)
        loss = (x @ x).sum()
        loss.backward(retain_graph=True)
        optimizer.reduce()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    run_threads(size, work)


def test_bytes_of_a_rank():
    def work(world):
        net, optimizer, _ = train_sharded(adamw, world)
        before = optimizer.nbytes()
        optimizer.zero_grad()
        backward(net, 1, np.arange(IMAGES))
        return before, optimizer.nbytes(), sum(p.grad.data.nbytes for p in net.parameters() if p.grad is not None)

    (one, _, _), *_ = run_threads(1, work)
    parameters = sum(p.data.nbytes for p in Net().parameters())
    moments = 2 * sum(p.data.nbytes for name, p in Net().named_parameters() if name not in ("unused", "frozen"))
    assert one["state"] == moments
    assert one["gradients"] == moments // 2  # no further arrays: nothing is reduced
    assert parameters <= one["parameters"] <= parameters + 2 * 8 * 256
    found = run_threads(2, work)
    assert sum(before["state"] for before, _, _ in found) == moments
    for before, after, grads in found:
        assert before["state"] < 0.8 * moments
        assert after["gradients"] == before["gradients"] + grads


def test_one_gather_per_dtype_and_one_scatter_per_chunk():
    def work(world):
        net = Net()
        optimizer = ShardedOptimizer(adamw(net), world)
        backward(net, 0, part(world))
        del world.log[:]
        optimizer.reduce()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        return world.log, optimizer.flats[0].values.nbytes

    for calls, nbytes in run_threads(2, work):
        chunks = -(-nbytes // sharded.CHUNK)
        assert calls == ["all_reduce"] + ["reduce_scatter"] * chunks + ["all_reduce", "all_gather_into"]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 9))
def test_owners(sizes, ranks):
    owners = assign_owners(sizes, ranks)
    totals = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert len(owners) == len(sizes)
    assert sum(totals) == sum(sizes)
    assert ranks * max(totals) <= sum(sizes) + (ranks - 1) * max(sizes)
    assert owners == assign_owners(list(sizes), ranks)


def test_the_largest_parameters_are_assigned_first():
    assert assign_owners([3, 3, 2, 2, 2], 2) == [0, 1, 0, 1, 0]
    assert assign_owners([1, 1, 1, 1, 4], 2) == [1, 1, 1, 1, 0]


@given(st.lists(st.integers(0, 700), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 3000))
def test_pieces_cover_each_parameter_once(sizes, ranks, chunk):
    """Every element is in one piece, no two share a place, and only the last piece of a parameter is marked."""
    world = World(0, ranks)
    world.broadcast = lambda *arrays: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "CHUNK", chunk)
        flat = Flat([Tensor(np.zeros(n, np.float32)) for n in sizes], world)
    assert not any(start * 4 % sharded.ALIGNMENT for start in flat.starts)
    seen, last = [np.zeros(n, int) for n in sizes], [0] * len(sizes)
    for pieces in flat.chunks:
        used = np.zeros((ranks, flat.width), int)
        for i, place, elements, is_last in pieces:
            assert not last[i]
            assert place[0] == flat.owners[i]
            used[place] += 1
            seen[i][elements] += 1
            last[i] += is_last
        assert used.max(initial=0) <= 1
    assert last == [int(n > 0) for n in sizes]
    assert all((own == 1).all() for own in seen)


@needs_mpi
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_ranks_of_mpiexec(dtype):
    """Training, clipping, skipped steps, saving and loading, with a real World: equal to one process."""
    code = f"""
import hashlib
from minigrad.parallel import world
from tests.parallel import test_sharded as t

w, net = world(), t.Net().to(dtype={dtype!r})
t.sharded.CHUNK = 2048
net, optimizer, norms = t.train_sharded(t.adamw, w, range(2), net=net)
state = [optimizer.flat_state_dict()]
if w.rank == 0:
    t.serialize.save("STATE", state[0], {{}})
w.barrier()
net, optimizer, norms = t.train_sharded(t.adamw, w, range(2, 4), 0.3, t.serialize.load("STATE")[0], net)
assert not optimizer.all_finite(w.rank == 0)
expected, one, _ = t.train_one(t.adamw, range(2), net=t.Net().to(dtype={dtype!r}))
expected, _, expected_norms = t.train_one(t.adamw, range(2, 4), 0.3, expected, one)
tolerance = dict(rtol=1e-9, atol=1e-12) if {dtype!r} == "float64" else dict(rtol=0.05, atol=0.02)
t.expect_equal(t.values(net), t.values(expected), **tolerance)
t.np.testing.assert_allclose(norms, expected_norms, rtol=tolerance["rtol"])
print(hashlib.sha256(b"".join(x.tobytes() for x in t.values(net).values())).hexdigest())
"""
    with TemporaryDirectory() as folder:
        first, second = run(2, code.replace("STATE", f"{folder}/state.npz"), timeout=60).out
    assert len(first) == 65 and first == second
