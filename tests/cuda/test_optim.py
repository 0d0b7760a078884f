"""The kernels of optim.cu, each for all parameters in one launch, against minigrad/ops/updates.py."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from minigrad.backend.fast_paths import call
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.kernels.cuda.table import CHUNK, Table
from minigrad.nn.module import Buffer
from minigrad.ops import updates
from tests.cuda.runner import ORDERS, KernelError, barriers, emulated, guarded, needs_compiler

pytestmark = needs_compiler

# Empty, one, less than a warp, around the threads of a block and a chunk, and more than two chunks
SIZES = st.lists(st.sampled_from([0, 1, 5, 31, 255, 257, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77]), max_size=12)
SIDES = pytest.mark.parametrize("side", ["before", "after"])


def drawn(rng, size):
    """Normal values, aligned to 4 bytes, and only sometimes to 16."""
    shift = int(rng.integers(4))
    return rng.standard_normal(size + shift).astype(np.float32)[shift:]


def filled(size, side, rng):
    """Normal values beside a protected page."""
    x = guarded(size, side=side)
    x[...] = rng.standard_normal(size)
    return x


def parameters(arrays, grads):
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = Tensor(grad)
    return tensors


@contextmanager
def recorded(order=ORDERS[0]):
    """Within the block, kernels run and their launches are recorded."""
    with emulated(order) as device, use_device(recorder := Recorder(device)):
        yield recorder.launches


# AdamW --------------------------------------------------------------------------------------------------------------


def steps(x, grads, make=optim.AdamW, **options):
    parameter = Tensor(x.copy(), requires_grad=True)
    optimizer = make([parameter], **options)
    for grad in grads:
        parameter.grad = Tensor(grad)
        optimizer.step()
    return parameter.numpy(), optimizer.flat_state_dict()


@given(
    st.lists(st.integers(1, 40), max_size=2), st.floats(1e-5, 1.0), st.floats(0, 0.99), st.floats(0, 0.999),
    st.sampled_from([1e-8, 1e-3]), st.sampled_from([0.0, 0.05]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_adamw_matches_the_formula_in_float64(shape, lr, beta1, beta2, eps, weight_decay, order, seed):
    rng = np.random.default_rng(seed)
    x, *grads = (rng.standard_normal(shape) for _ in range(4))
    options = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
    expected, _ = steps(x, grads, **options)
    with emulated(order):
        found, state = steps(x.astype(np.float32), [g.astype(np.float32) for g in grads], **options)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * max(1, lr))
    assert state["0.0.step"] == 3


def test_adam_runs_the_kernel_of_adamw_without_its_weight_decay():
    rng = np.random.default_rng(0)
    x, *grads = (rng.standard_normal((5, 7)) for _ in range(4))
    expected, _ = steps(x, grads, optim.Adam, lr=0.1, weight_decay=0.2)
    with recorded() as launches:
        found, _ = steps(
            x.astype(np.float32), [g.astype(np.float32) for g in grads], optim.Adam, lr=0.1, weight_decay=0.2
        )
    assert len(launches) == 3
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("options", "launched"), [({"maximize": True}, 3), ({"amsgrad": True}, 0)])
def test_kernel_maximizes_and_leaves_amsgrad_to_the_reference(options, launched):
    rng = np.random.default_rng(0)
    x, *grads = (rng.standard_normal((5, 7)) for _ in range(4))
    expected, _ = steps(x, grads, optim.AdamW, lr=0.1, betas=(0.9, 0.5), **options)
    with recorded() as launches:
        found, _ = steps(
            x.astype(np.float32),
            [g.astype(np.float32) for g in grads],
            optim.AdamW,
            lr=0.1,
            betas=(0.9, 0.5),
            **options,
        )
    assert len(launches) == launched
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def step_in_float32(x, grad, m, v, t, lr, beta1, beta2, eps, weight_decay):
    """The arithmetic of the kernel, in float32."""
    single = np.float32
    m[...] = single(beta1) * m + single(1 - beta1) * grad
    v[...] = single(beta2) * v + single(1 - beta2) * grad * grad
    denominator = np.sqrt(v) * single(1 / np.sqrt(1 - beta2**t)) + single(eps)
    x[...] = single(1 - lr * weight_decay) * x - single(lr / (1 - beta1**t)) * m / denominator


@given(SIZES, SIZES, st.sampled_from(ORDERS), st.integers(0, 99))
def test_all_parameters_in_one_launch(first, second, order, seed):
    """Two parameter groups; a parameter without a gradient skips the step, so step counts differ."""
    rng = np.random.default_rng(seed)
    arrays = [drawn(rng, size) for size in (*first, *second)]
    expected = [(x.copy(), np.zeros_like(x), np.zeros_like(x)) for x in arrays]
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    settings = [
        {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.2},
        {"lr": 0.03, "betas": (0.5, 0.9), "eps": 1e-8, "weight_decay": 0.0},
    ]
    extra = Tensor(np.ones(1, np.float32), requires_grad=True)  # the parameter has no gradient
    groups = [tensors[: len(first)], [*tensors[len(first) :], extra]]
    optimizer = optim.AdamW([{"params": group, **options} for group, options in zip(groups, settings, strict=True)])
    count = [0] * len(tensors)
    with recorded(order) as launches:
        for _ in range(3):
            updated = 0
            for i, tensor in enumerate(tensors):
                tensor.grad = None if rng.random() < 0.3 else Tensor(drawn(rng, tensor.shape[0]))
                if tensor.grad is not None:
                    count[i] += 1
                    updated += tensor.shape[0]
                    options = settings[i >= len(first)]
                    rest = options["eps"], options["weight_decay"]
                    step_in_float32(
                        expected[i][0],
                        tensor.grad.data,
                        *expected[i][1:],
                        count[i],
                        options["lr"],
                        *options["betas"],
                        *rest,
                    )
            before = len(launches)
            optimizer.step()
            assert [launch.kernel.name for launch in launches[before:]] == ["adamw"] * bool(updated)
    states = [state for group in optimizer.state for state in group]
    assert extra.item() == 1 and states.pop() == {}
    for tensor, state, (x, m, v), t in zip(tensors, states, expected, count, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), x)
        assert state.get("step", 0) == t
        if t:
            np.testing.assert_array_equal(state["m"], m)
            np.testing.assert_array_equal(state["v"], v)


@SIDES
def test_adamw_stays_within_its_arrays(side):
    rng = np.random.default_rng(0)
    sizes = (300, 1, CHUNK + 3)
    with emulated(guard=side):
        x, grads, m, v = ([filled(size, side, rng) for size in sizes] for _ in range(4))
        tensors = parameters(x, grads)
        optimizer = optim.AdamW(tensors)
        for i, state in enumerate(optimizer.state[0]):
            v[i] **= 2
            state.update(step=0, m=m[i], v=v[i])
        before = [a.copy() for a in x]
        optimizer.step()
    assert all((a != b).all() for a, b in zip(x, before, strict=True))


def test_gradient_of_another_layout_is_updated_separately():
    """NumPy updates the parameter whose gradient has another layout; one launch updates the other parameters."""
    x, grad = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)
    expected, _ = steps(x.astype(np.float64), [grad.astype(np.float64)])
    tensors = parameters([x.copy() for _ in range(3)], [grad, np.asfortranarray(grad), grad])
    with recorded() as launches:
        optim.AdamW(tensors).step()
    assert [launch.kernel.name for launch in launches] == ["adamw"] and launches[0].args[1] == 2
    for tensor in tensors:
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_float64_launches_nothing():
    recorder = Recorder()
    with use_device(recorder):
        steps(np.ones(10), [np.ones(10)])
    assert not recorder.launches


def test_16_bit_state_launches_nothing():
    one, two = (parameters([np.ones(5, np.float32)], [np.ones(5, np.float32)]) for _ in range(2))
    expected, found = optim.AdamW(one), optim.AdamW(two)
    expected.step()
    (state,), found.state = expected.state[0], [[{}]]
    found.state[0][0].update({key: np.float16(x) if key in "mv" else x for key, x in state.items()})
    two[0].data[...] = one[0].data
    expected.step()
    with recorded() as launches:
        found.step()
    assert not launches
    np.testing.assert_allclose(two[0].numpy(), one[0].numpy(), rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_parameters_are_updated_by_the_kernel_in_float32(dtype):
    """The results equal the CPU's, also if the squares of the gradients and eps underflow in float16."""
    x, grad = (Tensor(np.float32(values)).to(dtype=dtype).data for values in ([1, 2, 3], [1e-6, -200, 0]))
    expected, state = steps(x, [grad] * 3, lr=0.1)
    with recorded() as launches:
        found, state_here = steps(x, [grad] * 3, lr=0.1)
    assert [launch.kernel.name for launch in launches].count("adamw") == 3
    assert found.dtype == dtype and state_here["0.0.v"].dtype == state["0.0.v"].dtype == np.float32
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=2**-8)
    assert (found[:2] != x[:2]).all() and np.isfinite(found.astype(np.float32)).all()


def test_resized_parameter_with_old_state_raises():
    (parameter,) = parameters([np.ones(5, np.float32)], [np.ones(5, np.float32)])
    optimizer = optim.AdamW([parameter])
    with recorded() as launches:
        optimizer.step()
        parameter.grad = None
        parameter.data = np.ones(9, np.float32)
        parameter.grad = Tensor(np.ones(9, np.float32))
        with pytest.raises(ValueError, match="broadcast"):
            optimizer.step()
    assert len(launches) == 1


# Clipping -----------------------------------------------------------------------------------------------------------


@given(SIZES, st.sampled_from([1e-3, 1.0, 1e6]), st.integers(0, 99))
def test_clipping_matches_the_formula(sizes, max_norm, seed):
    rng = np.random.default_rng(seed)
    grads = [drawn(rng, size) for size in sizes]
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))
    factor = np.float32(min(max_norm / (norm + 1e-6), 1))
    results = []
    for order in ORDERS:
        copies = [g.copy() for g in grads]
        with recorded(order) as launches:
            total = optim.clip_grad_norm_(parameters(copies, copies), max_norm)
        if sum(sizes):
            assert [launch.kernel.name for launch in launches] == ["squares", "clip_factor", "scale"]
            assert total.shape == () and total.dtype == np.float32
        np.testing.assert_allclose(total.item(), norm, rtol=2**-24)
        for found, grad in zip(copies, grads, strict=True):
            np.testing.assert_array_equal(found, grad * factor)
        results.append(total.item())
    assert len(set(results)) == 1  # a fixed order of addition


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_norm_of_squares_beyond_float32(size):
    grads = [np.full(5, size, np.float32), np.full(3, 2 * size, np.float32)]
    with emulated():
        total = optim.clip_grad_norm_(parameters(grads, grads), 1e20)
    np.testing.assert_allclose(total.item(), size * 17**0.5, rtol=1e-6)
    np.testing.assert_allclose(grads[0], min(size, 1e20 / 17**0.5), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_norm_leaves_gradients_unchanged(value):
    rng = np.random.default_rng(0)
    grads = [drawn(rng, 7), drawn(rng, CHUNK + 9)]
    grads[1][CHUNK + 5] = value
    copies = [g.copy() for g in grads]
    with emulated():
        total = optim.clip_grad_norm_(parameters(copies, copies), 0.1)
    assert not np.isfinite(total.item())
    for found, grad in zip(copies, grads, strict=True):
        np.testing.assert_array_equal(found, grad)


def test_clipping_any_layout_but_no_duplicates():
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((4, 6, 5)).astype(np.float32)
    for permuted in (grad.transpose(2, 0, 1), np.asfortranarray(grad)):
        found = permuted.copy("K")
        with recorded() as launches:
            total = optim.clip_grad_norm_(parameters([found], [found]), 1.0)
        assert len(launches) == 3
        np.testing.assert_allclose(found, permuted / total.item(), rtol=1e-6)
    for other in ([grad[::2].copy(), grad[:, ::2]], [grad, grad.astype(np.float64)], [grad, grad]):
        copies = [other[0].copy(), other[1]] if other[1] is not grad else [grad.copy()] * 2
        with recorded() as launches:
            optim.clip_grad_norm_(parameters(copies, copies), 1.0)
        assert not launches


@SIDES
def test_clipping_stays_within_its_arrays(side):
    rng = np.random.default_rng(0)
    with emulated(guard=side):
        grads = [filled(size, side, rng) for size in (300, 1, CHUNK + 3)]
        total = optim.clip_grad_norm_(parameters(grads, grads), 1.0)
    assert total.item() > 1
    np.testing.assert_allclose(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads)), 1, rtol=1e-5)


def test_the_barrier_between_warps_is_needed():
    (first, *_) = [b for b in barriers("optim.cu") if b.startswith("common.cuh")]
    grads = [np.random.default_rng(0).standard_normal(CHUNK * 3).astype(np.float32)]
    grads[0] *= np.arange(CHUNK * 3)
    norm, differences = np.linalg.norm(grads[0].astype(np.float64)), []
    for order in ORDERS:
        with emulated(order, barrier=first):
            try:
                differences.append(abs(optim.clip_grad_norm_(parameters(grads, grads), 1e9).item() / norm - 1))
            except KernelError:
                differences.append(np.inf)
    assert max(differences) > 1e-3


# Unscaling ----------------------------------------------------------------------------------------------------------


@given(SIZES, st.sampled_from([None, np.nan, np.inf]), st.sampled_from(ORDERS), st.integers(0, 99))
def test_unscaling_finds_inf_and_nan(sizes, value, order, seed):
    rng = np.random.default_rng(seed)
    grads = [drawn(rng, size) for size in (*sizes, 3)]
    if value is not None:
        i = rng.choice([i for i, grad in enumerate(grads) if grad.size])
        grads[i][rng.integers(grads[i].size)] = value
    copies = [g.copy() for g in grads]
    optimizer, scaler = optim.SGD(parameters(copies, copies)), optim.GradScaler(3.0)
    with recorded(order) as launches:
        scaler.unscale_(optimizer)
    assert [launch.kernel.name for launch in launches] == ["unscale"]
    for found, grad in zip(copies, grads, strict=True):
        np.testing.assert_array_equal(found, grad * np.float32(1 / 3))
    assert scaler.step(optimizer) == (value is None)


def test_overflow_in_unscaling_skips_the_step():
    grads = [np.full(3, 1e38, np.float32)]
    optimizer, scaler = optim.SGD(parameters(grads, grads)), optim.GradScaler(2.0**-10)
    with emulated():
        assert not scaler.step(optimizer)


@SIDES
def test_unscaling_stays_within_its_arrays(side):
    rng = np.random.default_rng(0)
    with emulated(guard=side):
        grads = [filled(size, side, rng) for size in (300, 1, CHUNK + 3)]
        before = [grad.copy() for grad in grads]
        optim.GradScaler(2.0).unscale_(optim.SGD(parameters(grads, grads)))
    for grad, old in zip(grads, before, strict=True):
        np.testing.assert_array_equal(grad, old / 2)


# Averages -----------------------------------------------------------------------------------------------------------


class Arrays(nn.Module):
    """A parameter of each size, a floating-point buffer, which is averaged, and an integer buffer, which is copied."""

    def __init__(self, arrays):
        for i, x in enumerate(arrays):
            setattr(self, f"p{i}", nn.Parameter(x))
        self.mean, self.count = Buffer(np.ones(3, np.float32)), Buffer(np.array(5))


@given(SIZES, st.sampled_from([0.0, 0.9, 0.9999]), st.sampled_from(ORDERS), st.integers(0, 99))
def test_ema_matches_the_formula(sizes, decay, order, seed):
    rng = np.random.default_rng(seed)
    model = Arrays([drawn(rng, size) for size in sizes])
    ema, expected = optim.EMA(model, decay, warmup=True), optim.EMA(model, decay, warmup=True)
    for _ in range(2):
        for tensor in model.state_dict().values():
            tensor.data[...] = rng.standard_normal(tensor.shape) * 9
        expected.update()
        with recorded(order) as launches:
            ema.update()
        assert [launch.kernel.name for launch in launches] == ["average"]
    assert ema.averages["count"] == model.count.data
    for name, average in expected.averages.items():
        np.testing.assert_array_equal(ema.averages[name], average)


@SIDES
def test_ema_stays_within_its_arrays(side):
    rng = np.random.default_rng(0)
    model = Arrays([filled(size, side, rng) for size in (300, 1, CHUNK + 3)])
    ema = optim.EMA(model, 0.5)
    for name, average in ema.averages.items():
        if name.startswith("p"):
            ema.averages[name] = filled(average.size, side, rng)
    before = {name: average.copy() for name, average in ema.averages.items()}
    with emulated():
        ema.update()
    for name, tensor in model.named_parameters():
        np.testing.assert_allclose(ema.averages[name], (before[name] + tensor.numpy()) / 2, rtol=1e-5, atol=1e-6)


# Copies into a flat array -------------------------------------------------------------------------------------------


@given(SIZES, st.sampled_from([1.0, 3.0]), st.sampled_from(ORDERS), st.integers(0, 99))
def test_copies_are_exact_also_onto_themselves(sizes, divisor, order, seed):
    rng = np.random.default_rng(seed)
    sources = [np.float32([1]), *(drawn(rng, size) for size in sizes)]
    flat = np.full(sum(x.size for x in sources), np.nan, np.float32)
    slots = np.split(flat, np.cumsum([x.size for x in sources])[:-1])
    with recorded(order) as launches:
        call(updates.copy_all, list(zip(slots, sources, strict=True)), divisor)
        call(updates.copy_all, [(x, x) for x in slots], divisor)
    assert [launch.kernel.name for launch in launches] == ["copies"] * 2
    expected = np.concatenate(sources) / np.float32(divisor)
    np.testing.assert_array_equal(flat, expected / np.float32(divisor))


@SIDES
def test_copies_stay_within_their_arrays(side):
    rng = np.random.default_rng(0)
    pairs = [tuple(filled(size, side, rng) for _ in range(2)) for size in (300, 1, CHUNK + 3)]
    with emulated():
        call(updates.copy_all, pairs, 2.0)
    for out, x in pairs:
        np.testing.assert_array_equal(out, x / 2)


# The table ----------------------------------------------------------------------------------------------------------


def test_empty_table_launches_nothing():
    with recorded() as launches:
        for columns in ([], [np.ones(0, np.float32)]):
            Table(columns).launch(None)
        optim.clip_grad_norm_([], 1.0)
    assert not launches
