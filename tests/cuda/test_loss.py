"""Cross-entropy in CUDA, run on the CPU through `F.cross_entropy`, against the reference in float64."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda import loss
from minigrad.ops.loss import CrossEntropy
from tests.cuda import comparison
from tests.cuda.comparison import guarded_copy, kernel_names, random_array, run_op
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, sampled

pytestmark = needs_compiler

CLASSES = [1, 2, 10, 32, 33, 1025]  # a warp or a block for a row; threads without columns
REDUCTIONS = ["mean", "sum", "none"]


def probabilities(seed, *shape):
    q = np.random.default_rng(seed).random(shape)
    return (q / q.sum(axis=1, keepdims=True)).astype(np.float32)


def indices(seed, N, C):
    return np.random.default_rng(seed).integers(0, C, N)


@pytest.fixture(autouse=True)
def quiet():
    """No NumPy warnings: the reference computes with infinities."""
    with np.errstate(all="ignore"):
        yield


def cross_entropy(x, target, weight=None, **options):
    """The loss, ∂x and ∂target; ∂target is None for class indices."""
    op = lambda *tensors: F.cross_entropy(*tensors, **options)  # noqa: E731
    return run_op(op, x, target, weight, wanted=(True, True, False)).results[:3]


def assert_matches_reference(x, target, weight=None, *, wanted=(True, True), run=(), **options):
    """Returns the launches. `run`: arguments of `comparison.assert_matches_reference`."""
    op = lambda *tensors: F.cross_entropy(*tensors, **options)  # noqa: E731
    return comparison.assert_matches_reference(
        op, x, target, weight, fast_path=loss.CUDACrossEntropy, wanted=(*wanted, False), **dict(run)
    )[1]


@given(
    st.integers(1, 20), st.sampled_from(CLASSES), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from(REDUCTIONS), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_cross_entropy_matches_reference(N, C, by_index, weighted, smoothing, reduction, order, seed):
    target = indices(seed, N, C) if by_index else probabilities(seed, N, C)
    weight = abs(random_array(seed + 1, C)) if weighted else None
    options = {"label_smoothing": smoothing, "reduction": reduction}
    assert_matches_reference(random_array(seed, N, C), target, weight, run={"order": order}, **options)


@given(
    st.integers(1, 20), st.sampled_from([2, 10, 33]), st.sampled_from([-100, -1, 1]), st.sampled_from(REDUCTIONS),
    st.sampled_from([np.int64, np.int32, np.uint8]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_ignore_index_matches_reference(N, C, ignored, reduction, dtype, weighted, seed):
    ignored = 1 if dtype == np.uint8 else ignored
    target = np.where(np.arange(N) % 3 == 1, ignored, indices(seed, N, C)).astype(dtype)
    weight = abs(random_array(seed + 1, C)) if weighted else None
    options = {"ignore_index": ignored, "reduction": reduction, "label_smoothing": 0.1}
    assert_matches_reference(random_array(seed, N, C), target, weight, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_zero_total_weight_gives_nan_mean(reduction):
    """The mean over no rows, or over classes of weight 0, is NaN. Gradients of ignored rows are 0, all others NaN."""
    options = {"ignore_index": 3, "reduction": reduction}
    assert_matches_reference(random_array(0, 5, 7), np.full(5, 3), **options)
    weight = (np.arange(7) != 2).astype(np.float32)
    for smoothing in (0.0, 0.1):
        assert_matches_reference(random_array(0, 5, 7), np.full(5, 2), weight, label_smoothing=smoothing, **options)


def test_index_out_of_range_selects_no_class():
    """The CPU raises. To avoid synchronization, the GPU ignores the row: its target probabilities are 0."""
    x, inside = random_array(0, 4, 7), np.array([1, 5, 0, 6])
    with emulated():
        found = cross_entropy(x, np.where(np.arange(4) % 2, 7, inside))
        ignoring = cross_entropy(x, np.where(np.arange(4) % 2, -100, inside))
    for ours, theirs in zip(found[:2], ignoring[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("C", [10, 1025])
@pytest.mark.parametrize("offset", [-1e4, 88.0, 1e4, 1e37])
def test_large_logits_do_not_overflow(C, offset):
    """The logits of all classes, or of one class, have an offset beyond the range of exp."""
    x = random_array(0, 9, C)
    for far in (np.float32(offset) + x, np.where(np.arange(C) == C // 2 - 3, np.float32(offset), x)):
        assert_matches_reference(far, indices(0, 9, C), label_smoothing=0.1)


@pytest.mark.parametrize("C", [10, 1025])
def test_logits_of_minus_infinity_and_nan(C):
    """A logit -∞ gives a finite loss, but loss ∞ if it is the logit of the target class. A logit NaN gives NaN."""
    x, target = random_array(0, 9, C), indices(0, 9, C) % 5
    x[:, 7] = -np.inf
    for reduction in REDUCTIONS:
        assert_matches_reference(x, target, reduction=reduction)
    target[2] = 7
    assert_matches_reference(x, target, reduction="none")
    x[3], x[4, 1], x[5, 1] = -np.inf, np.nan, np.inf
    assert_matches_reference(x, target, reduction="none")
    assert_matches_reference(x, target, reduction="none", label_smoothing=0.1)


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("C", [10, 1025])
def test_accesses_stay_within_the_arrays(C, by_index):
    for side, N in product(("after", "before"), (1, 9)):
        target = indices(0, N, C) if by_index else probabilities(0, N, C)
        arrays = [guarded_copy(x, side) for x in (random_array(0, N, C), target, abs(random_array(1, C)))]
        for reduction in REDUCTIONS:
            assert_matches_reference(*arrays, reduction=reduction, run={"guard": side})


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_unneeded_gradients_are_not_computed(wanted):
    launches = assert_matches_reference(random_array(0, 9, 10), probabilities(1, 9, 10), wanted=wanted)
    assert kernel_names(launches) == [
        "cross_entropy_forward",
        "cross_entropy_total",
        "cross_entropy_backward",
    ]
    assert tuple(grad is not None for grad in launches[2].args[7:9]) == wanted


def test_total_loops_over_more_rows_than_threads():
    N = 2051
    assert_matches_reference(random_array(0, N, 3), indices(1, N, 3), abs(random_array(2, 3)), label_smoothing=0.1)


def test_gradient_and_target_of_any_memory_layout():
    x, target = random_array(0, 6, 5), indices(1, 12, 5)[::2]
    assert_matches_reference(x, target, reduction="none", run={"grad_y": np.broadcast_to(np.float32(1), 6)})


def test_thread_order_changes_no_bit():
    for C in (10, 1025):
        arrays = random_array(0, 37, C), probabilities(1, 37, C), abs(random_array(2, C))
        comparison.assert_thread_order_changes_no_bit(lambda arrays=arrays: cross_entropy(*arrays, label_smoothing=0.1))


# (loss.cu does not call sum_rows of common.cuh.)
OURS = [place for place in barriers("loss.cu") if place.startswith("loss.cu")]
BLOCK_SUM = [place for place in barriers("loss.cu") if place.startswith("common.cuh")][:2]


@pytest.mark.parametrize("barrier", sampled(OURS + BLOCK_SUM))
def test_every_barrier_is_needed(barrier):
    inputs = [(random_array(0, 40, C), indices(1, 40, C), abs(random_array(2, C))) for C in (10, 1025)]
    assert any(comparison.barrier_is_needed(barrier, lambda arrays=arrays: cross_entropy(*arrays)) for arrays in inputs)


def test_forward_saves_only_what_backward_reads():
    x, target = Tensor(random_array(0, 9, 10), requires_grad=True), Tensor(indices(1, 9, 10))
    with emulated():
        node = F.cross_entropy(x, target).grad_fn
    assert node.x is x.data and node.targets[0] is target.data and node.targets[1:] == (None, None)
    assert node.scale.size == 1


@pytest.mark.parametrize(
    ("x", "target", "weight"),
    [
        (random_array(0, 3, 4).astype(np.float64), np.zeros(3, np.int64), None),
        (random_array(0, 3, 4, 2), np.zeros((3, 2), np.int64), None),
        (random_array(0, 4), np.array(0), None),
        (random_array(0, 3, 8)[:, ::2], np.zeros(3, np.int64), None),
        (random_array(0, 3, 4), probabilities(0, 3, 4).astype(np.float64), None),
        (random_array(0, 3, 4), probabilities(0, 3, 8)[:, ::2], None),
        (random_array(0, 3, 4), np.zeros(3, np.int64), np.ones(8, np.float32)[::2]),
        (random_array(0, 2, 24577), np.zeros(2, np.int64), None),
    ],
)
def test_unsupported_arrays_run_the_reference(x, target, weight):
    with emulated():
        weight = None if weight is None else Tensor(weight)
        node = F.cross_entropy(Tensor(x, requires_grad=True), Tensor(target), weight).grad_fn
    assert isinstance(node, CrossEntropy) and type(node) is not loss.CUDACrossEntropy


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (np.zeros(4, np.int64), {}, "class indices must have the input's shape without its class axis"),
        (random_array(0, 3, 5), {}, "probabilities must have the shape of the input"),
        (np.zeros(3, np.int64), {"weight": Tensor(random_array(0, 5))}, "weight must have shape"),
        (np.zeros(3, np.int64), {"reduction": "average"}, "reduction must be"),
        (np.zeros(3, np.int64), {"label_smoothing": 1.5}, "label_smoothing must be from 0 to 1"),
    ],
)
def test_errors_are_those_of_the_reference(target, options, message):
    with emulated(), pytest.raises(ValueError, match=message):
        F.cross_entropy(Tensor(random_array(0, 3, 4)), Tensor(target), **options)
