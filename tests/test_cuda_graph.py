"""A captured training step does what the step does, bit for bit (on a stand-in for CuPy where there is no GPU)."""

import gc
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
import models
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.backend import empty, to_device
from minigrad.backend.random import Generator
from minigrad.cuda_graph import GraphedStep
from minigrad.kernels.cuda import table
from minigrad.nn.module import Buffer
from models.compare import formula
from tests.cuda.runner import needs_compiler
from tests.models.test_devices import SMALL

pytestmark = needs_compiler  # AdamW in a graph is a kernel


@pytest.fixture(autouse=True)
def only_on_a_gpu(device):
    if device == "cpu":
        pytest.skip("graphs are CUDA's")


class Flatten(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def train(build, batches, graphed, warmup=2, clip=0.0, amp=False):
    """The losses, the parameters at the end, and the wrapped step."""
    minigrad.manual_seed(7)
    model = build().to(dtype=np.float32).to("cuda")
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = optim.WarmupCosine(optimizer, 2, 10)

    def step(images, labels):
        optimizer.zero_grad()
        with minigrad.autocast("bfloat16", amp, model.parameters()):
            loss = F.cross_entropy(model(Tensor(images)).float(), Tensor(labels))
        loss.backward()
        if clip:
            optim.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return loss.data

    run = GraphedStep(step, optimizer, warmup) if graphed else step
    losses = []
    for images, labels in batches:
        losses.append(run(to_device(images, "cuda"), to_device(labels, "cuda")).item())
        schedule.step()
    state = {name: value.cpu().numpy() for name, value in model.state_dict().items()}
    return losses, state | {key: np.asarray(value) for key, value in optimizer.state_dict().items()}, run


def made(sizes, shape):
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((n, *shape)).astype(np.float32), rng.integers(0, 10, n)) for n in sizes]


def assert_same(build, batches, rtol=0.0, **options):
    losses, state, _ = train(build, batches, graphed=False, **options)
    found_losses, found, run = train(build, batches, graphed=True, **options)
    assert run.graph is not None
    np.testing.assert_allclose(found_losses, losses, rtol=rtol)
    for key, value in state.items():
        np.testing.assert_allclose(found[key], value, rtol=rtol, atol=rtol, err_msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_models(name):
    size = SMALL[name]["img_size"]
    # CuPy adds Swin's bias table up in whatever order the card comes to it.
    rtol = 1e-4 if name.startswith("swin") and hasattr(sys.modules["cupy"], "__file__") else 0.0
    assert_same(lambda: formula.fill(models.create_model(name, **SMALL[name])), made([4] * 5, (3, size, size)), rtol)


def test_dropout_goes_on_where_it_was():
    """Every replay has masks of its own, the same as without a graph."""

    def build():
        return nn.Sequential(Flatten(), nn.Linear(48, 20), nn.Dropout(0.5), nn.Linear(20, 10), nn.Dropout(0.1))

    assert_same(build, made([4] * 6, (3, 4, 4)))


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 4))
def test_several_generators_go_on_where_they_were(draws, before, steps):
    """Whichever of two is drawn from in which order, each replay gives the next words of each."""
    parameter = Tensor(to_device(np.ones(2, np.float32), "cuda"), requires_grad=True)
    optimizer = optim.AdamW([parameter])
    ours, theirs = [Generator(1, before), Generator(2)], [Generator(1, before), Generator(2)]

    def step(x):
        optimizer.zero_grad()
        (parameter * Tensor(x)).sum().backward()
        optimizer.step()
        return tuple(ours[second].words(3, "cuda") for second in draws)

    run = GraphedStep(step, optimizer, warmup=1, generators=ours)
    x = to_device(np.ones(2, np.float32), "cuda")
    for _ in range(1 + steps):
        for found, second in zip(run(x), draws, strict=True):
            np.testing.assert_array_equal(to_device(found, "cpu"), theirs[second].words(3))
        assert [g.draws for g in ours] == [g.draws for g in theirs]
    assert run.graph is not None and all(g.captured is None for g in ours)


def test_batch_normalisation():
    assert_same(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Flatten(), nn.Linear(16, 10)),
        made([4] * 5, (3, 4, 4)),
    )


def test_a_smaller_batch_runs_as_it_is():
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    assert_same(build, made([4, 4, 4, 4, 3, 4, 3, 4], (3, 4, 4)))


@pytest.mark.parametrize("sizes", [[4, 4, 3, 4, 4, 3, 4], [4, 3, 3, 3, 4, 4]], ids=str)
def test_what_is_recorded_is_a_batch_like_the_first(sizes):
    """Also where the warm-up ends with an epoch, whose last batch is smaller: else whole batches would never replay."""
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    assert_same(build, made(sizes, (3, 4, 4)))
    _, _, run = train(build, made(sizes, (3, 4, 4)), graphed=True)
    assert [len(x) for x in run.inputs] == [4, 4]


@pytest.mark.parametrize("options", [{"clip": 0.05}, {"amp": True}, {"clip": 0.05, "amp": True}], ids=str)
def test_tables_of_a_graph_are_its_own(options):
    """Of clipping, rounding and AdamW: those of a step in between, on a smaller batch, are others."""
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 20), nn.LayerNorm(20), nn.Linear(20, 10))  # noqa: E731
    assert_same(build, made([4, 4, 4, 4, 3, 4, 3, 4], (3, 4, 4)), **options)


def test_tables_are_in_memory_that_the_graph_does_not_use_again(monkeypatch):
    """What is freed while it is captured is another's memory in it, before the table is read and after it is filled."""
    allocators = []

    def noting(*arguments):
        allocators.append(sys.modules["cupy"].cuda.get_allocator())
        return empty(*arguments)

    monkeypatch.setattr("minigrad.kernels.cuda.table.empty", noting)
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    _, _, run = train(build, made([4] * 4, (3, 4, 4)), graphed=True, clip=1.0, amp=True)
    assert len(run.tables.tables) == 3
    assert all(run.tables.pool.malloc == malloc != run.pool.malloc for malloc in allocators) and len(allocators) == 3


def test_two_steps_of_the_optimizer_in_a_graph():
    """Each counts, and has the numbers of its own t."""

    def run(graphed):
        parameter = Tensor(to_device(np.ones(3, np.float32), "cuda"), requires_grad=True)
        optimizer = optim.AdamW([parameter], lr=0.1)

        def step(x):
            optimizer.zero_grad()
            (parameter * parameter * Tensor(x)).sum().backward()
            optimizer.step()
            optimizer.step()
            return x

        step = GraphedStep(step, optimizer, warmup=1) if graphed else step
        for _ in range(4):
            step(to_device(np.arange(3, dtype=np.float32), "cuda"))
        return {**optimizer.state_dict(), "x": parameter.numpy()}

    found, expected = run(True), run(False)
    assert found["0.0.step"] == 8
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_replay_launches_the_same_with_the_same_arguments(device):
    """And allocates nothing: what is new since the capture would show in the addresses."""
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    _, _, run = train(build, made([4] * 4, (3, 4, 4)), graphed=True)
    assert gc.isenabled()
    before = run.outputs.data.ptr
    run(*run.inputs)
    assert run.outputs.data.ptr == before


def test_inputs_are_copied_in():
    """What was captured with is the caller's, and free to change."""
    model = nn.Linear(4, 4).to("cuda")
    optimizer = optim.AdamW(model.parameters(), lr=0.0)

    def step(x):
        optimizer.zero_grad()
        loss = model(Tensor(x)).sum()
        loss.backward()
        optimizer.step()
        return loss.data

    run = GraphedStep(step, optimizer, warmup=1)
    first, second = (to_device(np.full((2, 4), value, np.float32), "cuda") for value in (1.0, 2.0))
    run(first)
    run(first)
    run(second)
    np.testing.assert_array_equal(first.get(), 1)


def test_what_waits_for_the_device_is_refused():
    model = nn.Sequential(Flatten(), nn.Linear(48, 10)).to("cuda")
    optimizer = optim.AdamW(model.parameters())

    def step(images, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(Tensor(images)), Tensor(labels))
        loss.backward()
        optimizer.step()
        return loss.item()

    run = GraphedStep(step, optimizer, warmup=1)
    batch = [to_device(x, "cuda") for x in made([4], (3, 4, 4))[0]]
    run(*batch)
    draws = minigrad.random.default_generator().draws
    with pytest.raises(RuntimeError, match="capture"):
        run(*batch)
    assert run.graph is None and not table.is_capturing() and gc.isenabled()
    assert minigrad.random.default_generator().draws == draws


def test_a_copy_from_the_host_is_refused():
    parameter = Tensor(to_device(np.ones(3, np.float32), "cuda"), requires_grad=True)
    optimizer = optim.AdamW([parameter])

    def step(x):
        optimizer.zero_grad()
        (parameter * Tensor(to_device(np.ones(3, np.float32), "cuda"))).sum().backward()
        optimizer.step()
        return x

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(np.ones(3, np.float32), "cuda")
    run(x)
    with pytest.raises(RuntimeError, match="host memory that was freed"):
        run(x)


def test_a_first_gradient_must_not_come_in_the_capture():
    model = nn.Sequential(Flatten(), nn.Linear(48, 10)).to("cuda")
    optimizer = optim.AdamW(model.parameters())
    calls = []

    def step(images, labels):
        optimizer.zero_grad()
        calls.append(images)
        if len(calls) > 1:
            F.cross_entropy(model(Tensor(images)), Tensor(labels)).backward()
        optimizer.step()
        return images

    run = GraphedStep(step, optimizer, warmup=1)
    batch = [to_device(x, "cuda") for x in made([4], (3, 4, 4))[0]]
    run(*batch)
    with pytest.raises(RuntimeError, match="warm up longer"):
        run(*batch)


def test_only_adamw_reads_its_rate_anew():
    parameter = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(TypeError, match=r"is for AdamW.*got SGD"):
        GraphedStep(lambda: None, optim.SGD([parameter]))


def test_parameters_whose_rate_would_stay_are_refused():
    parameter = Tensor(to_device(np.ones(3), "cuda"), requires_grad=True)  # float64
    optimizer = optim.AdamW([parameter])

    def step(x):
        optimizer.zero_grad()
        (parameter * Tensor(x)).sum().backward()
        optimizer.step()
        return x

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(np.ones(3), "cuda")
    run(x)
    with pytest.raises(RuntimeError, match="takes float32 parameters"):
        run(x)


def test_a_state_that_is_loaded_is_captured_anew():
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    batches = made([4] * 3, (3, 4, 4))
    _, _, run = train(build, batches, graphed=True)
    first = run.graph
    saved = {key: np.array(value) for key, value in run.optimizer.state_dict().items()}
    run.optimizer.load_state_dict(saved)
    run(*(to_device(x, "cuda") for x in batches[0]))
    assert run.graph is not first
    steps = [value for key, value in run.optimizer.state_dict().items() if key.endswith("step")]
    assert [int(value) for value in steps] == [len(batches) + 1] * 2


def test_there_is_always_a_warm_up():
    with pytest.raises(ValueError, match="at least one"):
        GraphedStep(lambda: None, optim.AdamW([Tensor(1.0, requires_grad=True)]), warmup=0)


@pytest.mark.parametrize("warmup", [False, True])
def test_an_average_is_a_part_of_the_step(warmup):
    """Each replay counts, and has the decay of its own number; a buffer that is counted is copied."""

    class Counting(nn.Module):
        def __init__(self):
            self.layer = formula.fill(nn.Linear(4, 4)).to(dtype=np.float32)
            self.count = Buffer(np.zeros((), np.int64))

    def run(graphed):
        model = Counting().to("cuda")
        optimizer, ema = optim.AdamW(model.parameters(), lr=0.1), optim.EMA(model, 0.9, warmup=warmup)

        def step(x):
            optimizer.zero_grad()
            model.layer(Tensor(x)).sum().backward()
            optimizer.step()
            model.count.data += 1
            ema.update()
            return x

        step = GraphedStep(step, optimizer, warmup=1) if graphed else step
        for _ in range(5):
            step(to_device(np.ones((2, 4), np.float32), "cuda"))
        return ema.state_dict()

    found, expected = run(True), run(False)
    assert found["updates"] == found["count"] == 5
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_an_average_of_another_type_is_not_captured():
    model = nn.Linear(4, 4).to("cuda")
    optimizer, ema = optim.AdamW(model.parameters()), optim.EMA(model.to(dtype=np.float64))

    def step(x):
        ema.update()
        return x

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(np.ones((2, 4), np.float32), "cuda")
    run(x)
    with pytest.raises(RuntimeError, match="must be of float32"):
        run(x)
    assert ema.updates == 1
