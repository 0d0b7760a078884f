"""GroupNorm's CUDA kernels, run on the CPU through `F.group_norm`, against the reference in float64."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda import group_norm
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.ops.norm import GroupNorm
from tests.cuda.runner import ORDERS, KernelError, barriers, emulated, guarded, needs_compiler, sampled, worst

pytestmark = needs_compiler

WIDTHS = [1, 2, 3, 4, 24, 100]  # packs of 1, 2 or 4; threads without pixels


def drawn(seed, *shape, offset=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + offset).astype(np.float32)


def images(seed, N, C, H, W, offset=0.0):
    """Images (N, C, H, W) that are channels-last in memory."""
    return drawn(seed, N, H, W, C, offset=offset).transpose(0, 3, 1, 2)


def outcome(arrays, wanted, groups, eps=1e-5):
    """The node, the output, and the gradients of arrays that need one, else None."""
    tensors = [None if x is None else Tensor(x, requires_grad=want) for x, want in zip(arrays, wanted, strict=True)]
    y = F.group_norm(tensors[0], groups, *tensors[1:], eps)
    node = y.grad_fn
    y.backward(Tensor(images(9, *y.shape).astype(y.dtype)))
    return node, [y.numpy(), *(None if t is None or t.grad is None else t.grad.numpy() for t in tensors)]


def expected(arrays, *rest):
    with minigrad.without_fast_paths():
        return outcome([None if x is None else x.astype(np.float64) for x in arrays], *rest)[1]


def assert_matches_reference(arrays, groups, wanted=None, eps=1e-5, tolerance=1e-5, **options):
    wanted = wanted or [x is not None for x in arrays]
    with emulated(**options):
        node, found = outcome(arrays, wanted, groups, eps)
    assert type(node) is group_norm.CUDAGroupNorm
    assert worst(found, expected(arrays, wanted, groups, eps)) <= tolerance


@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from(WIDTHS), st.integers(1, 5), st.integers(2, 20),
    st.booleans(), st.booleans(), st.sampled_from([1e-5, 0.1]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_group_norm_matches_reference(N, groups, width, H, W, weight, bias, eps, order, seed):
    C = groups * width
    arrays = [images(seed, N, C, H, W, offset=seed % 3), drawn(1, C) if weight else None, drawn(2, C) if bias else None]
    # In a group of two values x̂ is ±1 and ∂x nearly cancels, which leaves rounding errors, magnified by r.
    assert_matches_reference(arrays, groups, eps=eps, order=order, tolerance=1e-5 if H * W * width > 4 else 1e-3)


@pytest.mark.parametrize("width", [2, 3, 8])
@pytest.mark.parametrize("threads", ["few", "more"])
def test_large_groups_loop_over_pixels(width, threads, monkeypatch):
    monkeypatch.setattr(group_norm, "LARGE", 1000 if threads == "more" else 10000)
    C = 2 * width
    assert_matches_reference([images(0, 2, C, 37, 41), drawn(1, C), drawn(2, C)], 2)


@pytest.mark.parametrize(("width", "side"), list(product([1, 3, 8], ["after", "before"])))
def test_accesses_stay_within_the_arrays(width, side):
    C = 2 * width
    x = guarded((2, 5, 13, C), side=side).transpose(0, 3, 1, 2)
    arrays = [x, guarded(C, side=side), guarded(C, side=side)]
    for i, array in enumerate(arrays):
        array[...] = drawn(i, *array.shape)
    assert_matches_reference(arrays, 2, guard=side)


@pytest.mark.parametrize("wanted", [w for w in product((False, True), repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    arrays = [images(0, 2, 8, 3, 3), drawn(1, 8), drawn(2, 8)]
    assert_matches_reference(arrays, 2, wanted)
    recorder = Recorder()
    with emulated() as device:
        recorder.device = device
        with use_device(recorder):
            outcome(arrays, wanted, 2)
    names = [launch.kernel.name for launch in recorder.launches]
    assert names == ["group_norm_forward", "group_norm_backward", "sum_rows"][: 3 if any(wanted[1:]) else 2]
    grad_x, partials = recorder.launches[1].args[5:7]
    assert (grad_x is not None) == wanted[0] and (partials is not None) == any(wanted[1:])


@pytest.mark.parametrize(("shift", "pack"), [(0, 4), (1, 1), (2, 1)])
@pytest.mark.parametrize("which", ["x", "grad_y"])
def test_unaligned_images_give_the_same_result(shift, pack, which):
    """Loads of 16 bytes need alignment to 16 bytes."""
    N, C, H, W = shape = 2, 8, 3, 5
    memory = [drawn(i, N * H * W * C + 8) for i in range(2)]
    starts = [-a.ctypes.data % 16 // 4 for a in memory]
    starts[0 if which == "x" else 1] += shift
    x, grad_y = (
        a[start:][: N * H * W * C].reshape(N, H, W, C).transpose(0, 3, 1, 2)
        for a, start in zip(memory, starts, strict=True)
    )
    assert x.shape == shape
    results, recorder = [], Recorder()
    for dtype in (np.float32, np.float64):
        with emulated() if dtype == np.float32 else minigrad.without_fast_paths() as device:
            recorder.device = device
            with use_device(recorder):
                t = Tensor(x.astype(dtype, copy=False), requires_grad=True)
                y = F.group_norm(t, 2)
                y.backward(Tensor(grad_y.astype(dtype, copy=False)))
                results.append([y.numpy(), t.grad.numpy()])
    packs = [dict(launch.kernel.constants)["PACK"] for launch in recorder.launches]
    assert packs == [pack if which == "x" else 4, pack]
    assert worst(*results) <= 1e-5


def test_output_and_gradient_keep_the_memory_order():
    x = Tensor(images(0, 2, 8, 3, 5), requires_grad=True)
    with emulated():
        y = F.group_norm(x, 2)
        grad_x, _, _ = y.grad_fn.backward(y.numpy())
    assert y.numpy().strides == grad_x.strides == x.numpy().strides


def test_gradient_of_any_memory_layout():
    both = []
    for dtype in (np.float32, np.float64):
        with emulated() if dtype == np.float32 else minigrad.without_fast_paths():
            x, weight = (Tensor(a.astype(dtype), requires_grad=True) for a in (images(0, 2, 8, 3, 5), drawn(1, 8)))
            y = F.group_norm(x, 2, weight)
            (y * Tensor(drawn(2, *y.shape).astype(dtype))).sum().backward()
            y = F.group_norm(x, 2, weight)
            y.sum().backward()
            both.append([x.grad.numpy(), weight.grad.numpy()])
    assert worst(*both) <= 1e-5


def test_large_mean_does_not_cancel_the_variance():
    assert_matches_reference([images(0, 2, 8, 5, 7, offset=1e4), None, None], 2, tolerance=2e-3)


def test_thread_order_changes_no_bit():
    arrays = [images(0, 3, 12, 9, 11), drawn(1, 12), drawn(2, 12)]
    results = []
    for order in ORDERS:
        with emulated(order):
            results.append([x.tobytes() for x in outcome(arrays, [True] * 3, 2)[1]])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("barrier", sampled(barriers("group_norm.cu")))
def test_every_barrier_is_needed(barrier):
    differences = []
    for width, order in product((2, 8), ORDERS):
        C = 2 * width
        arrays = [images(0, 2, C, 9, 31), drawn(1, C), drawn(2, C)]
        exact = expected(arrays, [True] * 3, 2)
        with emulated(order, barrier=barrier):
            try:
                differences.append(worst(outcome(arrays, [True] * 3, 2)[1], exact))
            except KernelError:
                differences.append(np.inf)
    assert max(differences) > 1e-2


def test_forward_saves_only_what_backward_reads():
    x = Tensor(images(0, 2, 8, 3, 5), requires_grad=True)
    with emulated():
        node = F.group_norm(x, 4).grad_fn
    kept = [value for value in vars(node).values() if isinstance(value, np.ndarray)]
    assert np.shares_memory(kept[0], x.numpy()) and sum(value.size for value in kept[1:]) == 2 * 2 * 4


@pytest.mark.parametrize(
    ("x", "weight", "groups"),
    [
        (images(0, 2, 4, 3, 3).astype(np.float64), None, 2),
        (drawn(0, 2, 4, 3, 3), None, 2),
        (drawn(0, 2, 4, 9), None, 2),
        (images(0, 2, 8, 3, 3)[:, ::2], None, 2),
        (images(0, 0, 4, 3, 3), None, 2),
        (images(0, 1, 514, 2, 2), None, 2),
        (images(0, 2, 4, 3, 3), drawn(1, 8)[::2], 2),
    ],
)
def test_unsupported_arrays_run_the_reference(x, weight, groups):
    with emulated():
        weight = None if weight is None else Tensor(weight)
        node = F.group_norm(Tensor(x, requires_grad=True), groups, weight).grad_fn
    assert isinstance(node, GroupNorm) and type(node) is not group_norm.CUDAGroupNorm


def test_errors_are_those_of_the_reference():
    for groups in (0, 3):
        with emulated(), pytest.raises(ValueError, match="num_groups must divide the number of channels"):
            F.group_norm(Tensor(images(0, 2, 4, 3, 3)), groups)
    with emulated(), pytest.raises(ValueError, match="weight must have shape"):
        F.group_norm(Tensor(images(0, 2, 4, 3, 3)), 2, Tensor(drawn(1, 3)))
