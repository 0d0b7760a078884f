"""Attention for CUDA, run on the CPU: equal to the specification in float64, whatever the order of the threads."""

from contextlib import nullcontext
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.cublas import pointer
from minigrad.kernels.cuda import attention
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.ops.attention import ScaledDotProductAttention
from tests.cuda.runner import ORDERS, CpuDevice, KernelError, barriers, emulated, guarded, needs_compiler, sampled

pytestmark = needs_compiler

ALL = (True, True, True, True)


def drawn(seed, *shape, layout="C"):
    """Of the ways in which heads (..., heads, rows, width) lie in memory: see `LAYOUTS`."""
    numbers = lambda *shape: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)  # noqa: E731
    *outer, heads, rows, width = (1,) * (3 - len(shape)) + shape
    match layout:
        case "packed":  # in the middle of what a linear layer makes
            return numbers(*outer, rows, 3, heads, width)[..., 1, :, :].swapaxes(-2, -3)
        case "rows first":
            return np.moveaxis(numbers(rows, *outer, heads, width), 0, -2)
        case "backwards":
            return numbers(*outer, heads, rows, width)[..., ::-1, :]
        case "strided":
            return numbers(*shape, 2)[..., 0]
    return numbers(*shape)


LAYOUTS = ["C", "packed", "rows first", "backwards"]


def outcome(q, k, v, mask, grad_y, wanted=ALL, **choices):
    """Which class ran, its output, and the gradients."""
    inputs = [None if x is None else Tensor(x, requires_grad=w) for x, w in zip((q, k, v, mask), wanted, strict=True)]
    y = F.scaled_dot_product_attention(*inputs, **choices)
    y.backward(Tensor(grad_y))
    return type(y.grad_fn), [y.numpy(), *(x.grad.numpy() for x in inputs if x is not None and x.requires_grad)]


def assert_twin_equals(
    q, k, v, mask=None, wanted=ALL, order=ORDERS[0], grad_layout="packed", tolerance=2e-6, guard=None, **choices
):
    """Run both; return what the twin found, and its launches."""
    exact = [None if x is None else x.astype(np.float64) for x in (q, k, v, mask)]
    grad_y = drawn(9, *q.shape[:-1], v.shape[-1], layout=grad_layout)
    kind, expected = outcome(*exact, grad_y.astype(np.float64), wanted, **choices)
    assert kind is ScaledDotProductAttention
    with emulated(order, guard=guard) as device, use_device(recorder := Recorder(device)):
        kind, found = outcome(q, k, v, mask, grad_y, wanted, **choices)
    assert kind is attention.ScaledDotProductAttention
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == np.float32
        assert abs(ours - theirs).max() <= tolerance * max(abs(theirs).max(), 1)
    return found, recorder.launches


def qkv(lead, L, S, E, V, layouts=("C", "C", "C")):
    shapes = ((L, E), (S, E), (S, V))
    return [
        drawn(i, *lead, *shape, layout=layout) for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True))
    ]


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from([(8, 12), (36, 4)]), st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    st.sampled_from([*LAYOUTS, "strided"]), st.sampled_from([None, -0.3]), st.sampled_from(ORDERS),
)  # fmt: skip
def test_value_and_gradients(lead, L, S, widths, layouts, grad_layout, scale, order):
    """Fewer rows than a warp works on at once, more than a block does, keys and columns that fill no warp."""
    arrays = qkv(lead, L, S, *widths, layouts=layouts)
    _, launches = assert_twin_equals(*arrays, order=order, grad_layout=grad_layout, scale=scale)
    names = ["attention_forward", "attention_backward_q", "attention_backward_kv"]
    assert [launch.kernel.name for launch in launches] == names
    assert all(launch.args[i] == pointer(x) for launch in launches for i, x in zip((0, 4, 8), arrays, strict=True))


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.booleans(), min_size=5, max_size=5),
    st.integers(0, 3), st.integers(1, 5), st.integers(1, 34), st.booleans(), st.sampled_from(ORDERS),
)  # fmt: skip
def test_masks(lead, broadcast, missing, L, S, turned, order):
    """Of any axes: some of length 1, some that are not there; in memory with the first axis last, as Swin's bias."""
    shape = [1 if one else n for n, one in zip((*lead, L, S), broadcast, strict=False)]
    shape = shape[min(missing, len(lead)) :]
    mask = drawn(7, *shape)
    if turned:
        mask = np.moveaxis(np.ascontiguousarray(np.moveaxis(mask, 0, -1)), -1, 0)
    assert_twin_equals(*qkv(lead, L, S, 8, 12), mask, order=order)


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
def test_as_the_models_call_it(lead, N, d, mask):
    """All three in one array, and heads joined after it: neither copies anything."""
    *outer, heads = lead
    together = drawn(0, *outer, N, 3, heads * d).reshape(*outer, N, 3, heads, d)
    q, k, v = np.moveaxis(together, -3, 0).swapaxes(-2, -3)
    mask = None if mask is None else drawn(1, *mask)
    found, launches = assert_twin_equals(q, k, v, mask, order="shuffled")
    assert [launch.args[0] - pointer(together) for launch in launches] == [0, 0, 0]
    assert found[0].swapaxes(-2, -3).flags.c_contiguous
    with emulated():  # and the specification's twin for CPUs leaves it so too
        y = F.scaled_dot_product_attention(*(Tensor(x) for x in (q, k, v)))
    assert y.numpy().strides == F.scaled_dot_product_attention(*(Tensor(x) for x in (q, k, v))).numpy().strides


def test_arrays_that_repeat_themselves():
    """All three the same, and keys that all heads share: their gradients have room for each entry."""
    q, k, v = qkv((2, 3), 5, 5, 8, 8)
    for arrays in ((q, q, q), (q, np.broadcast_to(k[:, :1], k.shape), v)):
        grad_y = drawn(9, *q.shape)
        results = []
        for x in (arrays, [x.astype(np.float64) for x in arrays]):
            with emulated():
                op = (attention.ScaledDotProductAttention if x is arrays else ScaledDotProductAttention)()
                op.needs_input_grad = (True, True, True, None)
                y = op.forward(*x, None, scale=0.2, is_causal=False, dropout_p=0.0)
                results.append([y, *op.backward(grad_y.astype(y.dtype))[:3]])
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_order_of_threads_changes_no_bit():
    arrays = (*qkv((2, 2), 40, 37, 8, 12), drawn(3, 2, 40, 37))
    outcomes = [assert_twin_equals(*arrays, order=order) for order in (*ORDERS, ORDERS[0])]
    for found, launches in outcomes[1:]:
        for ours, first in zip(found, outcomes[0][0], strict=True):
            np.testing.assert_array_equal(ours, first)
        assert [launch[:3] for launch in launches] == [launch[:3] for launch in outcomes[0][1]]


@pytest.mark.parametrize("barrier", sampled([b for b in barriers("attention.cu") if b.startswith("attention.cu")]))
def test_every_barrier_is_needed(barrier):
    """Each warp has two turns."""
    arrays, grad_y = (*qkv((1, 2), 37, 41, 8, 12), drawn(3, 37, 41)), drawn(9, 1, 2, 37, 12)
    with emulated():
        _, right = outcome(*arrays, grad_y)
    differences = 0
    for order in ORDERS:
        with emulated(order, barrier=barrier):
            _, found = outcome(*arrays, grad_y)
        differences += any((ours != theirs).any() for ours, theirs in zip(found, right, strict=True))
    assert differences


@pytest.mark.parametrize(("side", "L", "S"), list(product(["after", "before"], [1, 35], [1, 34])))
def test_nothing_is_touched_beside_the_arrays(side, L, S):
    shapes = ((2, 3, L, 8), (2, 3, S, 8), (2, 3, S, 12), (3, L, S))
    arrays = [guarded(shape, side=side) for shape in shapes]
    for i, x in enumerate(arrays):
        x[...] = drawn(i, *x.shape)
    assert_twin_equals(*arrays, guard=side)


def test_a_touch_beside_an_array_is_seen():
    """The test above can fail: keys one row short."""
    q, k, v = (guarded((1, 1, rows, 8)) for rows in (5, 5, 6))
    op = attention.ScaledDotProductAttention()
    op.needs_input_grad = (None,) * 4
    with emulated(), pytest.raises(KernelError, match=r"attention_forward: .* touched memory that is not its own"):
        op.forward(q, np.lib.stride_tricks.as_strided(k, (1, 1, 6, 8)), v, None, scale=1.0)


@pytest.mark.parametrize("wanted", [w for w in product([False, True], repeat=4) if any(w)])
def test_gradients_that_nobody_wants_are_left_out(wanted):
    want_q, want_k, want_v, want_mask = wanted
    _, launches = assert_twin_equals(*qkv((2, 3), 6, 5, 8, 12), drawn(3, 3, 6, 5), wanted=wanted)
    queries, keys = want_q or want_k or want_mask, want_k or want_v
    expected = ["attention_backward_q"] * queries + ["attention_backward_kv"] * keys
    assert [launch.kernel.name for launch in launches[1:]] == expected
    if queries:
        *_, D, grad_scores = launches[1].args[:-4]
        assert [D is not None, grad_scores is not None] == [want_k, want_mask]


def test_without_a_gradient_nothing_is_kept():
    q, k, v = qkv((2, 3), 6, 5, 8, 12)
    with emulated() as device, use_device(recorder := Recorder(device)):
        y = F.scaled_dot_product_attention(Tensor(q), Tensor(k), Tensor(v))
    (launch,) = recorder.launches
    assert launch.args[-5] is None and y.grad_fn is None  # lse
    np.testing.assert_array_equal(y.numpy(), assert_twin_equals(q, k, v)[0][0])


def test_what_is_kept():
    """Far less than P, which has L · S numbers for each head."""
    with emulated():
        y = F.scaled_dot_product_attention(*(Tensor(x, requires_grad=True) for x in qkv((2, 3), 40, 40, 8, 12)))
        kept = {name: x.shape for name, x in vars(y.grad_fn).items() if isinstance(x, np.ndarray)}
    assert kept == {"q": (2, 3, 40, 8), "k": (2, 3, 40, 8), "v": (2, 3, 40, 12), "lse": (2, 3, 40)}


def test_a_query_that_sees_nothing():
    mask = np.zeros((7, 40), np.float32)
    mask[2] = -np.inf
    mask[3, :35] = -np.inf
    mask[:, 6] = -np.inf
    found, _ = assert_twin_equals(*qkv((2, 3), 7, 40, 8, 12), mask)
    y, grad_q, _, _, grad_mask = found
    assert not y[..., 2, :].any() and not grad_q[..., 2, :].any() and not grad_mask[2].any()
    assert y[..., 3, :].all()


@pytest.mark.parametrize("offset", [-1e4, -200.0, 80.0, 1e4])
def test_scores_far_out(offset):
    """Too large or too small for an exponential, in one row or in all: rows do not care about an offset."""
    for rows in (slice(None), slice(1)):
        mask = np.zeros((7, 9), np.float32)
        mask[rows] = offset
        assert_twin_equals(*qkv((2, 3), 7, 9, 8, 12), mask, tolerance=1e-3 if abs(offset) > 1e3 else 3e-5)


def test_what_is_not_a_number_stays_in_its_row():
    q, k, v = qkv((1, 2), 6, 5, 8, 12)
    q[0, 1, 2, 3] = np.nan
    with emulated():
        y = F.scaled_dot_product_attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    wrong = np.zeros(y.shape, bool)
    wrong[0, 1, 2] = True
    np.testing.assert_array_equal(np.isnan(y), wrong)


def test_a_gradient_that_is_one_number():
    """y.sum() gives every entry of ∂y the same memory: not to be read in packs."""
    arrays = qkv((2, 3), 6, 5, 8, 12)
    found = []
    for context, dtype in ((emulated(), np.float32), (nullcontext(), np.float64)):
        with context:
            tensors = [Tensor(x.astype(dtype), requires_grad=True) for x in arrays]
            F.scaled_dot_product_attention(*tensors).sum().backward()
        found.append([x.grad.numpy() for x in tensors])
    for ours, theirs in zip(*found, strict=True):
        assert abs(ours - theirs).max() <= 2e-6 * max(abs(theirs).max(), 1)


def test_an_axis_of_length_1_has_no_stride():
    """It may be anything, 40 bytes here."""
    assert_twin_equals(*(drawn(i, 1, 1, 10)[..., :8] for i in range(3)))


def shifted(*shape):
    """Rows that begin between two multiples of 16 bytes."""
    count = int(np.prod(shape))
    room = np.zeros(count + 8, np.float32)
    start = next(i for i in range(8) if pointer(room[i:]) % 16 == 4)
    return room[start : start + count].reshape(shape)


@pytest.mark.parametrize(
    ("arrays", "mask", "choices"),
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
        ([shifted(2, 3, 8), *qkv((2,), 3, 4, 8, 12)[1:]], None, {}),
        ([drawn(0, 2, 3, 10)[..., :8], *qkv((2,), 3, 4, 8, 12)[1:]], None, {}),  # rows 40 bytes apart
        ([drawn(0, 3, 4, 2, 3, 8)[:, :2], *qkv((3, 2, 2), 3, 4, 8, 12)[1:]], None, {}),  # outer axes with a gap
        ([qkv((2,), 3, 4, 8, 12)[0][:1], *qkv((2,), 3, 4, 8, 12)[1:]], None, {}),
        (qkv((2,), 3, 4, 8, 12), np.ones((3, 4), bool), {}),
        (qkv((2,), 3, 4, 8, 12), np.ones((3, 4)), {}),
        (qkv((2,), 3, 1, 8, 12), np.ones((3, 4), np.float32), {}),
        (qkv((2,), 3, 4, 8, 12), np.ones((5, 1, 3, 4), np.float32), {}),
        (qkv((2,), 3, 4, 8, 12), None, {"is_causal": True}),
        (qkv((2,), 3, 4, 8, 12), None, {"dropout_p": 0.5}),
    ],
)
def test_everything_else_is_for_others(arrays, mask, choices):
    choices = {"scale": 1.0, "is_causal": False, "dropout_p": 0.0, **choices}
    with emulated():
        assert attention.ScaledDotProductAttention.takes(*qkv((2,), 3, 4, 8, 12), None, **{**choices, **PLAIN})
        assert not attention.ScaledDotProductAttention.takes(*arrays, mask, **choices)


PLAIN = {"is_causal": False, "dropout_p": 0.0}


def test_arrays_elsewhere_are_for_others():
    class Elsewhere(np.ndarray):
        pass

    arrays = qkv((2,), 3, 4, 8, 12)
    mask = np.zeros((3, 4), np.float32)
    with use_device(CpuDevice(array=Elsewhere)):
        arrays, mask = [x.view(Elsewhere) for x in arrays], mask.view(Elsewhere)
        assert attention.ScaledDotProductAttention.takes(*arrays, mask, scale=1.0, **PLAIN)
        for i in range(4):
            some = [np.asarray(x) if i == j else x for j, x in enumerate((*arrays, mask))]
            assert not attention.ScaledDotProductAttention.takes(*some, scale=1.0, **PLAIN)


@pytest.mark.parametrize(("size", "N"), [(227 << 10, 256), (163 << 10, 197), (99 << 10, 112)])
def test_as_many_rows_as_find_room(size, N):
    """In the shared memory of a block on GPUs of compute capability 9.0, 8.0 and 8.9, with E = V = 64."""
    with emulated(), patch.dict(attention._most_shared, cpu=size):
        arrays = lambda N: qkv((1,), N, N, 64, 64)  # noqa: E731
        fits = lambda N: attention.ScaledDotProductAttention.takes(*arrays(N), None, scale=1.0, **PLAIN)  # noqa: E731
        assert fits(N) and not fits(N + 60)
