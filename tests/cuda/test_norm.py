"""LayerNorm's CUDA kernels, run on the CPU through `F.layer_norm`, against the reference in float64."""

from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, autocast, nn, optim
from minigrad import functional as F
from minigrad.autograd import tape
from minigrad.backend.dtypes import as_dtype
from minigrad.kernels.cuda import norm
from minigrad.ops.norm import LayerNorm
from tests.cuda import comparison
from tests.cuda.comparison import DTYPES, guarded_copy, kernel_names, packs, random_array, run_op, unaligned
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, recorded, sampled

pytestmark = needs_compiler

WIDTHS = [1, 6, 31, 32, 192, 1025, 1028]  # a warp or a block for a row; packs of 1 or 4; threads without columns


def layer_norm(x, weight, bias):
    return F.layer_norm(x, x.shape[-1], weight, bias)


def inputs(rows, C):
    """x, weight and bias."""
    return random_array(0, rows, C), random_array(1, C), random_array(2, C)


def assert_matches_reference(arrays, op=layer_norm, **options):
    """Returns the launches."""
    return comparison.assert_matches_reference(op, *arrays, fast_path=norm.CUDALayerNorm, **options)[1]


@given(
    st.lists(st.integers(1, 4), max_size=2), st.sampled_from(WIDTHS), st.booleans(), st.booleans(),
    st.sampled_from([1e-5, 0.1]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_layer_norm_matches_reference(lead, C, weight, bias, eps, order, seed):
    x = random_array(seed, *lead, C, offset=seed % 3)
    arrays = [x, random_array(1, C) if weight else None, random_array(2, C) if bias else None]
    assert_matches_reference(arrays, lambda x, *params: F.layer_norm(x, C, *params, eps), order=order)


@pytest.mark.parametrize("C", [32, 1028])
def test_accesses_stay_within_the_arrays(C):
    for side, rows in product(("after", "before"), (1, 9)):
        assert_matches_reference([guarded_copy(x, side) for x in inputs(rows, C)], guard=side)


@pytest.mark.parametrize("wanted", [w for w in product((False, True), repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    launches = assert_matches_reference(inputs(9, 32), wanted=wanted)
    names = ["layer_norm_forward", "layer_norm_backward", "sum_rows"][: 3 if any(wanted[1:]) else 2]
    assert kernel_names(launches) == names
    grad_x, partials = launches[1].args[5:7]
    assert (grad_x is not None) == wanted[0] and (partials is not None) == any(wanted[1:])


@pytest.mark.parametrize("dtype", [x.name for x in DTYPES])
@pytest.mark.parametrize("C", [31, 192, 1028])
def test_gradient_of_a_residual_connection_is_added_in_the_kernel(C, dtype):
    """y = x + LayerNorm(x): the kernel adds ∂y to the gradient of LayerNorm, in float32, and casts once."""

    def residual(x, weight, bias):
        x = x * 1  # an activation
        with autocast(dtype if dtype != "float32" else "bfloat16", dtype != "float32"):
            return x + F.layer_norm(x, C, weight, bias)

    x, *params = inputs(9, C)
    run = lambda: run_op(residual, x.astype(as_dtype(dtype)), *params)  # noqa: E731
    with recorded() as launches, patch.object(tape, "plus", None):  # no other sum of gradients
        found = run()
    (backward,) = (launch for launch in launches if launch.kernel.name == "layer_norm_backward")
    assert backward.args[8] is not None  # grad_s
    expected = comparison.run_reference(residual, x.astype(as_dtype(dtype)), *params, grad_y=found.grad_y)
    limit = 1e-5 + comparison.UNIT_ROUNDOFF.get(as_dtype(dtype), 0)
    assert comparison.max_error(found.results[1:], expected[1:]) <= limit


@pytest.mark.parametrize("C", [32, 1028])
def test_grid_stride_loop_over_rows(C, monkeypatch):
    monkeypatch.setattr(norm, "BLOCKS", 3)
    assert_matches_reference(inputs(53 if C < 1024 else 10, C))


def test_sum_rows_loops_over_more_rows_than_strips():
    """The 77 partial sums are divided into strips of several rows; the last strips have fewer rows."""
    assert_matches_reference(inputs(8 * 77, 6))


@pytest.mark.parametrize("which", range(4))
def test_unaligned_arrays_give_the_same_result(which):
    """Loads of 16 bytes need alignment to 16 bytes. The fourth array is ∂y."""
    arrays = [unaligned(x, i == which) for i, x in enumerate((*inputs(9, 32), random_array(3, 9, 32)))]
    launches = assert_matches_reference(arrays[:3], grad_y=arrays[3])
    # forward does not read ∂y, backward does not read the bias
    assert packs(launches[:2]) == [4 if which == 3 else 1, 4 if which == 2 else 1]


def test_several_normalized_axes():
    x, weight, bias = random_array(0, 5, 2, 3, 4), random_array(1, 2, 3, 4), random_array(2, 2, 3, 4)
    for arrays in ((x, weight, bias), (x[0], weight, None)):
        assert_matches_reference(arrays, lambda x, *params: F.layer_norm(x, (2, 3, 4), *params))


def test_gradient_of_any_memory_layout():
    assert_matches_reference(inputs(9, 32), grad_layout="F")
    assert_matches_reference(inputs(9, 32), grad_y=np.broadcast_to(random_array(3, 32), (9, 32)))


def test_large_mean_does_not_cancel_the_variance():
    assert_matches_reference([random_array(0, 3, 192, offset=1e4), None, None], tolerance=2e-3)


def test_thread_order_changes_no_bit():
    comparison.assert_thread_order_changes_no_bit(lambda: run_op(layer_norm, *inputs(70, 32)).results)


@pytest.mark.parametrize("barrier", sampled(barriers("norm.cu")))
def test_every_barrier_is_needed(barrier):
    runs = [lambda C=C: run_op(layer_norm, *inputs(9, C)).results for C in (32, 1028)]
    assert any(comparison.barrier_is_needed(barrier, run) for run in runs)


def test_training_matches_the_cpu():
    def steps():
        minigrad.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(Tensor(random_array(0, 17, 5))), Tensor(np.arange(17) % 3))
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
        (random_array(0, 3, 4).astype(np.float64), None, (4,)),
        (random_array(0, 3, 8)[:, ::2], None, (4,)),
        (random_array(0, 0, 4), None, (4,)),
        (random_array(0, 2, 8193), None, (8193,)),
        (random_array(0, 3, 4), random_array(0, 8)[::2], (4,)),
    ],
)
def test_unsupported_arrays_run_the_reference(x, weight, shape):
    with emulated():
        weight = None if weight is None else Tensor(weight)
        node = F.layer_norm(Tensor(x, requires_grad=True), shape, weight).grad_fn
    assert isinstance(node, LayerNorm) and type(node) is not norm.CUDALayerNorm


def test_errors_are_those_of_the_reference():
    for x, shape in ((random_array(0, 3, 4), (5,)), (random_array(0, 4), (3, 4)), (random_array(0, 4), ())):
        with emulated(), pytest.raises(ValueError, match="normalized_shape must equal the last sizes"):
            F.layer_norm(Tensor(x), shape)
