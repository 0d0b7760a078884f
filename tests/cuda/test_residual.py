"""Residual connections in CUDA, run on the CPU through `F.residual`, against the reference in float64."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda import norm, residual
from minigrad.ops.residual import ResidualLayerNorm
from tests.cuda import comparison
from tests.cuda.comparison import DTYPES, FLOAT32, guarded_copy, kernel_names, random_array, unaligned
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, recorded, sampled

pytestmark = needs_compiler

ROUNDING = {**comparison.UNIT_ROUNDOFF, FLOAT32: 1e-6}  # relative error of a few sums in float32, or of a cast
WIDTHS = [1, 6, 8, 96, 130, 264]  # less than a pack; several packs; threads without columns; blocks along a row


def inputs(*shape, dtype=np.float32):
    """x, b and scale."""
    return random_array(0, *shape, dtype=dtype), random_array(1, *shape, dtype=dtype), random_array(2, shape[-1])


def assert_matches_reference(x, branch, scale=None, p=0.0, **options):
    """Returns the launches."""
    op = lambda *tensors: F.residual(*tensors, drop_path=p)  # noqa: E731
    return comparison.assert_matches_reference(
        op, x, branch, scale, fast_path=residual.CUDAResidual, tolerance=1e-6, **options
    )[1]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(WIDTHS), st.booleans(),
    st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from(DTYPES), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_residual_matches_reference(lead, C, scaled, p, dtype, order, seed):
    x, branch = random_array(seed, *lead, C, dtype=dtype), random_array(seed + 1, *lead, C, dtype=dtype)
    assert_matches_reference(x, branch, random_array(2, C) if scaled else None, p, order=order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grid_stride_loop_over_rows(dtype, monkeypatch):
    monkeypatch.setattr(residual, "BLOCKS", 2)
    monkeypatch.setattr(residual, "MAX_BLOCKS", 3)
    assert_matches_reference(*inputs(60, 3, 24, dtype=dtype), 0.3)


@pytest.mark.parametrize(("dtype", "C"), list(product(DTYPES, [24, 31])), ids=str)
def test_accesses_stay_within_the_arrays(dtype, C):
    for side in ("after", "before"):
        arrays = [guarded_copy(x, side) for x in inputs(2, 5, C, dtype=dtype)]
        assert_matches_reference(*arrays, p=0.4, guard=side)


@pytest.mark.parametrize("which", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_arrays_give_the_same_result(dtype, which):
    x, branch, scale = (unaligned(x, i == which) for i, x in enumerate(inputs(9, 32, dtype=dtype)))
    assert_matches_reference(x, branch, scale)


@pytest.mark.parametrize("barrier", sampled(barriers("residual.cu")))
def test_every_barrier_is_needed(barrier):
    op = lambda *tensors: F.residual(*tensors, drop_path=0.4)  # noqa: E731
    run = lambda: comparison.run_op(op, *inputs(700, 40)).results  # noqa: E731
    # residual.cu does not call block_sum
    assert comparison.barrier_is_needed(barrier, run) or barrier.startswith("common.cuh")


@pytest.mark.parametrize("wanted", [w for w in product([False, True], repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    launches = assert_matches_reference(*inputs(4, 8), p=0.5, wanted=wanted)
    _, want_branch, want_scale = wanted
    names = ["residual_backward"] * (want_branch or want_scale) + ["sum_rows"] * want_scale
    assert kernel_names(launches) == ["residual_forward", *names]
    if want_branch or want_scale:
        grad_branch, partials = launches[1].args[3:5]
        assert (grad_branch is not None) == want_branch and (partials is not None) == want_scale


def test_plain_residual_launches_nothing_backward():
    x, branch, _ = inputs(4, 8)
    assert kernel_names(assert_matches_reference(x, branch)) == ["residual_forward"]


@pytest.mark.parametrize(
    "arrays",
    [
        (random_array(0, 4, 8).astype(np.float64), random_array(1, 4, 8).astype(np.float64), None),
        (random_array(0, 4, 8), random_array(1, 4, 8, dtype=np.float16), None),
        (random_array(0, 8, 4).T, random_array(1, 4, 8), None),
        (random_array(0, 4, 8), random_array(1, 8, 4).T, None),
        (random_array(0, 0, 8), random_array(1, 0, 8), None),
        (random_array(0, 8), random_array(1, 8), None),  # 1-D: drop_path would drop single elements
        (random_array(0, 4, 8), random_array(1, 1, 8), None),
        (random_array(0, 4, 8), random_array(1, 4, 8), random_array(2, 8).astype(np.float64)),
        (random_array(0, 4, 8), random_array(1, 4, 8), random_array(2, 16)[::2]),
        (random_array(0, 4, 8), random_array(1, 4, 8), random_array(2, 7)),
    ],
)
def test_unsupported_arguments_are_declined(arrays):
    with emulated():
        assert residual.CUDAResidual.supports(*inputs(4, 8), p=0.0)
        assert not residual.CUDAResidual.supports(*arrays, p=0.0)


# Residual connection and LayerNorm in one pass ------------------------------------------------------------------------


def normed(arrays, p, wanted, used):
    """The graph node, and the outputs and gradients. The loss depends only on the outputs marked in `used`."""
    tensors = [Tensor(a, requires_grad=w) for a, w in zip(arrays, wanted, strict=True)]
    minigrad.manual_seed(3)
    outputs = F.residual_layer_norm(*tensors, drop_path=p)
    loss = sum(
        (y.float() if y.dtype.itemsize == 2 else y)
        .mul(Tensor(random_array(9 + i, *y.shape).round().astype(arrays[2].dtype)))
        .sum()
        for i, y in enumerate(outputs)
        if used[i]
    )
    node = outputs[0]._node.edges[0][0]
    loss.backward()
    return node, [
        *(y.detach().numpy() for y in outputs),
        *(None if t.grad is None else t.grad.numpy() for t in tensors),
    ]


@given(
    st.integers(1, 3), st.integers(1, 5), st.sampled_from([6, 8, 96]), st.sampled_from([0.0, 0.4]),
    st.sampled_from(DTYPES), st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    st.sampled_from([(True, True), (True, False), (False, True)]), st.sampled_from(ORDERS),
)  # fmt: skip
def test_residual_layer_norm_matches_reference(N, L, C, p, dtype, wanted, used, order):
    if used == (True, False) and not any(wanted[:2]):
        return  # s depends only on x and the branch
    arrays = *inputs(N, L, C, dtype=dtype), random_array(3, C)
    with minigrad.without_fast_paths():
        kind, expected = normed([a.astype(np.float64) for a in arrays], p, wanted, used)
    assert type(kind) is ResidualLayerNorm
    with emulated(order):
        kind, found = normed(arrays, p, wanted, used)
    assert type(kind) is norm.CUDAResidualLayerNorm
    dtypes = [dtype] * 4 + [FLOAT32] * 2
    assert all(x is None or x.dtype == wanted for x, wanted in zip(found, dtypes, strict=True))
    # s and the gradients are cast to 16 bits. LayerNorm magnifies the rounding errors of s by r = 1/σ.
    assert comparison.max_error(found, expected) <= max(16 * comparison.UNIT_ROUNDOFF[dtype], 2e-5)


def one_pass(arrays, grads, p=0.4, wanted=(True,) * 4):
    """Outputs and gradients of the fused kernels."""
    minigrad.manual_seed(3)
    op = norm.CUDAResidualLayerNorm()
    assert op.supports(*arrays, p=p, eps=1e-5)
    op.needs_input_grad = wanted
    outputs = op.forward(*arrays, p=p, eps=1e-5)
    return [*outputs, *op.backward(list(grads))]


def two_passes(arrays, grads, p=0.4):
    """Outputs and gradients of the kernels of Residual and LayerNorm; ∂s is added to LayerNorm's ∂x."""
    minigrad.manual_seed(3)
    x, branch, *params = arrays
    first, second = residual.CUDAResidual(), norm.CUDALayerNorm()
    first.needs_input_grad, second.needs_input_grad = (True, True, False), (True,) * 3
    s = first.forward(x, branch, None, p=p)
    y = second.forward(s, *params, shape=x.shape[-1:], eps=1e-5)
    grad_normed, *grad_params = second.backward(grads[1])
    grad_s = grad_normed if grads[0] is None else grads[0] + grad_normed
    return [s, y, *first.backward(grad_s)[:2], *grad_params]


def inputs_of_both(shape, dtype):
    """x, b, weight and bias; ∂s and ∂y."""
    x, branch, weight = inputs(*shape, dtype=dtype)
    bias, *grads = random_array(3, shape[-1]), *(random_array(i, *shape, dtype=dtype) for i in (4, 5))
    return [x + x.dtype.type(1), branch, weight, bias], grads


def assert_as_two_passes(arrays, grads, p=0.4, **options):
    """Check equality, bit for bit except 16-bit ∂x and ∂b, which the fused kernel casts once: see test_rounding.py."""
    with emulated():
        expected = two_passes(arrays, grads, p)
    with emulated(**options):
        found = one_pass(arrays, grads, p)
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if i in (2, 3) and ours.dtype.itemsize == 2:
            assert comparison.error_of(ours, theirs.astype(np.float64)) <= 4 * ROUNDING[ours.dtype]
        else:
            np.testing.assert_array_equal(ours, theirs)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3), st.sampled_from([1, 6, 8, 96, 192, 1025, 1032]),
    st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from(DTYPES), st.booleans(), st.sampled_from(ORDERS),
)  # fmt: skip
def test_one_pass_equals_two_passes(lead, C, p, dtype, s_is_used, order):
    arrays, (grad_s, grad_y) = inputs_of_both((*lead, C), dtype)
    assert_as_two_passes(arrays, (grad_s if s_is_used else None, grad_y), p, order=order)


@pytest.mark.parametrize("C", [32, 1032])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_pass_grid_stride_loop_over_rows(dtype, C, monkeypatch):
    monkeypatch.setattr(norm, "BLOCKS", 3)
    assert_as_two_passes(*inputs_of_both((13, 4, C), dtype))


@pytest.mark.parametrize(("dtype", "C", "side"), list(product(DTYPES, [24, 31], ["after", "before"])), ids=str)
def test_one_pass_stays_within_the_arrays(dtype, C, side):
    arrays, grads = ([guarded_copy(x, side) for x in group] for group in inputs_of_both((2, 5, C), dtype))
    for p in (0.0, 0.4):
        assert_as_two_passes(arrays, grads, p, guard=side)


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_pass_of_unaligned_arrays(dtype, which):
    arrays, grads = ([unaligned(x, 0) for x in group] for group in inputs_of_both((9, 32), dtype))
    with emulated():
        expected = two_passes(arrays, grads)
    every = [unaligned(x, i == which) for i, x in enumerate(arrays + grads)]
    with recorded() as launches:
        found = one_pass(every[:4], every[4:])
    forward, backward = comparison.packs(launches[:2])
    assert (forward == 1) == (which < 4) and (backward == 1) == (which in (2, 4, 5))
    for ours, theirs in zip(found, expected, strict=True):  # other packs sum in another order
        assert ours.dtype == theirs.dtype
        assert comparison.error_of(ours, theirs.astype(np.float64)) <= 4 * ROUNDING[ours.dtype]


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("wanted", [w for w in product([False, True], repeat=4) if any(w)])
def test_one_pass_computes_only_needed_gradients(wanted, p):
    arrays, grads = inputs_of_both((4, 3, 8), np.float32)
    with recorded() as launches:
        found = one_pass(arrays, grads, p, wanted)
    want_x, want_branch, *want_params = wanted
    names = ["layer_norm_forward", "layer_norm_backward", *["sum_rows"] * any(want_params)]
    assert kernel_names(launches) == names
    grad_x, partials, _, _, grad_branch = launches[1].args[5:10]
    assert (grad_x is not None) == (want_x if p else want_x or want_branch)  # without drop_path, ∂b is the array ∂x
    assert (grad_branch is not None) == (want_branch and p > 0) and (partials is not None) == any(want_params)
    with emulated():
        expected = two_passes(arrays, grads, p)
    for want, ours, theirs in zip((True, True, *wanted), found, expected, strict=True):
        if want:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unused_y_passes_the_gradient_of_s(dtype):
    """If y has no gradient, ∂x is the gradient ∂s of the other output, even if s has infinities."""
    arrays, (grad_s, _) = inputs_of_both((4, 3, 8), dtype)
    arrays[0][0] = np.inf
    with emulated(), np.errstate(invalid="ignore"):
        _, _, grad_x, grad_branch, *grad_params = one_pass(arrays, (grad_s, None))
    m = (minigrad.manual_seed(3).uniform((4, 1, 1)) >= 0.4) / 0.6
    np.testing.assert_array_equal(grad_x, grad_s)
    np.testing.assert_allclose(grad_branch.astype(np.float64), grad_s * m, rtol=ROUNDING[dtype])
    assert grad_params == [None, None]


@pytest.mark.parametrize(
    "arrays",
    [
        (random_array(0, 4, 8), random_array(1, 4, 8, dtype=np.float16), random_array(2, 8), random_array(3, 8)),
        (random_array(0, 4, 8), random_array(1, 8, 4).T, random_array(2, 8), random_array(3, 8)),
        (random_array(0, 8), random_array(1, 8), random_array(2, 8), random_array(3, 8)),
        (random_array(0, 4, 8), random_array(1, 4, 8), random_array(2, 8).astype(np.float16), random_array(3, 8)),
        (random_array(0, 4, 8), random_array(1, 4, 8), random_array(2, 8), random_array(3, 16)[::2]),
        (random_array(0, 4, 8), random_array(1, 4, 8), random_array(2, 7), random_array(3, 8)),
        (random_array(0, 2, 8193), random_array(1, 2, 8193), random_array(2, 8193), random_array(3, 8193)),
    ],
)
def test_unsupported_arguments_take_two_passes(arrays):
    with emulated():
        assert not norm.CUDAResidualLayerNorm.supports(*arrays, p=0.0, eps=1e-5)
