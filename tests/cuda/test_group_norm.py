"""The CUDA kernels of GroupNorm, alone and with the ReLU after it, run on the CPU through `F.group_norm` and
`F.group_norm_relu`, against the reference in float64."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda import group_norm
from minigrad.ops.norm import GroupNorm, GroupNormReLU
from tests.cuda import comparison
from tests.cuda.comparison import DTYPES, FLOAT32, guarded_copy, kernel_names, packs, random_array, run_op, unaligned
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, sampled

pytestmark = needs_compiler

WIDTHS = [1, 2, 3, 4, 24, 100]  # packs of 1, 2 or 4; threads without pixels


def images(seed, *shape, **options):
    """Images (N, C, H, W) that are channels-last in memory."""
    return random_array(seed, *shape, layout="channels-last", **options)


def inputs(N, C, H, W):
    """x, weight and bias."""
    return images(0, N, C, H, W), random_array(1, C), random_array(2, C)


def two_groups(x, *params):
    return F.group_norm(x, 2, *params)


def relu_of(groups, eps=1e-5):
    """x, weight, bias and shortcut to relu(group_norm(x) + shortcut)."""
    return lambda x, weight=None, bias=None, shortcut=None: F.group_norm_relu(x, groups, weight, bias, eps, shortcut)


def assert_matches_reference(arrays, op=two_groups, grad_layout="channels-last", **options):
    """Returns the launches."""
    fast_path = group_norm.CUDAGroupNorm if op is two_groups else group_norm.CUDAGroupNormReLU
    fast_path = options.pop("fast_path", fast_path)
    return comparison.assert_matches_reference(op, *arrays, fast_path=fast_path, grad_layout=grad_layout, **options)[1]


@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from(WIDTHS), st.integers(1, 5), st.integers(2, 20),
    st.booleans(), st.booleans(), st.sampled_from([1e-5, 0.1]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_group_norm_matches_reference(N, groups, width, H, W, weight, bias, eps, order, seed):
    C = groups * width
    params = random_array(1, C) if weight else None, random_array(2, C) if bias else None
    # In a group of two values x̂ is ±1 and ∂x nearly cancels, which leaves rounding errors, magnified by r = 1/σ.
    assert_matches_reference(
        [images(seed, N, C, H, W, offset=seed % 3), *params],
        lambda x, *params: F.group_norm(x, groups, *params, eps),
        fast_path=group_norm.CUDAGroupNorm, order=order, tolerance=1e-5 if H * W * width > 4 else 1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    st.integers(1, 2), st.sampled_from([(1, 32), (2, 32), (4, 16), (8, 4), (16, 4), (64, 1), (3, 2), (5, 8)]),
    st.integers(3, 6), st.integers(2, 20), st.booleans(), st.booleans(),
    st.sampled_from(["none", "given", "unaligned"]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_group_norm_relu_matches_reference(dtype, N, channels, H, W, weight, bias, shortcut, order, seed):
    """Packs have several groups, a part of a group, or one; ∂z is 0 or ∂y, and no z is within rounding errors of 0."""
    width, groups = channels
    C = width * groups
    x = images(seed, N, C, H, W, dtype=dtype, offset=seed % 3)
    arrays = [
        x,
        random_array(1, C) if weight else None,
        random_array(2, C) if bias or shortcut == "none" else None,
        None,
    ]
    if shortcut != "none":
        arrays[3] = images(seed + 1, N, C, H, W, dtype=dtype)
        if shortcut == "unaligned":
            arrays[3] = unaligned(arrays[3].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    far_from_0(arrays, groups)
    assert_matches_reference(arrays, relu_of(groups), order=order, tolerance=2e-5 if H * W * width > 40 else 1e-3)


def far_from_0(arrays, groups):
    """Move the shortcut, or without it the bias, so that |z| is at least 1e-4: its sign is that of the exact z."""
    last = arrays[3] if arrays[3] is not None else arrays[2]
    for _ in range(20):
        with minigrad.without_fast_paths():
            wide = [None if a is None else Tensor(a.astype(np.float64)) for a in arrays]
            z = F.group_norm(wide[0], groups, *wide[1:3]).numpy() + (0 if arrays[3] is None else wide[3].numpy())
        near = abs(z) < 1e-4
        if not near.any():
            return
        if arrays[3] is not None:
            last[near] += np.asarray(0.25, last.dtype)
        else:
            last[near.any(axis=(0, 2, 3))] += 1e-3


@pytest.mark.parametrize("width", [2, 3, 8])
@pytest.mark.parametrize("threads", ["few", "more"])
def test_large_groups_loop_over_pixels(width, threads, monkeypatch):
    monkeypatch.setattr(group_norm, "LARGE", 1000 if threads == "more" else 10000)
    assert_matches_reference(inputs(2, 2 * width, 37, 41))


@pytest.mark.parametrize(("width", "side"), list(product([1, 3, 8], ["after", "before"])))
def test_accesses_stay_within_the_arrays(width, side):
    x, *params = inputs(2, 2 * width, 5, 13)
    x = guarded_copy(x.transpose(0, 2, 3, 1), side).transpose(0, 3, 1, 2)
    assert_matches_reference([x, *(guarded_copy(p, side) for p in params)], guard=side)


@pytest.mark.parametrize(("dtype", "side"), list(product(DTYPES, ["after", "before"])), ids=str)
@pytest.mark.parametrize("C", [64, 6])
def test_accesses_of_group_norm_relu_stay_within_the_arrays(dtype, side, C):
    x, shortcut = (
        guarded_copy(random_array(i, 2, 5, 13, C, dtype=dtype), side).transpose(0, 3, 1, 2) for i in range(2)
    )
    params = [guarded_copy(random_array(i, C), side) for i in (1, 2)]
    tolerance = 1e-5 if dtype == FLOAT32 else 1e-4
    for arrays in ([x, *params, None], [x, *params, shortcut]):
        far_from_0(arrays, 2)
        assert_matches_reference(arrays, relu_of(2), guard=side, tolerance=tolerance)


@pytest.mark.parametrize("wanted", [w for w in product((False, True), repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    launches = assert_matches_reference(inputs(2, 8, 3, 3), wanted=wanted)
    names = ["group_norm_forward", "group_norm_backward", "sum_rows"][: 3 if any(wanted[1:]) else 2]
    assert kernel_names(launches) == names
    grad_x, grad_shortcut, partials = launches[1].args[7:10]
    assert (grad_x is not None) == wanted[0] and (partials is not None) == any(wanted[1:]) and grad_shortcut is None


@pytest.mark.parametrize("wanted", [w for w in product((False, True), repeat=4) if any(w)])
def test_unneeded_gradients_of_group_norm_relu_are_not_computed(wanted):
    arrays = [*inputs(2, 8, 3, 3), images(3, 2, 8, 3, 3)]
    launches = assert_matches_reference(arrays, relu_of(2), wanted=wanted)
    assert kernel_names(launches) == ["group_norm_forward", "group_norm_backward", *["sum_rows"] * any(wanted[1:3])]
    assert [a is not None for a in launches[1].args[7:10]] == [wanted[0], wanted[3], any(wanted[1:3])]


def test_relu_keeps_nan_and_its_gradient():
    x = images(0, 1, 32, 4, 4)
    x[0, 3, 1, 1] = np.nan
    with emulated():
        for shortcut in (None, images(1, 1, 32, 4, 4)):
            _, (y, *_), _ = run_op(relu_of(32), x, None, None, shortcut)
            assert np.isnan(y[0, 3]).all() and np.isfinite(y[0, [2, 4]]).all()


@pytest.mark.parametrize(
    ("width", "groups", "channels"), [(1, 32, 16), (4, 8, 16), (16, 2, 16), (32, 2, 32), (3, 16, 3)]
)
def test_blocks_have_at_least_64_bytes_of_a_pixel(width, groups, channels):
    """Unless the channels of a group are no power of two."""
    op = lambda x: F.group_norm(x, groups)  # noqa: E731
    launches = assert_matches_reference([images(0, 2, width * groups, 5, 5)], op, fast_path=group_norm.CUDAGroupNorm)
    assert {launch.grid for launch in launches[:2]} == {(width * groups // channels, 2, 1)}


@pytest.mark.parametrize(("shift", "pack"), [(0, 4), (1, 1), (2, 1)])
@pytest.mark.parametrize("which", ["x", "grad_y"])
def test_unaligned_images_give_the_same_result(shift, pack, which):
    """Loads of 16 bytes need alignment to 16 bytes."""
    x, grad_y = (
        unaligned(random_array(i, 2, 3, 5, 8), shift if moved else 0).transpose(0, 3, 1, 2)
        for i, moved in enumerate((which == "x", which == "grad_y"))
    )
    launches = assert_matches_reference([x], grad_y=grad_y)
    assert packs(launches) == [pack if which == "x" else 4, pack]


def test_output_and_gradient_keep_the_memory_order():
    x = Tensor(images(0, 2, 8, 3, 5), requires_grad=True)
    with emulated():
        y = F.group_norm(x, 2)
        grad_x, _, _ = y.grad_fn.backward(y.numpy())
    assert y.numpy().strides == grad_x.strides == x.numpy().strides


def test_gradient_of_any_memory_layout():
    x, weight, _ = inputs(2, 8, 3, 5)
    assert_matches_reference([x, weight], grad_layout="C")
    assert_matches_reference([x, weight], grad_y=np.broadcast_to(np.float32(1), x.shape))


def test_large_mean_does_not_cancel_the_variance():
    assert_matches_reference([images(0, 2, 8, 5, 7, offset=1e4)], tolerance=2e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thread_order_changes_no_bit(dtype):
    comparison.assert_thread_order_changes_no_bit(lambda: run_op(two_groups, *inputs(3, 12, 9, 11)).results)
    arrays = images(0, 2, 64, 9, 11, dtype=dtype), random_array(1, 64), random_array(2, 64), None
    for shortcut in (None, images(3, 2, 64, 9, 11, dtype=dtype)):
        comparison.assert_thread_order_changes_no_bit(lambda s=shortcut: run_op(relu_of(32), *arrays[:3], s).results)


@pytest.mark.parametrize("barrier", sampled([b for b in barriers("group_norm.cu") if b.startswith("group_norm.cu")]))
def test_every_barrier_is_needed(barrier):
    runs = [lambda C=C: run_op(two_groups, *inputs(2, C, 9, 31)).results for C in (4, 16)]
    runs.append(lambda: run_op(relu_of(32), *inputs(2, 32, 9, 31)).results)
    assert any(comparison.barrier_is_needed(barrier, run) for run in runs)


def test_forward_saves_only_what_backward_reads():
    x = Tensor(images(0, 2, 8, 3, 5), requires_grad=True)
    with emulated():
        node = F.group_norm(x, 4).grad_fn
        relu, added = (relu_of(4)(x, shortcut=shortcut).grad_fn for shortcut in (None, x))
    for op, count in ((node, 0), (relu, 0), (added, 2 * 8 * 3 * 5)):  # y, if it has a shortcut
        kept = [value for value in vars(op).values() if isinstance(value, np.ndarray)]
        assert np.shares_memory(kept[0], x.numpy())
        assert sum(value.size for value in kept[1:]) == 2 * 2 * 4 + count


@pytest.mark.parametrize(
    ("x", "weight", "groups"),
    [
        (images(0, 2, 4, 3, 3).astype(np.float64), None, 2),
        (random_array(0, 2, 4, 3, 3), None, 2),
        (random_array(0, 2, 4, 9), None, 2),
        (images(0, 2, 8, 3, 3)[:, ::2], None, 2),
        (images(0, 0, 4, 3, 3), None, 2),
        (images(0, 1, 514, 2, 2), None, 2),
        (images(0, 2, 4, 3, 3), random_array(1, 8)[::2], 2),
    ],
)
def test_unsupported_arrays_run_the_reference(x, weight, groups):
    with emulated():
        weight = None if weight is None else Tensor(weight)
        node = F.group_norm(Tensor(x, requires_grad=True), groups, weight).grad_fn
        relu = F.group_norm_relu(Tensor(x, requires_grad=True), groups, weight).grad_fn
    assert isinstance(node, GroupNorm) and type(node) is not group_norm.CUDAGroupNorm
    assert isinstance(relu, GroupNormReLU) and type(relu) is not group_norm.CUDAGroupNormReLU


def test_unsupported_shortcuts_run_the_reference():
    x = images(0, 2, 8, 3, 3)
    for shortcut in (random_array(1, 2, 8, 3, 3), x.astype(np.float64)):
        with emulated():
            node = F.group_norm_relu(Tensor(x, requires_grad=True), 2, shortcut=Tensor(shortcut)).grad_fn
        assert type(node) is GroupNormReLU


def test_errors_are_those_of_the_reference():
    for groups in (0, 3):
        with emulated(), pytest.raises(ValueError, match="num_groups must divide the number of channels"):
            F.group_norm(Tensor(images(0, 2, 4, 3, 3)), groups)
    with emulated(), pytest.raises(ValueError, match="weight must have shape"):
        F.group_norm(Tensor(images(0, 2, 4, 3, 3)), 2, Tensor(random_array(1, 3)))
    with emulated(), pytest.raises(ValueError, match="shortcut must have the shape of the input"):
        F.group_norm_relu(Tensor(images(0, 2, 4, 3, 3)), 2, shortcut=Tensor(images(0, 1, 4, 3, 3)))
