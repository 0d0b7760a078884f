"""Convolution in CUDA, run on the CPU in several thread orders, against the reference in float64.

Tolerance: 2e-6 of the maximum for sums in float32. A cast to a 16-bit dtype of p binary digits has a relative error of
at most u = 2⁻ᵖ. The reference gets the same 16-bit inputs, so the results differ by at most

    y, ∂x              cast once: u |y|, for each element
    ∂x, by `Columns`   the columns ∂X are cast, then their sum: u Σ |∂X| more, Σ |∂X| ≤ Σ |∂y| |weight|
    ∂weight, ∂bias     of float32 parameters: no cast
"""

from contextlib import nullcontext
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.autograd import tape
from minigrad.backend.cublas import pointer
from minigrad.backend.dtypes import is_half
from minigrad.kernels.cuda import conv
from minigrad.ops.windows import Windows
from tests.cuda import comparison
from tests.cuda.comparison import BFLOAT16, DTYPES, FLOAT16, FLOAT32, HALF_PRECISION, kernel_names, normal, run_op
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, recorded, sampled

pytestmark = needs_compiler

FORMS = [  # kernel, stride, dilation
    ((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (1, 1)), ((3, 2), (1, 2), (2, 3)), ((1, 1), (2, 1), (1, 1)),
]  # fmt: skip
LAYOUTS = ["channels-last", "channels-first", "flipped", "strided"]


def random_images(seed, *shape, layout="channels-first", dtype=np.float32):
    """Standard normal images (N, C, H, W), with one of the memory layouts of `LAYOUTS`."""
    if layout == "flipped":
        return normal(seed, *shape, dtype=dtype)[:, :, ::-1, ::-1]
    return normal(seed, *shape, dtype=dtype, layout="C" if layout == "channels-first" else layout)


def conv2d(**options):
    """F.conv2d, under autocast if x is 16-bit."""

    def op(x, weight, bias=None):
        with minigrad.autocast(x.dtype) if is_half(x.dtype) else nullcontext():
            return F.conv2d(x, weight, bias, **options)

    return op


def in_float32(parameter):
    """A float32 copy of 16-bit values."""
    return None if parameter is None else parameter.astype(np.promote_types(parameter.dtype, np.float32))


def assert_matches_reference(
    x, weight, bias=None, wanted=(True, True, True), order=ORDERS[0], guard="after", layout="channels-last", **options
):
    """Check each element against its bound. Returns the launches of the fast path."""
    op, arrays = conv2d(**options), (x, in_float32(weight), in_float32(bias))
    shape = F.conv2d(*(Tensor(comparison.as_float64(a)) for a in arrays[:2]), **options).shape
    grad_y = random_images(9, *shape, layout=layout, dtype=x.dtype)
    with recorded(order, guard=guard) as launches:
        run = run_op(op, *arrays, wanted=wanted, grad_y=grad_y)
    assert type(run.node) is conv.CUDAConv2d
    expected = comparison.run_reference(op, *arrays, wanted=wanted, grad_y=grad_y)
    u = comparison.UNIT_ROUNDOFF[x.dtype] if is_half(x.dtype) else 0
    rounding = [0 if exact is None else u * abs(exact) for exact in expected[:2]] + [0, 0]
    if wanted[0] and "fold" in kernel_names(launches):
        _, columns, _ = comparison.run_reference(op, *map(abs, arrays[:2]), wanted=(True, False), grad_y=abs(grad_y))
        rounding[1] += u * (1 + u) * columns
    for i, (found, exact) in enumerate(zip(run.results, expected, strict=True)):
        assert (found is None) == (exact is None)
        if found is not None:
            assert found.shape == exact.shape and found.dtype == (x.dtype if i < 2 else np.float32)
            assert (abs(comparison.as_float64(found) - exact) <= rounding[i] + 2e-6 * max(abs(exact).max(), 1)).all()
    return launches


@example(3, 65, (7, 15), (7, 7), (3, 3), True, *LAYOUTS[:2], 2, 1, "after", ORDERS[0], FLOAT32)
@example(3, 40, (6, 17), (7, 7), (1, 7), True, *LAYOUTS[:2], 8, 1, "after", ORDERS[0], BFLOAT16)
@example(3, 3, (2, 3), (2, 3), (4, 0), True, *LAYOUTS[2:], 8, 1, "after", ORDERS[1], FLOAT16)
@given(
    st.integers(1, 3), st.sampled_from([3, 40, 64, 65]),
    st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 7, 9, 17])), st.sampled_from([(7, 7), (2, 3), (9, 8)]),
    st.tuples(st.integers(0, 4), st.integers(0, 7)), st.booleans(), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS),
    st.sampled_from([2, 8]), st.sampled_from([1, 512]),
    st.sampled_from(["after", "before"]), st.sampled_from(ORDERS), st.sampled_from(DTYPES),
)  # fmt: skip
def test_depthwise_matches_reference(
    N, C, size, kernel, padding, bias, layout, grad_layout, images, blocks, guard, order, dtype
):
    """Tiles overlap, channels or images do not fill a block, padding exceeds the kernel, or blocks loop over tiles."""
    H, W = map(max, size, (k - 2 * p for k, p in zip(kernel, padding, strict=True)))
    x, weight = random_images(0, N, C, H, W, layout=layout, dtype=dtype), normal(1, C, 1, *kernel, dtype=dtype)
    with patch.object(conv, "MAX_IMAGES", images), patch.object(conv, "BLOCKS", blocks):
        bias = normal(2, C, dtype=dtype) if bias else None
        launches = assert_matches_reference(
            x, weight, bias, (1, 1, 1), order, guard, grad_layout, padding=padding, groups=C
        )
    assert kernel_names(launches) == ["depthwise_correlate", "depthwise_correlate", "depthwise_grad_weight", "sum_rows"]


@pytest.mark.parametrize(("left", "right"), [(0, 3), (3, 0)])
def test_depthwise_padding_on_one_side(left, right):
    x, weight = normal(0, 2, 5, 6, 3), normal(1, 3, 1, 2, 3)
    windows = Windows((2, 3), (1, 1), (1, 1), (0, left), (0, right), (4, 7))
    with emulated():
        y = conv.Depthwise(windows).correlate(comparison.guarded_copy(x), weight[:, 0], None)
        grad_x = conv.Depthwise(windows).grad_x(comparison.guarded_copy(y), weight[:, 0], x.shape)
    padded = np.pad(x, ((0, 0), (0, 0), (left, right), (0, 0)))
    expected = sum(weight[:, 0, k, l] * padded[:, k : k + 4, l : l + 7] for k in range(2) for l in range(3))  # noqa: E741
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose((grad_x * x).sum(), (y * y).sum(), rtol=1e-5)  # ∂x is the adjoint of y


@example(3, 132, 5, 7, 9, FORMS[0], (1, 1), True, *LAYOUTS[:2], 2, "after", ORDERS[0], FLOAT32)
@example(3, 136, 5, 7, 9, FORMS[0], (1, 1), True, *LAYOUTS[:2], 2, "after", ORDERS[0], BFLOAT16)
@example(3, 36, 2, 9, 8, FORMS[1], (0, 0), False, *LAYOUTS[:2], 1, "after", ORDERS[1], FLOAT16)
@example(3, 36, 4, 9, 7, FORMS[2], (4, 3), True, *LAYOUTS[2:], 9, "before", ORDERS[2], FLOAT32)
@given(
    st.integers(1, 3), st.sampled_from([1, 3, 4, 8, 36, 136]), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from(FORMS), st.tuples(st.integers(0, 4), st.integers(0, 3)), st.booleans(),
    st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS),
    st.sampled_from([1, 2, 9]), st.sampled_from(["after", "before"]), st.sampled_from(ORDERS), st.sampled_from(DTYPES),
)  # fmt: skip
def test_im2col_matches_reference(N, C, O, H, W, form, padding, bias, layout, grad_layout, images, guard, order, dtype):  # noqa: E741
    """Loads have 1 element or 16 bytes, some pixels are in no window, and some windows lie in the padding."""
    kernel, stride, dilation = form
    spans = ((k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True))
    H, W = map(max, (H, W), spans)
    x, weight = random_images(0, N, C, H, W, layout=layout, dtype=dtype), normal(1, O, C, *kernel, dtype=dtype)
    bias = normal(2, O, dtype=dtype) if bias else None
    some = lambda x, _: (slice(n, n + images) for n in range(0, len(x), images))  # noqa: E731
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    with patch.object(conv, "blocks", some):
        launches = assert_matches_reference(x, weight, bias, (1, 1, 1), order, guard, grad_layout, **options)
    assert kernel_names(launches) == [name for name in ("unfold", "fold", "unfold") for _ in range(0, N, images)]


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.booleans(),
    st.sampled_from(LAYOUTS), st.sampled_from(DTYPES),
)  # fmt: skip
def test_pointwise_matches_reference(N, C, O, H, bias, layout, dtype):  # noqa: E741
    x, weight = random_images(0, N, C, H, 4, layout=layout, dtype=dtype), normal(1, O, C, 1, 1, dtype=dtype)
    bias = normal(2, O, dtype=dtype) if bias else None
    launches = assert_matches_reference(x, weight, bias, layout=layout)
    assert not launches


def test_padded_1x1_kernel_uses_im2col():
    launches = assert_matches_reference(normal(0, 2, 3, 4, 4), normal(1, 5, 3, 1, 1), padding=(1, 0))
    assert kernel_names(launches) == ["unfold", "fold", "unfold"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_images_give_the_same_result(dtype):
    x = comparison.unaligned(normal(0, 2, 7, 9, 8, dtype=dtype)).transpose(0, 3, 1, 2)
    assert pointer(x) % 16
    assert_matches_reference(x, normal(1, 5, 8, 3, 3, dtype=dtype), stride=2)
    assert_matches_reference(x, normal(1, 8, 1, 3, 3, dtype=dtype), groups=8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_im2col_pads_rows_to_16_bytes(dtype):
    """Rows of 3 channels are padded to 16 bytes; rows of 8 channels need no padding."""
    for C, columns in ((3, 28 if dtype == FLOAT32 else 32), (8, 72)):
        x = normal(0, 2, C, 5, 6, dtype=dtype).transpose(0, 2, 3, 1)
        windows = Windows((3, 3), (2, 2), (1, 1), (1, 1), (1, 1), (3, 3))
        with emulated():
            X = conv.Columns(windows).unfold(x)
        assert X.shape == (18, columns) and not X[:, 9 * C :].any()
        np.testing.assert_array_equal(X[:, : 9 * C], windows.view(windows.pad(x)).reshape(18, 9 * C))


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
def test_16_bit_parameters_have_16_bit_gradients(dtype):
    x, weight = normal(0, 2, 8, 5, 5, dtype=dtype), normal(1, 8, 1, 3, 3, dtype=dtype)
    bias = normal(2, 8, dtype=dtype)
    with emulated():
        tensors = [Tensor(a, requires_grad=True) for a in (x, weight, bias)]
        y = F.conv2d(*tensors, groups=8)
        y.backward(y)
    assert type(y.grad_fn) is conv.CUDAConv2d and {a.dtype for a in (y, *(t.grad for t in tensors))} == {x.dtype}


@pytest.mark.parametrize("groups", [1, 8])
def test_mixed_dtypes_compute_in_float32(groups):
    """Without autocast, 16-bit images with a float32 weight or bias are convolved in float32 and cast back."""
    x, weight, bias = normal(0, 2, 8, 5, 5, dtype=BFLOAT16), normal(1, 8, 8 // groups, 3, 3), np.ones(8, np.float32)
    for inputs in ([x, weight], [x, weight.astype(x.dtype), bias]):
        with emulated():
            y = F.conv2d(Tensor(x, requires_grad=True), *map(Tensor, inputs[1:]), groups=groups)
        exact = F.conv2d(*(Tensor(a.astype(np.float64)) for a in inputs), groups=groups).numpy()
        assert type(y.grad_fn) is conv.CUDAConv2d and y.dtype == x.dtype and y.grad_fn.cast_back == x.dtype
        assert (abs(y.numpy().astype(np.float64) - exact) <= 2.0**-8 * abs(exact) + 1e-5).all()


CASES = {
    "depthwise": (normal(0, 2, 65, 9, 9, layout="channels-last"), normal(1, 65, 1, 7, 7), {"padding": 3, "groups": 65}),
    "columns": (normal(0, 2, 8, 7, 9, layout="channels-last"), normal(1, 5, 8, 3, 3), {"stride": 2, "padding": 1}),
    "columns, one channel at a time": (normal(0, 2, 3, 7, 9), normal(1, 5, 3, 3, 3), {"stride": 2, "padding": 1}),
    "pointwise": (normal(0, 2, 3, 4, 5), normal(1, 6, 3, 1, 1), {}),
}
CASES |= {
    f"{case}, {dtype}": (x.astype(dtype), weight.astype(dtype), options)
    for case, (x, weight, options) in CASES.items()
    for dtype in HALF_PRECISION
}


@pytest.mark.parametrize("case", CASES)
def test_thread_order_changes_no_bit(case):
    x, weight, options = CASES[case]
    comparison.assert_thread_order_changes_no_bit(lambda: run_op(conv2d(**options), x, in_float32(weight)).results)


@pytest.mark.parametrize("barrier", sampled([b for b in barriers("depthwise.cu") if b.startswith("depthwise.cu")]))
def test_every_barrier_is_needed(barrier):
    x, weight, options = CASES["depthwise"]
    assert comparison.barrier_is_needed(barrier, lambda: run_op(conv2d(**options), x, weight).results)


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("case", CASES)
def test_accesses_stay_within_the_arrays(case, side):
    x, weight, options = CASES[case]
    x = comparison.guarded_copy(x.transpose(0, 2, 3, 1), side).transpose(0, 3, 1, 2)
    arrays = [x, comparison.guarded_copy(weight, side), comparison.guarded_copy(np.ones(len(weight), x.dtype), side)]
    with emulated(guard=side):
        y = F.conv2d(*(Tensor(a, requires_grad=True) for a in arrays), **options)
        grad_y = normal(9, y.shape[0], *y.shape[2:], y.shape[1], dtype=x.dtype)
        y.backward(Tensor(comparison.guarded_copy(grad_y, side).transpose(0, 3, 1, 2)))
    assert type(y.grad_fn) is conv.CUDAConv2d


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wanted", [w for w in product([True, False], repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(case, wanted):
    x, weight, options = CASES[case]
    bias = np.ones(len(weight), x.dtype)
    launches = assert_matches_reference(x, weight, bias, wanted=wanted, **options)
    if case.startswith("pointwise"):
        assert kernel_names(launches) == []  # matrix products alone
    else:
        forward, for_x, for_weight = {
            "depthwise": (["depthwise_correlate"], ["depthwise_correlate"], ["depthwise_grad_weight", "sum_rows"]),
        }.get(case.split(",")[0], (["unfold"], ["fold"], ["unfold"]))
        assert kernel_names(launches) == forward + for_x * wanted[0] + for_weight * wanted[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("kernel", "groups"), [((8, 1, 3, 3), 8), ((8, 8, 1, 1), 1), ((8, 8, 3, 3), 1)], ids=["depthwise", "1 x 1", "3 x 3"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_a_residual_connection_is_added(kernel, groups, layout, dtype):
    """y = x + conv(x): the op adds ∂y to its ∂x, in the kernel of a depthwise convolution."""
    conv_op = conv2d(padding=kernel[2] // 2, groups=groups)

    def residual(x, weight):
        x = x * 1  # an activation
        return x + conv_op(x, weight)

    arrays = random_images(0, 2, 8, 5, 7, layout=layout, dtype=dtype), normal(1, *kernel)
    with recorded() as launches, patch.object(tape, "plus", None):  # the engine adds nothing
        found = run_op(residual, *arrays)
    totals = [launch.args[3] for launch in launches if launch.kernel.name == "depthwise_correlate"]
    assert groups == 1 or (totals[0] is None and totals[1] is not None)
    expected = comparison.run_reference(residual, *arrays, grad_y=found.grad_y)
    limit = 1e-5 + 3 * comparison.UNIT_ROUNDOFF[dtype] * is_half(dtype)
    assert comparison.max_error(found.results[1:], expected[1:]) <= limit


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("cast", ["by autocast", "back to 16 bits"])
def test_gradient_of_another_dtype_is_added(groups, cast):
    """The gradient that x has received has the dtype of x, not the dtype in which the convolution computes."""
    dtype = FLOAT32 if cast == "by autocast" else BFLOAT16

    def residual(x, weight):
        x = x * 1
        with minigrad.autocast("bfloat16", cast == "by autocast"):
            y = F.conv2d(x, weight, padding=1, groups=groups)
        return y.float() + 3 * x.float()

    arrays = random_images(0, 2, 32, 5, 7, dtype=dtype), normal(1, 32, 32 // groups, 3, 3)
    with emulated(), patch.object(tape, "plus", None):  # the engine adds nothing
        found = run_op(residual, *arrays)
    expected = comparison.run_reference(residual, *arrays, grad_y=found.grad_y)
    assert found.results[1].dtype == dtype and comparison.max_error(found.results, expected) <= 2.0**-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_are_copied_once(layout):
    """If windows do not overlap, unfold reads x itself, and fold writes ∂x itself."""
    x = Tensor(random_images(0, 2, 3, 8, 8, layout=layout), requires_grad=True)
    with recorded() as launches:
        y = F.conv2d(x, Tensor(normal(1, 5, 3, 2, 2)), stride=2)
        grad_x, _, _ = y.grad_fn.backward(normal(9, *y.shape, layout="channels-last"))
    unfold, fold = launches
    assert unfold.args[0] == pointer(x.numpy()) and fold.args[1] == pointer(grad_x)


def test_two_runs_make_the_same_launches():
    for x, weight, options in CASES.values():
        runs = [assert_matches_reference(x, weight, **options) for _ in range(2)]
        first, second = ([launch._replace(args=launch.args[3:]) for launch in run] for run in runs)
        assert first == second


@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        (normal(0, 2, 4, 9, 9).astype(np.float64), normal(1, 5, 4, 3, 3).astype(np.float64), {}),
        (normal(0, 2, 4, 9, 9), normal(1, 4, 1, 3, 3), {"groups": 4, "stride": 2}),
        (normal(0, 2, 4, 9, 9), normal(1, 4, 1, 3, 3), {"groups": 4, "dilation": (1, 2)}),
        (normal(0, 2, 4, 9, 9), normal(1, 8, 1, 3, 3), {"groups": 4}),
        (normal(0, 2, 4, 9, 9), normal(1, 4, 2, 3, 3), {"groups": 2}),
        (normal(0, 1, 4, 9, 11), normal(1, 4, 1, 9, 11), {"groups": 4}),
        (normal(0, 0, 4, 9, 9), normal(1, 5, 4, 3, 3), {}),
    ],
)
def test_unsupported_arrays_run_the_reference(x, weight, options):
    with emulated():
        y = F.conv2d(Tensor(x, requires_grad=True), Tensor(weight), **options)
    assert not isinstance(y.grad_fn, conv.CUDAConv2d)


def test_without_the_device_the_reference_runs():
    y = F.conv2d(Tensor(normal(0, 2, 4, 9, 9), requires_grad=True), Tensor(normal(1, 5, 4, 3, 3)))
    assert not isinstance(y.grad_fn, conv.CUDAConv2d)


def test_errors_are_those_of_the_reference():
    x = Tensor(normal(0, 2, 4, 9, 9))
    with emulated():
        with pytest.raises(ValueError, match="expects x with C = 3"):
            F.conv2d(x, Tensor(normal(1, 5, 3, 3, 3)))
        with pytest.raises(ValueError, match="the kernel spans"):
            F.conv2d(x, Tensor(normal(1, 4, 1, 9, 9)), padding=(0, 3), dilation=2, groups=4)
        with pytest.raises(ValueError, match="stride"):
            F.conv2d(x, Tensor(normal(1, 5, 4, 3, 3)), stride=0)
