"""LayerNorm's CUDA kernels, run on the CPU through `F.layer_norm`, against the reference in float64."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.kernels.cuda import norm
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.ops.norm import LayerNorm
from tests.cuda.runner import ORDERS, KernelError, barriers, emulated, guarded, needs_compiler, sampled, worst

pytestmark = needs_compiler

WIDTHS = [
    1,
    6,
    31,
    32,
    192,
    1025,
    1028,
]  # a warp or a block for a row; packs of 1 or 4; threads without columns


def drawn(seed, *shape, offset=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + offset).astype(np.float32)


def outcome(arrays, wanted, shape, eps=1e-5):
    """The node, the output, and the gradients of arrays that need one, else None."""
    tensors = [None if x is None else Tensor(x, requires_grad=want) for x, want in zip(arrays, wanted, strict=True)]
    y = F.layer_norm(tensors[0], shape, *tensors[1:], eps)
    node = y.grad_fn
    y.backward(Tensor(drawn(9, *y.shape).astype(y.dtype)))
    return node, [y.numpy(), *(None if t is None or t.grad is None else t.grad.numpy() for t in tensors)]


def expected(arrays, *rest):
    with minigrad.without_fast_paths():
        return outcome([None if x is None else x.astype(np.float64) for x in arrays], *rest)[1]


def assert_matches_reference(arrays, wanted=None, shape=None, eps=1e-5, tolerance=1e-5, **options):
    wanted, shape = wanted or [x is not None for x in arrays], shape or arrays[0].shape[-1:]
    with emulated(**options):
        node, found = outcome(arrays, wanted, shape, eps)
    assert type(node) is norm.CUDALayerNorm
    assert worst(found, expected(arrays, wanted, shape, eps)) <= tolerance


@given(
    st.lists(st.integers(1, 4), max_size=2), st.sampled_from(WIDTHS), st.booleans(), st.booleans(),
    st.sampled_from([1e-5, 0.1]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_layer_norm_matches_reference(lead, C, weight, bias, eps, order, seed):
    x = drawn(seed, *lead, C, offset=seed % 3)
    arrays = [x, drawn(1, C) if weight else None, drawn(2, C) if bias else None]
    assert_matches_reference(arrays, eps=eps, order=order)


@pytest.mark.parametrize("C", [32, 1028])
def test_accesses_stay_within_the_arrays(C):
    for side, rows in product(("after", "before"), (1, 9)):
        arrays = [guarded((rows, C), side=side), guarded(C, side=side), guarded(C, side=side)]
        for i, array in enumerate(arrays):
            array[...] = drawn(i, *array.shape)
        assert_matches_reference(arrays, guard=side)


@pytest.mark.parametrize("wanted", [w for w in product((False, True), repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    arrays = [drawn(0, 9, 32), drawn(1, 32), drawn(2, 32)]
    assert_matches_reference(arrays, wanted)
    recorder = Recorder()
    with emulated() as device:
        recorder.device = device
        with use_device(recorder):
            outcome(arrays, wanted, (32,))
    names = [launch.kernel.name for launch in recorder.launches]
    assert names == ["layer_norm_forward", "layer_norm_backward", "sum_rows"][: 3 if any(wanted[1:]) else 2]
    grad_x, partials = recorder.launches[1].args[5:7]
    assert (grad_x is not None) == wanted[0] and (partials is not None) == any(wanted[1:])


@pytest.mark.parametrize("C", [32, 1028])
def test_grid_stride_loop_over_rows(C, monkeypatch):
    monkeypatch.setattr(norm, "BLOCKS", 3)
    assert_matches_reference([drawn(0, 53 if C < 1024 else 10, C), drawn(1, C), drawn(2, C)])


def test_sum_rows_loops_over_more_rows_than_strips():
    """77 partial sums: strips of several rows, the last strips of fewer."""
    assert_matches_reference([drawn(0, 8 * 77, 6), drawn(1, 6), drawn(2, 6)])


@pytest.mark.parametrize("which", range(4))
def test_unaligned_arrays_give_the_same_result(which):
    """Loads of 16 bytes need alignment to 16 bytes. The fourth array is ∂y."""
    C = 32
    shifted = [drawn(i, 9 * C + 8) for i in range(4)]
    starts = [(-x.ctypes.data % 16) // 4 + (i == which) for i, x in enumerate(shifted)]
    x, weight, bias, grad_y = (
        a[start : start + size].reshape(shape)
        for a, start, size, shape in zip(shifted, starts, (9 * C, C, C, 9 * C), ((9, C), C, C, (9, C)), strict=True)
    )
    results = []
    for dtype in (np.float32, np.float64):
        with emulated() if dtype == np.float32 else minigrad.without_fast_paths():
            arrays = [Tensor(a.astype(dtype, copy=False), requires_grad=True) for a in (x, weight, bias)]
            y = F.layer_norm(arrays[0], C, *arrays[1:])
            y.backward(Tensor(grad_y.astype(dtype, copy=False)))
            results.append([y.numpy(), *(a.grad.numpy() for a in arrays)])
    assert worst(*results) <= 1e-5


def test_several_normalized_axes():
    arrays = [drawn(0, 5, 2, 3, 4), drawn(1, 2, 3, 4), drawn(2, 2, 3, 4)]
    assert_matches_reference(arrays, shape=(2, 3, 4))
    assert_matches_reference([arrays[0][0], arrays[1], None], shape=(2, 3, 4))


def test_gradient_of_any_memory_layout():
    x = drawn(0, 9, 32)
    with emulated():
        weight = Tensor(drawn(1, 32), requires_grad=True)
        F.layer_norm(Tensor(x), 32, weight).T.sum().backward()
    x_hat = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(weight.grad.numpy(), x_hat.sum(0), atol=1e-5)


def test_large_mean_does_not_cancel_the_variance():
    assert_matches_reference([drawn(0, 3, 192, offset=1e4), None, None], tolerance=2e-3)


def test_thread_order_changes_no_bit():
    arrays = [drawn(0, 70, 32), drawn(1, 32), drawn(2, 32)]
    results = []
    for order in ORDERS:
        with emulated(order):
            results.append([x.tobytes() for x in outcome(arrays, [True] * 3, (32,))[1]])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("barrier", sampled(barriers("norm.cu")))
def test_every_barrier_is_needed(barrier):
    differences = []
    for C, order in product((32, 1028), ORDERS):
        arrays = [drawn(0, 9, C), drawn(1, C), drawn(2, C)]
        exact = expected(arrays, [True] * 3, (C,))
        with emulated(order, barrier=barrier):
            try:
                differences.append(worst(outcome(arrays, [True] * 3, (C,))[1], exact))
            except KernelError:
                differences.append(np.inf)
    assert max(differences) > 1e-2


def test_training_matches_the_cpu():
    def steps():
        minigrad.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(Tensor(drawn(0, 17, 5))), Tensor(np.arange(17) % 3))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    with emulated():
        ours = steps()
    np.testing.assert_allclose(ours, steps(), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "weight", "shape"),
    [
        (drawn(0, 3, 4).astype(np.float64), None, (4,)),
        (drawn(0, 3, 8)[:, ::2], None, (4,)),
        (drawn(0, 0, 4), None, (4,)),
        (drawn(0, 2, 8193), None, (8193,)),
        (drawn(0, 3, 4), drawn(0, 8)[::2], (4,)),
    ],
)
def test_unsupported_arrays_run_the_reference(x, weight, shape):
    with emulated():
        weight = None if weight is None else Tensor(weight)
        node = F.layer_norm(Tensor(x, requires_grad=True), shape, weight).grad_fn
    assert isinstance(node, LayerNorm) and type(node) is not norm.CUDALayerNorm


def test_errors_are_those_of_the_reference():
    for x, shape in ((drawn(0, 3, 4), (5,)), (drawn(0, 4), (3, 4)), (drawn(0, 4), ())):
        with emulated(), pytest.raises(ValueError, match="normalized_shape must equal the last sizes"):
            F.layer_norm(Tensor(x), shape)
