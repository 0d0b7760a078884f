"""Attention on tensor cores, run on the CPU: each element differs from float64 by at most its error bound."""

from contextlib import contextmanager
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend.cublas import pointer
from minigrad.kernels.cuda import attention_mma
from minigrad.ops.window_attention import map_places, shift_mask, window_places
from tests.cuda import comparison
from tests.cuda.comparison import BFLOAT16, FLOAT16, HALF_PRECISION, as_float64, kernel_names, normal, random_qkv
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, recorded, sampled

pytestmark = needs_compiler

UNDERFLOW = 2.0**-25  # absolute rounding error of subnormal float16


def qkv(lead, L, S, E, V, dtype=BFLOAT16, **options):
    return random_qkv(lead, L, S, E, V, dtype, **options)


def exact(q, k, v, bias, grad_y, scale):
    """y and all gradients in float64, each with its error bound. The kernel casts the probabilities P, y and ∂S to 16
    bits for the matrix products, and casts the results. `bias` is added to the scaled scores."""
    u = comparison.UNIT_ROUNDOFF[q.dtype]
    q, k, v, grad_y = map(as_float64, (q, k, v, grad_y))
    transposed = lambda x: x.swapaxes(-1, -2)  # noqa: E731
    S = scale * q @ transposed(k) + (0 if bias is None else bias)
    P = np.exp(S - S.max(-1, keepdims=True))
    P /= P.sum(-1, keepdims=True)
    y = P @ v
    off_P = u * P + UNDERFLOW
    off_y = off_P @ abs(v) + u * abs(y)
    grad_P = grad_y @ transposed(v)
    grad_S = P * (grad_P - (grad_P * P).sum(-1, keepdims=True))
    off_S = P * (abs(grad_y) * off_y).sum(-1, keepdims=True)
    rounded_S = off_S + u * (abs(grad_S) + off_S) + UNDERFLOW
    results = {
        "y": (y, off_y),
        "grad_q": (scale * grad_S @ k, scale * rounded_S @ abs(k)),
        "grad_k": (scale * transposed(grad_S) @ q, scale * transposed(rounded_S) @ abs(q)),
        "grad_v": (transposed(P) @ grad_y, transposed(off_P) @ abs(grad_y)),
    }
    found = {name: (x, off + u * abs(x)) for name, (x, off) in results.items()}
    return {**found, "y": results["y"], "grad_bias": (grad_S, off_S)}


def assert_within(found, exact, name):
    """Check each element against its bound, plus the errors of float32."""
    value, off = exact
    assert found.shape == value.shape
    allowed = 1.05 * off + 2e-5 * max(abs(value).max(initial=0), 1)
    excess = (abs(as_float64(found) - value) / allowed).max(initial=0)
    assert excess <= 1, f"{name}: {excess:.2f} times the bound"


def attention(*arrays, wanted=None, grad_y=None, grad_layout="packed", **options):
    """The run of `F.scaled_dot_product_attention`: see `comparison.run_op`."""
    op = lambda *tensors: F.scaled_dot_product_attention(*tensors, **options)  # noqa: E731
    run = comparison.run_op(op, *arrays, wanted=wanted, grad_y=grad_y, grad_layout=grad_layout)
    assert type(run.node) is attention_mma.MMAScaledDotProductAttention
    return run


def assert_matches_reference(q, k, v, bias=None, grad_layout="packed", order=ORDERS[0], guard=None, scale=0.2):
    with recorded(order, guard=guard) as launches:
        _, found, grad_y = attention(q, k, v, bias, grad_layout=grad_layout, scale=scale)
    expected = exact(q, k, v, bias, grad_y, scale)
    for name, ours in zip(("y", "grad_q", "grad_k", "grad_v"), found, strict=False):
        assert ours.dtype == q.dtype
        assert_within(ours, expected[name], name)
    if bias is not None:
        assert found[-1].dtype == np.float32
        full, off = expected["grad_bias"]  # (..., heads, L, S), to be summed over broadcast axes
        added = tuple(range(full.ndim - bias.ndim))
        one = tuple(i + len(added) for i, n in enumerate(bias.shape) if n == 1)
        summed = [x.sum(added + one, keepdims=True).reshape(bias.shape) for x in (full, off)]
        assert_within(found[-1], summed, "grad_bias")
    return found, launches


@given(
    st.lists(st.integers(1, 2), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from([(16, 48), (32, 16)]), st.sampled_from(HALF_PRECISION),
    st.tuples(*[st.sampled_from(["C", "packed", "backwards"])] * 3), st.sampled_from(["C", "packed", "strided"]),
    st.sampled_from(ORDERS),
)  # fmt: skip
def test_values_and_gradients_match_reference(lead, L, S, widths, dtype, layouts, grad_layout, order):
    """Sizes include fewer and more rows than a warp processes at once, and a last step of fewer than 16 rows."""
    arrays = qkv(lead, L, S, *widths, dtype=dtype, layouts=layouts)
    _, launches = assert_matches_reference(*arrays, grad_layout=grad_layout, order=order)
    assert kernel_names(launches) == ["attention_mma_forward", "attention_mma_backward"]
    assert all(launch.args[i] == pointer(x) for launch in launches for i, x in zip((0, 4, 8), arrays, strict=True))


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=2), st.integers(1, 3), st.booleans(), st.integers(0, 2),
    st.integers(1, 20), st.integers(1, 34), st.sampled_from(HALF_PRECISION), st.sampled_from(ORDERS),
)  # fmt: skip
def test_bias_gradient_is_summed_over_the_batch(outer, heads, one_for_all_heads, outer_axes, L, S, dtype, order):
    """The batch shares one bias, so the kernel sums the gradient of the bias over the batch."""
    bias = normal(7, *(1,) * min(outer_axes, len(outer)), 1 if one_for_all_heads else heads, L, S)
    assert_matches_reference(*qkv((*outer, heads), L, S, 16, 16, dtype), bias, order=order)


def test_backward_blocks_loop_over_entries():
    arrays, bias = qkv((7, 2), 5, 6, 16, 16), normal(7, 2, 5, 6)
    with patch.object(attention_mma, "BLOCKS", 6):  # three blocks per head
        _, launches = assert_matches_reference(*arrays, bias)
    assert [launch.grid for launch in launches] == [(14, 1, 1), (6, 1, 1), (2, 1, 1)]


@pytest.mark.parametrize(("lead", "N", "d"), [((1, 2), 65, 64), ((1, 1), 197, 64), ((1, 1), 18, 128)])
def test_packed_qkv_is_not_copied(lead, N, d):
    """q, k, v are views of one array, and the kernels read that array."""
    *outer, heads = lead
    packed = normal(0, *outer, N, 3, heads * d, dtype=BFLOAT16).reshape(*outer, N, 3, heads, d)
    q, k, v = np.moveaxis(packed, -3, 0).swapaxes(-2, -3)
    found, launches = assert_matches_reference(q, k, v, scale=d**-0.5, order="shuffled")
    assert [launch.args[i] - pointer(packed) for launch in launches for i in (0, 4, 8)] == [
        2 * i * heads * d for _ in launches for i in range(3)
    ]
    assert found[0].swapaxes(-2, -3).flags.c_contiguous


def windows(qkv, bias, grad_y=None, wanted=None, **options):
    """The output and gradients of `F.window_attention`."""
    run = comparison.run_op(
        lambda *tensors: F.window_attention(*tensors, **options), qkv, bias, wanted=wanted, grad_y=grad_y
    )
    assert type(run.node) is attention_mma.MMAWindowAttention
    return run.results


@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.data(), st.integers(1, 2),
    st.sampled_from([16, 32]), st.booleans(), st.sampled_from(HALF_PRECISION), st.sampled_from(ORDERS),
)  # fmt: skip
def test_windows_match_roll_and_mask(B, rows, columns, M, data, heads, d, biased, dtype, order):
    """The expected values are attention after the reference's roll, partition into windows and mask."""
    H, W, shift = rows * M, columns * M, (data.draw(st.integers(0, M - 1)), data.draw(st.integers(0, M - 1)))
    packed, grad_y = normal(0, B, H, W, 3 * heads * d, dtype=dtype), normal(1, B, H, W, heads * d, dtype=dtype)
    bias = normal(2, heads, M * M, M * M) if biased else None
    options = {"num_heads": heads, "window_size": M, "shift": shift}
    with patch.object(attention_mma, "BLOCKS", 3 * heads), emulated(order):
        y, grad_qkv, grad_bias = windows(packed, bias, grad_y, **options)

    places, back = window_places(H, W, M, shift), map_places(H, W, M, shift)
    cut = packed.reshape(B, H * W, 3, heads, d)[:, places].transpose(3, 0, 1, 4, 2, 5)
    grad_cut = grad_y.reshape(B, H * W, heads, d)[:, places].swapaxes(-2, -3)
    added = shift_mask(H, W, M, shift) + (0 if bias is None else bias)
    expected = exact(*cut, added, grad_cut, d**-0.5)
    joined = lambda x: x.swapaxes(-2, -3).reshape(B, H * W, heads * d)[:, back].reshape(B, H, W, -1)  # noqa: E731
    assert_within(y, [joined(x) for x in expected["y"]], "y")
    for i, name in enumerate(("grad_q", "grad_k", "grad_v")):
        part = grad_qkv[..., i * heads * d : (i + 1) * heads * d]
        assert_within(part, [joined(x) for x in expected[name]], name)
    if biased:
        assert_within(grad_bias, [x.sum((0, 1)) for x in expected["grad_bias"]], "grad_bias")


def test_thread_order_changes_no_bit():
    packed, bias = normal(0, 2, 10, 10, 96, dtype=BFLOAT16), normal(1, 2, 25, 25)
    with patch.object(attention_mma, "BLOCKS", 4):
        run = lambda: windows(packed, bias, num_heads=2, window_size=5, shift=2)  # noqa: E731
        comparison.assert_thread_order_changes_no_bit(run)


@contextmanager
def constants(**options):
    """Other constants of attention_mma, without the blocks that were computed with the present ones."""
    cached = attention_mma.forward_block, attention_mma.backward_block
    with patch.multiple(attention_mma, **options):
        for block in cached:
            block.cache_clear()
        yield
    for block in cached:
        block.cache_clear()


@pytest.mark.parametrize(("M", "entries"), [(4, 4), (5, 2), (2, 4), (7, 1)])
def test_small_windows_share_a_block(M, entries):
    packed, bias = normal(0, 3, 4 * M, 4 * M, 96, dtype=BFLOAT16), normal(1, 2, M * M, M * M)
    run = lambda: windows(packed, bias, num_heads=2, window_size=M, shift=1)  # noqa: E731
    with patch.object(attention_mma, "BLOCKS", 4), recorded() as launches:
        found = run()
    assert [launch.block[2] for launch in launches[:2]] == [entries, entries]
    with constants(BLOCKS=4, MIN_WARPS=1), emulated():
        *alone, grad_bias = run()
    assert comparison.same_bits(found[:2], alone)
    np.testing.assert_allclose(found[2], grad_bias, atol=1e-4)  # another order of sums


def test_nan_stays_in_its_window():
    """The rows that pad a window of 9 tokens to 16 are zeros, not tokens of another window."""
    packed, grad_y = normal(0, 1, 3, 9, 96, dtype=BFLOAT16), normal(1, 1, 3, 9, 32, dtype=BFLOAT16)
    run = lambda: windows(packed, None, grad_y, num_heads=2, window_size=3)[:2]  # noqa: E731
    with emulated():
        expected = run()
        packed[0, 0, 0] = np.nan
        found = run()
    assert all(np.isnan(as_float64(x[:, :, :3])).any() for x in found)
    assert comparison.same_bits([x[:, :, 3:] for x in found], [x[:, :, 3:] for x in expected])


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize(
    ("options", "tiles", "chunk", "warps"),
    [
        ({"most_shared": lambda _: 68 << 10}, 1, 48, 6),  # two chunks, and a warp for each product of a chunk
        ({"most_shared": lambda _: 56 << 10}, 1, 16, 5),
        ({"MAX_WARPS": 2, "MORE_WARPS": 2}, 3, 80, 2),
        ({"MAX_WARPS": 2, "MORE_WARPS": 2, "most_shared": lambda _: 56 << 10}, 3, 16, 2),
    ],
)
def test_chunks_of_keys_and_warps_change_no_bit(options, tiles, chunk, warps, dtype):
    arrays, bias = qkv((2,), 69, 67, 32, 32, dtype), normal(3, 2, 69, 67)
    with recorded() as launches:
        expected = attention(*arrays, bias).results
    with constants(**options), recorded("shuffled") as others:
        found = attention(*arrays, bias).results
    sizes = [(dict(i.kernel.constants)["TILES"], i.args[36], i.block[1]) for i in (launches[1], others[1])]
    assert sizes == [(1, 80, 5), (tiles, chunk, warps)]
    assert comparison.same_bits(found, expected)


BARRIERS = [b for b in barriers("attention_mma.cu") if b.startswith("attention_mma")]


@pytest.mark.parametrize("barrier", sampled(BARRIERS))
def test_every_barrier_is_needed(barrier):
    """A block has several windows, chunks of keys and warps, some of which have two iterations."""
    packed, bias = normal(0, 1, 24, 12, 48, dtype=BFLOAT16), normal(1, 1, 144, 144)
    with constants(BLOCKS=1, MAX_WARPS=5, MORE_WARPS=5, most_shared=lambda _: 140 << 10):
        run = lambda: windows(packed, bias, num_heads=1, window_size=12, shift=5)  # noqa: E731
        assert comparison.barrier_is_needed(barrier, run)


@pytest.mark.parametrize(("side", "L", "S"), list(product(["after", "before"], [1, 35], [1, 34])))
def test_accesses_stay_within_the_arrays(side, L, S):
    arrays = [comparison.guarded_copy(x, side, aligned=16) for x in qkv((2, 3), L, S, 16, 32)]
    assert_matches_reference(*arrays, comparison.guarded_copy(normal(3, 3, L, S), side), guard=side)


@pytest.mark.parametrize("wanted", [w for w in product([False, True], repeat=4) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    arrays = *qkv((2, 3), 6, 5, 16, 32), normal(3, 3, 6, 5)
    with emulated():
        every = attention(*arrays).results
    with recorded() as launches:
        found = attention(*arrays, wanted=wanted).results
    assert kernel_names(launches[1:]) == ["attention_mma_backward"] + ["sum_rows"] * wanted[3]
    assert comparison.same_bits(found[1:], [x if want else None for x, want in zip(every[1:], wanted, strict=True)])


@pytest.mark.parametrize("alike", ["all three", "keys of all heads"])
def test_aliased_and_broadcast_inputs(alike):
    """The gradients of aliased and broadcast inputs are not aliased."""
    q, k, v = qkv((2, 3), 5, 5, 16, 16)
    q, k, v = (q, q, q) if alike == "all three" else (q, np.broadcast_to(k[:, :1], k.shape), v)
    with emulated():
        op = attention_mma.MMAScaledDotProductAttention()
        op.needs_input_grad = (True, True, True, None)
        y = op.forward(q, k, v, None, scale=0.2)
        grad_y = normal(9, 2, 3, 5, 16, dtype=BFLOAT16)
        grads = op.backward(grad_y)
    expected = exact(q, k, v, None, grad_y, 0.2)
    for ours, name in zip((y, *grads), ("y", "grad_q", "grad_k", "grad_v"), strict=False):
        assert_within(ours, expected[name], name)


def test_overwritten_inputs_are_detected():
    for overwritten in range(3):
        with emulated():
            inputs = [Tensor(x, requires_grad=True) for x in qkv((1, 2), 5, 5, 16, 16)]
            y = F.scaled_dot_product_attention(*inputs)
            inputs[overwritten].detach()[0] = 1.0
            with pytest.raises(RuntimeError, match="ScaledDotProductAttention, cuda fast path> saved"):
                y.backward(y.detach())


@pytest.mark.parametrize("run", ["attention", "windows"])
def test_unaligned_gradient_gives_the_same_result(run):
    """∂y is dense, but not aligned for loads in packs."""
    with emulated():
        if run == "attention":
            inputs = [Tensor(x, requires_grad=True) for x in qkv((1, 2), 5, 5, 16, 16)]
            y = F.scaled_dot_product_attention(*inputs)
        else:
            inputs = [Tensor(normal(0, 1, 4, 4, 96, dtype=BFLOAT16), requires_grad=True)]
            y = F.window_attention(*inputs, None, num_heads=2, window_size=2)
        grad_y = normal(1, *y.shape, dtype=BFLOAT16)
        y.backward(Tensor(grad_y), retain_graph=True)
        expected = [x.grad.numpy().copy() for x in inputs]
        for x in inputs:
            x.grad = None
        y.backward(Tensor(comparison.unaligned(grad_y)))
    for x, right in zip(inputs, expected, strict=True):
        np.testing.assert_array_equal(x.grad.numpy(), right)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_windows_compute_only_needed_gradients(wanted):
    packed, bias = normal(0, 1, 4, 4, 48, dtype=BFLOAT16), normal(1, 1, 4, 4)
    with emulated():
        found = windows(packed, bias, wanted=wanted, num_heads=1, window_size=2)
    assert [x is not None for x in found[1:]] == list(wanted)


def test_without_gradients_nothing_is_saved():
    arrays = qkv((2, 3), 6, 5, 16, 16)
    with recorded() as launches:
        y = F.scaled_dot_product_attention(*map(Tensor, arrays))
    (launch,) = launches
    assert launch.args[17] is None and y.grad_fn is None  # lse


def test_fully_masked_query_gives_zeros():
    bias = np.zeros((1, 7, 40), np.float32)
    bias[0, 2] = -np.inf
    bias[0, 3, 20:] = -np.inf
    arrays, grad_y = qkv((1,), 7, 40, 16, 16), normal(9, 1, 7, 16, dtype=BFLOAT16)
    with emulated():
        y, grad_q, grad_k, grad_v, grad_bias = attention(*arrays, bias, grad_y=grad_y, scale=1.0).results
    assert not y[0, 2].any() and not grad_q[0, 2].any() and not grad_bias[0, 2].any() and not grad_bias[0, 3, 20:].any()
    others = [0, 1, 3, 4, 5, 6]
    expected = exact(arrays[0][:, others], *arrays[1:], bias[:, others], grad_y[:, others], 1.0)
    assert_within(y[:, others], expected["y"], "y")
    assert_within(grad_k, expected["grad_k"], "grad_k")
    assert_within(grad_v, expected["grad_v"], "grad_v")


def test_large_scores_do_not_overflow():
    """The maximum score comes last, so the online softmax rescales its sums at every step."""
    q, k, v = qkv((1,), 20, 40, 16, 16, FLOAT16)
    bias = np.linspace(-300, 300, 40, dtype=np.float32)[None, None].repeat(20, 1)
    with emulated():
        y, *_ = attention(q, k, v, bias).results
    np.testing.assert_allclose(as_float64(y), as_float64(v)[:, -1:].repeat(20, 1), rtol=1e-3)


def test_autocast_selects_window_attention():
    qkv_map, bias = (Tensor(x, requires_grad=True) for x in (normal(0, 1, 4, 4, 48), normal(1, 1, 4, 4)))
    with emulated():
        with minigrad.autocast("bfloat16"):
            y = F.window_attention(qkv_map, bias, num_heads=1, window_size=2)
        y.backward(Tensor(normal(2, 1, 4, 4, 16, dtype=BFLOAT16)))
    assert type(y.grad_fn) is attention_mma.MMAWindowAttention and y.dtype == BFLOAT16
    assert qkv_map.grad.dtype == bias.grad.dtype == np.float32


PLAIN = {"scale": 1.0, "is_causal": False, "dropout_p": 0.0}


@pytest.mark.parametrize(
    ("arrays", "mask", "options"),
    [
        (qkv((2,), 3, 4, 24, 16), None, {}),  # widths must be multiples of 16
        (qkv((2,), 3, 4, 16, 24), None, {}),
        (qkv((2,), 3, 4, 144, 16), None, {}),
        (qkv((2,), 3, 4, 16, 16, np.float32), None, {}),
        ([*qkv((2,), 3, 4, 16, 16)[:2], *qkv((2,), 3, 4, 16, 16, np.float16)[2:]], None, {}),
        ([normal(0, 3, 16, dtype=BFLOAT16)[0], *qkv((2,), 3, 4, 16, 16)[1:]], None, {}),
        ([normal(0, 2, 3, 16, layout="strided", dtype=BFLOAT16), *qkv((2,), 3, 4, 16, 16)[1:]], None, {}),
        ([normal(0, 2, 3, 20, dtype=BFLOAT16)[..., :16], *qkv((2,), 3, 4, 16, 16)[1:]], None, {}),  # rows of 40 bytes
        ([qkv((2,), 3, 4, 16, 16)[0][:1], *qkv((2,), 3, 4, 16, 16)[1:]], None, {}),
        (qkv((2,), 3, 0, 16, 16), None, {}),
        (qkv((2,), 3, 4, 16, 16), np.ones((3, 4), bool), {}),
        (qkv((2,), 3, 4, 16, 16), np.ones((3, 4)), {}),
        (qkv((2,), 3, 1, 16, 16), np.ones((3, 4), np.float32), {}),
        (qkv((3, 2), 3, 4, 16, 16), np.ones((3, 1, 3, 4), np.float32), {}),  # a mask for each batch index
        (qkv((2,), 3, 4, 16, 16), np.ones((1, 2, 3, 4), np.float32), {}),  # more axes than q
        (qkv((2,), 3, 4, 16, 16), None, {"is_causal": True}),
        (qkv((2,), 3, 4, 16, 16), None, {"dropout_p": 0.5}),
        (qkv((1,), 1000, 1000, 64, 64), None, {}),  # too much shared memory
    ],
)
def test_unsupported_arguments_are_declined(arrays, mask, options):
    supports = attention_mma.MMAScaledDotProductAttention.supports
    with emulated():
        assert supports(*qkv((2,), 3, 4, 16, 16), None, **PLAIN)
        assert not supports(*arrays, mask, **{**PLAIN, **options})


WINDOWS = {"num_heads": 2, "window_size": 2, "shift": (1, 1), "dropout_p": 0.0}


@pytest.mark.parametrize(
    ("shape", "dtype", "bias", "options"),
    [
        ((1, 4, 4, 96), np.float32, None, {}),
        ((1, 4, 4, 48), BFLOAT16, None, {}),  # 8 features per head
        ((1, 5, 4, 96), BFLOAT16, None, {}),
        ((4, 4, 96), BFLOAT16, None, {}),
        ((0, 4, 4, 96), BFLOAT16, None, {}),
        ((1, 4, 4, 98), BFLOAT16, None, {}),
        ((1, 4, 4, 96), BFLOAT16, np.zeros((2, 4, 4)), {}),
        ((1, 4, 4, 96), BFLOAT16, np.zeros((1, 4, 4), np.float32), {}),
        ((1, 4, 4, 96), BFLOAT16, None, {"dropout_p": 0.1}),
        ((1, 4, 4, 96), BFLOAT16, None, {"shift": (2, 0)}),
        ((1, 4, 4, 96), BFLOAT16, None, {"window_size": 0}),
        ((1, 40, 40, 96), BFLOAT16, None, {"window_size": 40}),  # too much shared memory
    ],
)
def test_unsupported_windows_are_declined(shape, dtype, bias, options):
    supports = attention_mma.MMAWindowAttention.supports
    with emulated():
        assert supports(normal(0, 1, 4, 4, 96, dtype=BFLOAT16), np.zeros((2, 4, 4), np.float32), **WINDOWS)
        assert not supports(np.zeros(shape, dtype), bias, **{**WINDOWS, **options})


def test_gpus_before_ampere_are_declined():
    with emulated(), patch.dict(attention_mma._capabilities, cpu=75):
        assert not attention_mma.MMAScaledDotProductAttention.supports(*qkv((2,), 3, 4, 16, 16), None, **PLAIN)
