"""A captured training step equals the eager step, bit for bit (without a GPU: on tests/cupy_on_cpu)."""

import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
import models
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.backend import capture, empty, to_device
from minigrad.backend.batch import Rows
from minigrad.backend.random import Generator
from minigrad.cuda_graph import GraphedStep, _graph_pool
from minigrad.nn.module import Buffer
from models.compare import formula
from tests.cuda.runner import needs_compiler
from tests.models.test_devices import SMALL

pytestmark = needs_compiler  # a graph can contain AdamW's kernel only


@pytest.fixture(autouse=True)
def only_on_a_gpu(device):
    if device == "cpu":
        pytest.skip("CUDA graphs need a GPU")


class Flatten(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def train(build, batches, graphed, warmup=2, clip=0.0, amp=False):
    """The losses, parameters and optimizer state at the end, and the GraphedStep."""
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
    return losses, state | {key: np.asarray(value) for key, value in optimizer.flat_state_dict().items()}, run


def batches_of(sizes, shape):
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
def test_captured_models_equal_eager_steps(name):
    size = SMALL[name]["img_size"]
    # CuPy sums the gradient of Swin's bias table in no fixed order.
    rtol = 1e-4 if name.startswith("swin") and hasattr(sys.modules["cupy"], "__file__") else 0.0
    assert_same(
        lambda: formula.fill(models.create_model(name, **SMALL[name])), batches_of([4] * 5, (3, size, size)), rtol
    )


def test_replays_draw_the_dropout_masks_of_eager_steps():
    """Every replay draws new masks."""

    def build():
        return nn.Sequential(Flatten(), nn.Linear(48, 20), nn.Dropout(0.5), nn.Linear(20, 10), nn.Dropout(0.1))

    assert_same(build, batches_of([4] * 6, (3, 4, 4)))


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 4))
def test_replays_draw_the_next_words_of_each_generator(draws, before, steps):
    """Draws from two generators come in any order."""
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


def test_replays_draw_for_the_part_of_the_batch():
    """A call for another part of a batch runs eagerly, even if the part has as many images."""
    parameter = Tensor(to_device(np.ones(2, np.float32), "cuda"), requires_grad=True)
    optimizer, generator = optim.AdamW([parameter]), Generator(1)

    def step(x):
        optimizer.zero_grad()
        (parameter * Tensor(x)).sum().backward()
        optimizer.step()
        return generator.uniform((2, 3), device="cuda", axis=0)

    run = GraphedStep(step, optimizer, warmup=1, generators=[generator])
    x = to_device(np.ones(2, np.float32), "cuda")
    part, other = Rows(6, ((0, 1), (5, 6))), Rows(6, ((1, 2), (4, 5)))
    for draw, rows in enumerate([part, part, part, other, part, other]):
        generator.rows = rows
        found = to_device(run(x), "cpu")
        np.testing.assert_array_equal(found, Generator(1, draw).uniform((rows.count, 3))[rows.index])
    assert run.graph is not None and generator.draws == 6


def test_captured_batch_norm_equals_eager_steps():
    assert_same(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Flatten(), nn.Linear(16, 10)),
        batches_of([4] * 5, (3, 4, 4)),
    )


def test_smaller_batch_runs_eagerly():
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    assert_same(build, batches_of([4, 4, 4, 4, 3, 4, 3, 4], (3, 4, 4)))


@pytest.mark.parametrize("sizes", [[4, 4, 3, 4, 4, 3, 4], [4, 3, 3, 3, 4, 4]], ids=str)
def test_capture_waits_for_the_shapes_of_the_first_batch(sizes):
    """The warm-up may end with a smaller last batch: a graph of its shape would never replay for full batches."""
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    assert_same(build, batches_of(sizes, (3, 4, 4)))
    _, _, run = train(build, batches_of(sizes, (3, 4, 4)), graphed=True)
    assert [len(x) for x in run.inputs] == [4, 4]


@pytest.mark.parametrize("options", [{"clip": 0.05}, {"amp": True}, {"clip": 0.05, "amp": True}], ids=str)
def test_eager_steps_between_replays_have_other_tables(options):
    """Clipping, casts and AdamW have tables of pointers."""
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 20), nn.LayerNorm(20), nn.Linear(20, 10))  # noqa: E731
    assert_same(build, batches_of([4, 4, 4, 4, 3, 4, 3, 4], (3, 4, 4)), **options)


def test_tables_are_not_allocated_from_the_pool_of_the_graph(monkeypatch):
    """The graph's pool reuses memory that is freed during the capture: a kernel could overwrite a filled table."""
    allocators = []

    def recording(*arguments):
        allocators.append(sys.modules["cupy"].cuda.get_allocator())
        return empty(*arguments)

    monkeypatch.setattr("minigrad.backend.capture.empty", recording)
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    _, _, run = train(build, batches_of([4] * 4, (3, 4, 4)), graphed=True, clip=1.0, amp=True)
    assert len(run.tables.tables) == 3
    assert all(run.tables.pool.malloc == malloc != run.pool.malloc for malloc in allocators) and len(allocators) == 3


def test_two_captured_optimizer_steps_equal_eager_ones():
    """Each step increments t, and uses the bias corrections of its t."""

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
        return {**optimizer.flat_state_dict(), "x": parameter.numpy()}

    found, expected = run(True), run(False)
    assert found["0.0.step"] == 8
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_capture_frees_the_unused_memory_of_the_eager_steps():
    """The pool of the graph cannot use it: without this, a captured step would take the memory of two steps."""
    pool = sys.modules["cupy"].get_default_memory_pool()
    run, x = adamw_step(np.ones(3, np.float32))
    if hasattr(sys.modules["cupy"], "__file__"):
        unused = to_device(np.zeros(1 << 22, np.float32), "cuda")
        del unused
        before = pool.total_bytes()
        run(x)
        assert pool.total_bytes() <= before - (1 << 24)
    else:
        before = pool.frees
        run(x)
        assert pool.frees == before + 1


def test_graph_pool_never_frees_memory_of_captured_kernels():
    """CuPy's pools free unused memory and try again after a CUDARuntimeError, and at their limit."""
    cuda = sys.modules["cupy"].cuda
    error = cuda.runtime.CUDARuntimeError

    def fail(size):
        raise error(2)

    pools = []

    def pool_of(allocate):
        pools.append(SimpleNamespace(allocate=allocate, set_limit=lambda size: limits.append(size)))
        return pools[0]

    limits = []
    runtime = SimpleNamespace(CUDARuntimeError=error)
    full = SimpleNamespace(Memory=fail, MemoryPointer=tuple, MemoryPool=pool_of, runtime=runtime)
    assert _graph_pool(full) is pools[0] and limits == [0]
    with pytest.raises(MemoryError, match="use a smaller batch") as raised:
        pools[0].allocate(3 << 20)
    assert not isinstance(raised.value, error)


def test_replay_writes_its_outputs_to_the_same_memory(device):
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    _, _, run = train(build, batches_of([4] * 4, (3, 4, 4)), graphed=True)
    assert gc.isenabled()
    before = run.outputs.data.ptr
    run(*run.inputs)
    assert run.outputs.data.ptr == before


def test_backward_after_a_replay_detects_the_update():
    """A replay writes to the parameters, so a node that saved a parameter before cannot compute its gradient."""
    model = nn.Linear(4, 4).to("cuda")
    optimizer = optim.AdamW(model.parameters())

    def step(x):
        optimizer.zero_grad()
        model(Tensor(x)).sum().backward()
        optimizer.step()
        return x

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(np.ones((2, 4), np.float32), "cuda")
    for _ in range(3):
        run(x)
        y = model(Tensor(x, requires_grad=True)).sum()
    run(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_replay_copies_its_inputs():
    """A replay does not write to the arrays of the call that captured."""
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


def test_synchronizing_during_capture_raises():
    model = nn.Sequential(Flatten(), nn.Linear(48, 10)).to("cuda")
    optimizer = optim.AdamW(model.parameters())

    def step(images, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(Tensor(images)), Tensor(labels))
        loss.backward()
        optimizer.step()
        return loss.item()

    run = GraphedStep(step, optimizer, warmup=1)
    batch = [to_device(x, "cuda") for x in batches_of([4], (3, 4, 4))[0]]
    run(*batch)
    draws = minigrad.random.default_generator().draws
    with pytest.raises(RuntimeError, match="capturing"):
        run(*batch)
    assert run.graph is None and not capture.is_capturing() and gc.isenabled()
    assert minigrad.random.default_generator().draws == draws


def test_copy_from_the_host_during_capture_raises():
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


def test_first_gradient_during_capture_raises():
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
    batch = [to_device(x, "cuda") for x in batches_of([4], (3, 4, 4))[0]]
    run(*batch)
    with pytest.raises(RuntimeError, match="use a larger `warmup`"):
        run(*batch)


def test_other_optimizers_raise():
    parameter = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(TypeError, match=r"must be AdamW.*got SGD"):
        GraphedStep(lambda: None, optim.SGD([parameter]))


def adamw_step(x, **options):
    """A step of AdamW on a parameter with the dtype of x, warmed up, and x: the next call captures."""
    parameter = Tensor(to_device(np.ones(3, x.dtype), "cuda"), requires_grad=True)
    optimizer = optim.AdamW([parameter], **options)

    def step(x):
        optimizer.zero_grad()
        (parameter * Tensor(x)).sum().backward()
        optimizer.step()
        return x

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(x, "cuda")
    run(x)
    return run, x


@pytest.mark.parametrize(("dtype", "amsgrad"), [("float64", False), ("float32", True)])
def test_adamw_without_its_fast_path_during_capture_raises(dtype, amsgrad):
    run, x = adamw_step(np.ones(3, dtype), amsgrad=amsgrad)
    message = rf"AdamW: .* contiguous float32 parameters and gradients, without amsgrad, got {dtype}"
    with pytest.raises(RuntimeError, match=message):
        run(x)
    assert run.optimizer.state[0][0]["step"] == 1


def test_capture_without_fast_paths_raises():
    run, x = adamw_step(np.ones(3, np.float32))
    with (
        minigrad.without_fast_paths(),
        pytest.raises(RuntimeError, match="AdamW: a CUDA graph can capture only the CUDA"),
    ):
        run(x)
    run(x)
    assert run.graph is not None and run.optimizer.state[0][0]["step"] == 2


def test_muon_of_a_matrix_during_capture_raises():
    matrix = Tensor(to_device(np.ones((3, 3), np.float32), "cuda"), requires_grad=True)
    optimizer = optim.Muon([{"params": [matrix], "muon": True}])

    def step(x):
        optimizer.zero_grad()
        (matrix * Tensor(x)).sum().backward()
        optimizer.step()
        return x

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(np.ones((3, 3), np.float32), "cuda")
    run(x)
    with pytest.raises(RuntimeError, match="cannot contain the update of a matrix"):
        run(x)


def test_loading_a_state_captures_again():
    build = lambda: nn.Sequential(Flatten(), nn.Linear(48, 10))  # noqa: E731
    batches = batches_of([4] * 3, (3, 4, 4))
    _, _, run = train(build, batches, graphed=True)
    first = run.graph
    saved = {key: np.array(value) for key, value in run.optimizer.flat_state_dict().items()}
    run.optimizer.load_state_dict(saved)
    run(*(to_device(x, "cuda") for x in batches[0]))
    assert run.graph is not first
    steps = [value for key, value in run.optimizer.flat_state_dict().items() if key.endswith("step")]
    assert [int(value) for value in steps] == [len(batches) + 1] * 2


def test_warmup_of_0_raises():
    with pytest.raises(ValueError, match="at least 1"):
        GraphedStep(lambda: None, optim.AdamW([Tensor(1.0, requires_grad=True)]), warmup=0)


@pytest.mark.parametrize("warmup", [False, True])
def test_captured_ema_equals_eager_updates(warmup):
    """Each replay increments the number of updates, and uses the decay of that number; an integer buffer is copied."""

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


def test_ema_of_float64_during_capture_raises():
    model = nn.Linear(4, 4).to("cuda")
    optimizer, ema = optim.AdamW(model.parameters()), optim.EMA(model.to(dtype=np.float64))

    def step(x):
        ema.update()
        return x

    run = GraphedStep(step, optimizer, warmup=1)
    x = to_device(np.ones((2, 4), np.float32), "cuda")
    run(x)
    with pytest.raises(RuntimeError, match=r"EMA: .* supports contiguous float32 arrays, got float64"):
        run(x)
    assert ema.updates == 1
