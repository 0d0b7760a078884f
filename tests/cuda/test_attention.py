"""Float32 attention in CUDA, run on the CPU in several thread orders, against the reference in float64."""

from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend.cublas import pointer
from minigrad.kernels.cuda import attention
from minigrad.kernels.cuda.launch import use_device
from minigrad.ops.attention import ScaledDotProductAttention
from tests.cuda import comparison
from tests.cuda.comparison import guarded_copy, kernel_names, normal, run_op, unaligned
from tests.cuda.comparison import random_qkv as qkv
from tests.cuda.runner import ORDERS, CpuDevice, KernelError, barriers, emulated, needs_compiler, recorded, sampled

pytestmark = needs_compiler

LAYOUTS = ["C", "packed", "rows first", "backwards"]


def attention_op(**options):
    return lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask, **options)


def assert_matches_reference(q, k, v, mask=None, *, scale=None, tolerance=2e-6, grad_layout="packed", **options):
    """Returns the results of the fast path, and its launches."""
    run, launches = comparison.assert_matches_reference(
        attention_op(scale=scale), q, k, v, mask, fast_path=attention.CUDAScaledDotProductAttention,
        tolerance=tolerance, grad_layout=grad_layout, **options,
    )  # fmt: skip
    return run.results, launches


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from([(8, 12), (36, 4)]), st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    st.sampled_from([*LAYOUTS, "strided"]), st.sampled_from([None, -0.3]), st.sampled_from(ORDERS),
)  # fmt: skip
def test_value_and_gradients_match_reference(lead, L, S, widths, layouts, grad_layout, scale, order):
    """Sizes include fewer rows than a warp processes, more than a block does, and keys that do not fill a warp."""
    arrays = qkv(lead, L, S, *widths, layouts=layouts)
    _, launches = assert_matches_reference(*arrays, order=order, grad_layout=grad_layout, scale=scale)
    names = ["attention_forward", "attention_backward_q", "attention_backward_kv"]
    assert kernel_names(launches) == names
    assert all(launch.args[i] == pointer(x) for launch in launches for i, x in zip((0, 4, 8), arrays, strict=True))


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.booleans(), min_size=5, max_size=5),
    st.integers(0, 3), st.integers(1, 5), st.integers(1, 34), st.booleans(), st.sampled_from(ORDERS),
)  # fmt: skip
def test_masks_match_reference(lead, broadcast, missing, L, S, transposed, order):
    """Masks have axes of length 1, lack leading axes, or have the first axis last in memory, as Swin's bias."""
    shape = [1 if one else n for n, one in zip((*lead, L, S), broadcast, strict=False)]
    shape = shape[min(missing, len(lead)) :]
    mask = normal(7, *shape)
    if transposed:
        mask = np.moveaxis(np.ascontiguousarray(np.moveaxis(mask, 0, -1)), -1, 0)
    summed = np.prod([*lead, L, S]) / mask.size  # terms per element of ∂mask: the error grows as √n
    assert_matches_reference(*qkv(lead, L, S, 8, 12), mask, order=order, tolerance=2e-6 * summed**0.5)


@pytest.mark.parametrize(
    ("lead", "N", "d", "mask"),
    [
        ((2, 2), 65, 64, None),  # ViT
        ((1, 1), 197, 64, None),
        ((2, 4, 2), 49, 32, (2, 49, 49)),  # Swin, and with a shift
        ((2, 4, 2), 49, 32, (4, 2, 49, 49)),
        ((2, 4, 2), 16, 32, (4, 2, 16, 16)),
        ((1, 1, 2), 144, 32, (2, 144, 144)),
    ],
)
def test_packed_qkv_is_not_copied(lead, N, d, mask):
    """q, k, v are views of one array, and y.swapaxes(-2, -3) is contiguous, so joining the heads copies nothing."""
    *outer, heads = lead
    packed = normal(0, *outer, N, 3, heads * d).reshape(*outer, N, 3, heads, d)
    q, k, v = np.moveaxis(packed, -3, 0).swapaxes(-2, -3)
    mask = None if mask is None else normal(1, *mask)
    found, launches = assert_matches_reference(q, k, v, mask, order="shuffled")
    assert [launch.args[0] - pointer(packed) for launch in launches] == [0, 0, 0]
    assert found[0].swapaxes(-2, -3).flags.c_contiguous
    with emulated():  # and the CPU's result has the same strides
        y = F.scaled_dot_product_attention(*(Tensor(x) for x in (q, k, v)))
    assert y.numpy().strides == F.scaled_dot_product_attention(*(Tensor(x) for x in (q, k, v))).numpy().strides


def test_aliased_and_broadcast_inputs():
    """If q, k and v are one array, or all heads share keys, the gradients are correct and not aliased."""
    q, k, v = qkv((2, 3), 5, 5, 8, 8)
    for arrays in ((q, q, q), (q, np.broadcast_to(k[:, :1], k.shape), v)):
        grad_y = normal(9, *q.shape)
        results = []
        for x in (arrays, [x.astype(np.float64) for x in arrays]):
            with emulated():
                op = (attention.CUDAScaledDotProductAttention if x is arrays else ScaledDotProductAttention)()
                op.needs_input_grad = (True, True, True, None)
                y = op.forward(*x, None, scale=0.2, is_causal=False, dropout_p=0.0)
                results.append([y, *op.backward(grad_y.astype(y.dtype))[:3]])
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_thread_order_changes_no_bit():
    arrays = (*qkv((2, 2), 40, 37, 8, 12), normal(3, 2, 40, 37))
    comparison.assert_thread_order_changes_no_bit(lambda: run_op(attention_op(), *arrays).results)
    first, *others = ([launch[:3] for launch in assert_matches_reference(*arrays, order=order)[1]] for order in ORDERS)
    assert all(launches == first for launches in others)


@pytest.mark.parametrize("barrier", sampled([b for b in barriers("attention.cu") if b.startswith("attention.cu")]))
def test_every_barrier_is_needed(barrier):
    """The sizes give each warp two iterations."""
    arrays = *qkv((1, 2), 37, 41, 8, 12), normal(3, 37, 41)
    assert comparison.barrier_is_needed(barrier, lambda: run_op(attention_op(), *arrays).results)


@pytest.mark.parametrize(("side", "L", "S"), list(product(["after", "before"], [1, 35], [1, 34])))
def test_accesses_stay_within_the_arrays(side, L, S):
    arrays = *qkv((2, 3), L, S, 8, 12), normal(3, 3, L, S)
    assert_matches_reference(*(guarded_copy(x, side) for x in arrays), guard=side)


def test_guard_detects_an_access_out_of_bounds():
    """The guard of the test above raises if the keys lack a row."""
    q, k, v = (guarded_copy(normal(0, 1, 1, rows, 8)) for rows in (5, 5, 6))
    op = attention.CUDAScaledDotProductAttention()
    op.needs_input_grad = (None,) * 4
    with emulated(), pytest.raises(KernelError, match=r"attention_forward: .* memory access out of bounds"):
        op.forward(q, np.lib.stride_tricks.as_strided(k, (1, 1, 6, 8)), v, None, scale=1.0)


@pytest.mark.parametrize("wanted", [w for w in product([False, True], repeat=4) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    want_q, want_k, want_v, want_mask = wanted
    _, launches = assert_matches_reference(*qkv((2, 3), 6, 5, 8, 12), normal(3, 3, 6, 5), wanted=wanted)
    queries, keys = want_q or want_k or want_mask, want_k or want_v
    expected = ["attention_backward_q"] * queries + ["attention_backward_kv"] * keys
    assert kernel_names(launches[1:]) == expected
    if queries:
        *_, D, grad_scores = launches[1].args[:-4]
        assert [D is not None, grad_scores is not None] == [want_k, want_mask]


def test_without_gradients_nothing_is_saved():
    q, k, v = qkv((2, 3), 6, 5, 8, 12)
    with recorded() as launches:
        y = F.scaled_dot_product_attention(Tensor(q), Tensor(k), Tensor(v))
    (launch,) = launches
    assert launch.args[-5] is None and y.grad_fn is None  # lse
    np.testing.assert_array_equal(y.numpy(), assert_matches_reference(q, k, v)[0][0])


def test_saves_lse_instead_of_probabilities():
    """Probabilities have L · S values per head; their log-sum-exp (lse) has L values."""
    with emulated():
        y = F.scaled_dot_product_attention(*(Tensor(x, requires_grad=True) for x in qkv((2, 3), 40, 40, 8, 12)))
        kept = {name: x.shape for name, x in vars(y.grad_fn).items() if isinstance(x, np.ndarray)}
    assert kept == {"q": (2, 3, 40, 8), "k": (2, 3, 40, 8), "v": (2, 3, 40, 12), "lse": (2, 3, 40)}


def test_fully_masked_query_gives_zeros():
    mask = np.zeros((7, 40), np.float32)
    mask[2] = -np.inf
    mask[3, :35] = -np.inf
    mask[:, 6] = -np.inf
    found, _ = assert_matches_reference(*qkv((2, 3), 7, 40, 8, 12), mask)
    y, grad_q, _, _, grad_mask = found
    assert not y[..., 2, :].any() and not grad_q[..., 2, :].any() and not grad_mask[2].any()
    assert y[..., 3, :].all()


@pytest.mark.parametrize("offset", [-1e4, -200.0, 80.0, 1e4])
def test_large_scores_do_not_overflow(offset):
    """Scores exceed the range of exp. Softmax is invariant to an offset of one row or of all rows."""
    for rows in (slice(None), slice(1)):
        mask = np.zeros((7, 9), np.float32)
        mask[rows] = offset
        assert_matches_reference(*qkv((2, 3), 7, 9, 8, 12), mask, tolerance=1e-3 if abs(offset) > 1e3 else 3e-5)


def test_nan_stays_in_its_row():
    q, k, v = qkv((1, 2), 6, 5, 8, 12)
    q[0, 1, 2, 3] = np.nan
    with emulated():
        y = F.scaled_dot_product_attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    wrong = np.zeros(y.shape, bool)
    wrong[0, 1, 2] = True
    np.testing.assert_array_equal(np.isnan(y), wrong)


def test_broadcast_gradient_matches_reference():
    """The ∂y of y.sum() has strides of 0, which cannot be loaded in packs."""
    arrays = qkv((2, 3), 6, 5, 8, 12)
    assert_matches_reference(*arrays, grad_y=np.broadcast_to(np.float32(1), (2, 3, 6, 12)))


def test_stride_of_an_axis_of_length_1_is_ignored():
    """The stride of an axis of length 1 has no meaning; here it is 40 bytes, no multiple of 16."""
    assert_matches_reference(*(normal(i, 1, 1, 10)[..., :8] for i in range(3)))


@pytest.mark.parametrize(
    ("arrays", "mask", "options"),
    [
        ([x.astype(np.float64) for x in qkv((2,), 3, 4, 8, 12)], None, {}),
        ([x[0] for x in qkv((2,), 3, 4, 8, 12)], None, {}),
        (qkv((2,), 3, 4, 6, 12), None, {}),
        (qkv((2,), 3, 4, 8, 6), None, {}),
        (qkv((2,), 3, 4, 132, 8), None, {}),
        (qkv((2,), 3, 4, 8, 132), None, {}),
        (qkv((1,), 257, 4, 8, 8), None, {}),
        (qkv((1,), 4, 257, 8, 8), None, {}),
        (qkv((2,), 0, 4, 8, 8), None, {}),
        (qkv((2,), 3, 4, 8, 12, layouts=("strided", "C", "C")), None, {}),
        (qkv((2,), 3, 4, 8, 12, layouts=("C", "strided", "C")), None, {}),
        (qkv((2,), 3, 4, 8, 12, layouts=("C", "C", "strided")), None, {}),
        ([unaligned(normal(0, 2, 3, 8)), *qkv((2,), 3, 4, 8, 12)[1:]], None, {}),
        ([normal(0, 2, 3, 10)[..., :8], *qkv((2,), 3, 4, 8, 12)[1:]], None, {}),  # rows 40 bytes apart
        ([normal(0, 3, 4, 2, 3, 8)[:, :2], *qkv((3, 2, 2), 3, 4, 8, 12)[1:]], None, {}),  # outer axes with a gap
        ([qkv((2,), 3, 4, 8, 12)[0][:1], *qkv((2,), 3, 4, 8, 12)[1:]], None, {}),
        (qkv((2,), 3, 4, 8, 12), np.ones((3, 4), bool), {}),
        (qkv((2,), 3, 4, 8, 12), np.ones((3, 4)), {}),
        (qkv((2,), 3, 1, 8, 12), np.ones((3, 4), np.float32), {}),
        (qkv((2,), 3, 4, 8, 12), np.ones((5, 1, 3, 4), np.float32), {}),
        (qkv((2,), 3, 4, 8, 12), None, {"is_causal": True}),
        (qkv((2,), 3, 4, 8, 12), None, {"dropout_p": 0.5}),
    ],
)
def test_unsupported_arguments_are_declined(arrays, mask, options):
    options = {"scale": 1.0, "is_causal": False, "dropout_p": 0.0, **options}
    with emulated():
        assert attention.CUDAScaledDotProductAttention.supports(*qkv((2,), 3, 4, 8, 12), None, **{**options, **PLAIN})
        assert not attention.CUDAScaledDotProductAttention.supports(*arrays, mask, **options)


PLAIN = {"is_causal": False, "dropout_p": 0.0}


def test_arrays_of_another_device_are_declined():
    class Elsewhere(np.ndarray):
        pass

    arrays = qkv((2,), 3, 4, 8, 12)
    mask = np.zeros((3, 4), np.float32)
    with use_device(CpuDevice(array=Elsewhere)):
        arrays, mask = [x.view(Elsewhere) for x in arrays], mask.view(Elsewhere)
        assert attention.CUDAScaledDotProductAttention.supports(*arrays, mask, scale=1.0, **PLAIN)
        for i in range(4):
            some = [np.asarray(x) if i == j else x for j, x in enumerate((*arrays, mask))]
            assert not attention.CUDAScaledDotProductAttention.supports(*some, scale=1.0, **PLAIN)


@pytest.mark.parametrize(("size", "N"), [(227 << 10, 256), (163 << 10, 197), (99 << 10, 112)])
def test_length_is_limited_by_shared_memory(size, N):
    """`size` is the shared memory per block of compute capability 9.0, 8.0 and 8.9; N fits for E = V = 64."""
    with emulated(), patch.dict(attention._most_shared, cpu=size):
        arrays = lambda N: qkv((1,), N, N, 64, 64)  # noqa: E731
        fits = lambda N: attention.CUDAScaledDotProductAttention.supports(*arrays(N), None, scale=1.0, **PLAIN)  # noqa: E731
        assert fits(N) and not fits(N + 60)
