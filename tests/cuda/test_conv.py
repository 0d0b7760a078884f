"""Convolution in CUDA, run on the CPU in several thread orders, against the reference in float64.

Tolerance: 2e-6 of the maximum for sums in float32. A cast to a 16-bit dtype of p binary digits has a relative error of
at most u = 2⁻ᵖ. The reference gets the same 16-bit inputs, so the differences are

    y, ∂x              cast once: u |y|, for each element
    ∂x, by `Columns`   ∂X is cast, and then the sum: u Σ |∂X| more, and Σ |∂X| ≤ Σ |∂y| |weight|
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
from minigrad.backend import Array
from minigrad.backend.cublas import pointer
from minigrad.backend.dtypes import as_dtype, is_half
from minigrad.kernels.cuda import conv
from minigrad.kernels.cuda.launch import Recorder, use_device
from minigrad.ops.conv import Conv2d
from minigrad.ops.windows import Windows
from tests.cuda.runner import ORDERS, KernelError, barriers, emulated, guarded, needs_compiler, sampled

pytestmark = needs_compiler

FORMS = [  # kernel, stride, dilation
    ((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (1, 1)), ((3, 2), (1, 2), (2, 3)), ((1, 1), (2, 1), (1, 1)),
]  # fmt: skip
LAYOUTS = ["channels-last", "channels-first", "flipped", "strided"]
DTYPES = ["float32", "bfloat16", "float16"]
DIGITS = {"bfloat16": 8, "float16": 11}


def drawn(seed: int, *shape: int, layout: str = "channels-first", dtype: str = "float32") -> Array:
    """Standard normal images (N, C, H, W), with one of the memory layouts of `LAYOUTS`."""
    N, C, H, W = shape
    values = np.random.default_rng(seed).standard_normal((N, C, H, 2 * W)).astype(as_dtype(dtype))
    x = values if layout == "strided" else np.ascontiguousarray(values[..., :W])
    if layout == "channels-last":
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return {"channels-first": x, "flipped": x[:, :, ::-1, ::-1], "strided": x[..., ::2]}[layout]


def outcome(x, weight, bias, grad_y, wanted=(True, True, True), **options):
    """The class that ran, the output, and the gradients. With a 16-bit x, parameters are float32 copies of 16-bit
    values, under autocast."""
    inputs = [Tensor(x, requires_grad=wanted[0])]
    for parameter, want in zip((weight, bias), wanted[1:], strict=True):
        if parameter is not None:
            inputs.append(Tensor(parameter.astype(np.promote_types(x.dtype, np.float32)), requires_grad=want))
    with minigrad.autocast(x.dtype) if is_half(x.dtype) else nullcontext():
        y = F.conv2d(*inputs, **options)
    y.backward(Tensor(grad_y))
    return type(y.grad_fn), [y.numpy(), *(a.grad.numpy() for a in inputs if a.requires_grad)]


def assert_matches_reference(
    x, weight, bias=None, wanted=(True, True, True), order=ORDERS[0], guard="after", layout="channels-last", **options
):
    """Run the reference and the fast path. Returns the results of the fast path, and its launches."""
    exact = [None if a is None else a.astype(np.float64) for a in (x, weight, bias)]
    shape = F.conv2d(*(Tensor(a) for a in exact if a is not None), **options).shape
    grad_y = drawn(9, *shape, layout=layout, dtype=x.dtype)
    kind, expected = outcome(*exact, grad_y.astype(np.float64), wanted, **options)
    assert kind is Conv2d
    with emulated(order, guard=guard) as device, use_device(recorder := Recorder(device)):
        kind, found = outcome(x, weight, bias, grad_y, wanted, **options)
    assert kind is conv.CUDAConv2d
    u = 2.0 ** -DIGITS[x.dtype.name] if is_half(x.dtype) else 0
    rounded = [u * abs(theirs) for theirs in expected[: 1 + wanted[0]]] + [0] * 3
    if wanted[0] and "fold" in names(recorder.launches):
        _, (_, columns) = outcome(*map(abs, exact[:2]), None, abs(grad_y).astype(np.float64), (1, 0, 0), **options)
        rounded[1] += u * (1 + u) * columns
    for i, (ours, theirs, rounding) in enumerate(zip(found, expected, rounded, strict=False)):
        assert ours.shape == theirs.shape and ours.dtype == (x.dtype if i <= wanted[0] else np.float32)
        assert (abs(ours.astype(np.float64) - theirs) <= rounding + 2e-6 * max(abs(theirs).max(), 1)).all()
    return found, recorder.launches


def names(launches):
    return [launch.kernel.name for launch in launches]


@example(3, 40, (6, 17), (7, 7), (1, 7), True, *LAYOUTS[:2], 1, "after", ORDERS[0], "float32")
@example(3, 40, (6, 17), (7, 7), (1, 7), True, *LAYOUTS[:2], 1, "after", ORDERS[0], "bfloat16")
@example(3, 3, (2, 3), (2, 3), (4, 0), True, *LAYOUTS[2:], 1, "after", ORDERS[1], "float16")
@given(
    st.integers(1, 3), st.sampled_from([3, 40]), st.tuples(st.integers(1, 6), st.integers(1, 17)),
    st.sampled_from([(7, 7), (2, 3)]), st.tuples(st.integers(0, 4), st.integers(0, 7)), st.booleans(),
    st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from([1, 512]),
    st.sampled_from(["after", "before"]), st.sampled_from(ORDERS), st.sampled_from(DTYPES),
)  # fmt: skip
def test_depthwise_matches_reference(
    N, C, size, kernel, padding, bias, layout, grad_layout, blocks, guard, order, dtype
):
    """Tiles across the edge, channels that do not fill a warp, padding wider than the kernel, tiles in turn."""
    H, W = map(max, size, (k - 2 * p for k, p in zip(kernel, padding, strict=True)))
    x, weight = drawn(0, N, C, H, W, layout=layout, dtype=dtype), drawn(1, C, 1, *kernel, dtype=dtype)
    with patch.object(conv, "BLOCKS", blocks):
        bias = drawn(2, C, 1, 1, 1, dtype=dtype).reshape(C) if bias else None
        _, launches = assert_matches_reference(
            x, weight, bias, (1, 1, 1), order, guard, grad_layout, padding=padding, groups=C
        )
    assert names(launches) == ["depthwise_correlate", "depthwise_correlate", "depthwise_grad_weight", "sum_rows"]


@example(3, 132, 5, 7, 9, FORMS[0], (1, 1), True, *LAYOUTS[:2], 2, "after", ORDERS[0], "float32")
@example(3, 136, 5, 7, 9, FORMS[0], (1, 1), True, *LAYOUTS[:2], 2, "after", ORDERS[0], "bfloat16")
@example(3, 36, 2, 9, 8, FORMS[1], (0, 0), False, *LAYOUTS[:2], 1, "after", ORDERS[1], "float16")
@example(3, 36, 4, 9, 7, FORMS[2], (4, 3), True, *LAYOUTS[2:], 9, "before", ORDERS[2], "float32")
@given(
    st.integers(1, 3), st.sampled_from([1, 3, 4, 8, 36, 136]), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from(FORMS), st.tuples(st.integers(0, 4), st.integers(0, 3)), st.booleans(),
    st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS),
    st.sampled_from([1, 2, 9]), st.sampled_from(["after", "before"]), st.sampled_from(ORDERS), st.sampled_from(DTYPES),
)  # fmt: skip
def test_im2col(N, C, O, H, W, form, padding, bias, layout, grad_layout, images, guard, order, dtype):  # noqa: E741
    """PACK of 1 or 16 bytes, pixels that no window reads, windows in the padding, a batch in several blocks."""
    kernel, stride, dilation = form
    spans = ((k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True))
    H, W = map(max, (H, W), spans)
    x, weight = drawn(0, N, C, H, W, layout=layout, dtype=dtype), drawn(1, O, C, *kernel, dtype=dtype)
    bias = drawn(2, O, 1, 1, 1, dtype=dtype).reshape(O) if bias else None
    some = lambda x, _: (slice(n, n + images) for n in range(0, len(x), images))  # noqa: E731
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    with patch.object(conv, "blocks", some):
        _, launches = assert_matches_reference(x, weight, bias, (1, 1, 1), order, guard, grad_layout, **options)
    assert names(launches) == [name for name in ("unfold", "fold", "unfold") for _ in range(0, N, images)]


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.booleans(),
    st.sampled_from(LAYOUTS), st.sampled_from(DTYPES),
)  # fmt: skip
def test_pointwise_matches_reference(N, C, O, H, bias, layout, dtype):  # noqa: E741
    x, weight = drawn(0, N, C, H, 4, layout=layout, dtype=dtype), drawn(1, O, C, 1, 1, dtype=dtype)
    bias = drawn(2, O, 1, 1, 1, dtype=dtype).reshape(O) if bias else None
    _, launches = assert_matches_reference(x, weight, bias, layout=layout)
    assert not launches


def test_padded_1x1_kernel_uses_im2col():
    _, launches = assert_matches_reference(drawn(0, 2, 3, 4, 4), drawn(1, 5, 3, 1, 1), padding=(1, 0))
    assert names(launches) == ["unfold", "fold", "unfold"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_images_give_the_same_result(dtype):
    memory = drawn(0, 1, 1, 1, 2 * 8 * 7 * 9 + 1, dtype=dtype).reshape(-1)
    x = memory[1:].reshape(2, 7, 9, 8).transpose(0, 3, 1, 2)
    assert pointer(x) % 16
    assert_matches_reference(x, drawn(1, 5, 8, 3, 3, dtype=dtype), stride=2)
    assert_matches_reference(x, drawn(1, 8, 1, 3, 3, dtype=dtype), groups=8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_im2col_pads_rows_to_16_bytes(dtype):
    """Rows of 3 channels are padded to 16 bytes; rows of 8 channels need no padding."""
    for C, columns in ((3, {"float32": 28}.get(dtype, 32)), (8, 72)):
        x = drawn(0, 2, C, 5, 6, dtype=dtype).transpose(0, 2, 3, 1)
        windows = Windows((3, 3), (2, 2), (1, 1), (1, 1), (1, 1), (3, 3))
        with emulated():
            X = conv.Columns(windows).unfold(x)
        assert X.shape == (18, columns) and not X[:, 9 * C :].any()
        np.testing.assert_array_equal(X[:, : 9 * C], windows.view(windows.pad(x)).reshape(18, 9 * C))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_16_bit_parameters_have_16_bit_gradients(dtype):
    x, weight = drawn(0, 2, 8, 5, 5, dtype=dtype), drawn(1, 8, 1, 3, 3, dtype=dtype)
    bias = drawn(2, 8, 1, 1, 1, dtype=dtype).reshape(8)
    with emulated():
        tensors = [Tensor(a, requires_grad=True) for a in (x, weight, bias)]
        y = F.conv2d(*tensors, groups=8)
        y.backward(y)
    assert type(y.grad_fn) is conv.CUDAConv2d and {a.dtype for a in (y, *(t.grad for t in tensors))} == {x.dtype}


@pytest.mark.parametrize("groups", [1, 8])
def test_mixed_dtypes_compute_in_float32(groups):
    """Without autocast, 16-bit images with a float32 weight or bias: computed in float32, and cast back."""
    x, weight, bias = drawn(0, 2, 8, 5, 5, dtype="bfloat16"), drawn(1, 8, 8 // groups, 3, 3), np.ones(8, np.float32)
    for inputs in ([x, weight], [x, weight.astype(x.dtype), bias]):
        with emulated():
            y = F.conv2d(Tensor(x, requires_grad=True), *map(Tensor, inputs[1:]), groups=groups)
        exact = F.conv2d(*(Tensor(a.astype(np.float64)) for a in inputs), groups=groups).numpy()
        assert type(y.grad_fn) is conv.CUDAConv2d and y.dtype == x.dtype and y.grad_fn.cast_back == x.dtype
        assert (abs(y.numpy().astype(np.float64) - exact) <= 2.0**-8 * abs(exact) + 1e-5).all()


def as_16_bit(dtype, case):
    x, weight, options = case
    return x.astype(as_dtype(dtype)), weight.astype(as_dtype(dtype)), options


CASES = {
    "depthwise": (drawn(0, 2, 40, 9, 9, layout="channels-last"), drawn(1, 40, 1, 7, 7), {"padding": 3, "groups": 40}),
    "columns": (drawn(0, 2, 8, 7, 9, layout="channels-last"), drawn(1, 5, 8, 3, 3), {"stride": 2, "padding": 1}),
    "columns, one channel at a time": (drawn(0, 2, 3, 7, 9), drawn(1, 5, 3, 3, 3), {"stride": 2, "padding": 1}),
    "pointwise": (drawn(0, 2, 3, 4, 5), drawn(1, 6, 3, 1, 1), {}),
}
CASES |= {f"{case}, {dtype}": as_16_bit(dtype, CASES[case]) for case in list(CASES) for dtype in DTYPES[1:]}


@pytest.mark.parametrize("case", CASES)
def test_thread_order_changes_no_bit(case):
    x, weight, options = CASES[case]
    runs = [assert_matches_reference(x, weight, order=order, **options)[0] for order in (*ORDERS, ORDERS[0])]
    for run in runs:
        for ours, first in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(ours, first)


@pytest.mark.parametrize("barrier", sampled([b for b in barriers("depthwise.cu") if b.startswith("depthwise.cu")]))
def test_every_barrier_is_needed(barrier):
    x, weight, options = CASES["depthwise"]
    grad_y = drawn(9, *x.shape)
    with emulated():
        _, expected = outcome(x, weight, None, grad_y, **options)
    wrong = []
    for order in ORDERS:
        with emulated(order, barrier=barrier, guard="after"):
            try:
                _, found = outcome(x, weight, None, grad_y, **options)
            except KernelError:
                wrong.append(order)
            else:
                if any((ours != theirs).any() for ours, theirs in zip(found, expected, strict=True)):
                    wrong.append(order)
    assert wrong


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("case", CASES)
def test_accesses_stay_within_the_arrays(case, side):
    def beside_the_guard(a):
        memory = guarded(a.shape, a.dtype, side)
        memory[...] = a
        return memory

    x, weight, options = CASES[case]
    images = beside_the_guard(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    inputs = [images, beside_the_guard(weight), beside_the_guard(np.ones(len(weight), x.dtype))]
    with emulated(guard=side):
        y = F.conv2d(*(Tensor(a, requires_grad=True) for a in inputs), **options)
        grad_y = drawn(9, y.shape[0], *y.shape[2:], y.shape[1], dtype=x.dtype)
        y.backward(Tensor(beside_the_guard(grad_y).transpose(0, 3, 1, 2)))
    assert type(y.grad_fn) is conv.CUDAConv2d


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wanted", [w for w in product([True, False], repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(case, wanted):
    x, weight, options = CASES[case]
    bias = np.ones(len(weight), x.dtype)
    _, launches = assert_matches_reference(x, weight, bias, wanted=wanted, **options)
    if case.startswith("pointwise"):
        assert names(launches) == []  # matrix products alone
    else:
        forward, for_x, for_weight = {
            "depthwise": (["depthwise_correlate"], ["depthwise_correlate"], ["depthwise_grad_weight", "sum_rows"]),
        }.get(case.split(",")[0], (["unfold"], ["fold"], ["unfold"]))
        assert names(launches) == forward + for_x * wanted[0] + for_weight * wanted[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_are_copied_once(layout):
    """Without overlap, unfold reads x itself, and fold writes ∂x itself."""
    x = Tensor(drawn(0, 2, 3, 8, 8, layout=layout), requires_grad=True)
    with emulated() as device, use_device(recorder := Recorder(device)):
        y = F.conv2d(x, Tensor(drawn(1, 5, 3, 2, 2)), stride=2)
        grad_x, _, _ = y.grad_fn.backward(drawn(9, *y.shape, layout="channels-last"))
    unfold, fold = recorder.launches
    assert unfold.args[0] == pointer(x.numpy()) and fold.args[1] == pointer(grad_x)


def test_two_runs_make_the_same_launches():
    for x, weight, options in CASES.values():
        runs = [assert_matches_reference(x, weight, **options)[1] for _ in range(2)]
        first, second = ([launch._replace(args=launch.args[3:]) for launch in run] for run in runs)
        assert first == second


@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        (drawn(0, 2, 4, 9, 9).astype(np.float64), drawn(1, 5, 4, 3, 3).astype(np.float64), {}),
        (drawn(0, 2, 4, 9, 9), drawn(1, 4, 1, 3, 3), {"groups": 4, "stride": 2}),
        (drawn(0, 2, 4, 9, 9), drawn(1, 4, 1, 3, 3), {"groups": 4, "dilation": (1, 2)}),
        (drawn(0, 2, 4, 9, 9), drawn(1, 8, 1, 3, 3), {"groups": 4}),
        (drawn(0, 2, 4, 9, 9), drawn(1, 4, 2, 3, 3), {"groups": 2}),
        (drawn(0, 1, 4, 9, 11), drawn(1, 4, 1, 9, 11), {"groups": 4}),
        (drawn(0, 0, 4, 9, 9), drawn(1, 5, 4, 3, 3), {}),
    ],
)
def test_unsupported_arrays_run_the_reference(x, weight, options):
    with emulated():
        y = F.conv2d(Tensor(x, requires_grad=True), Tensor(weight), **options)
    assert not isinstance(y.grad_fn, conv.CUDAConv2d)


def test_without_the_device_the_reference_runs():
    y = F.conv2d(Tensor(drawn(0, 2, 4, 9, 9), requires_grad=True), Tensor(drawn(1, 5, 4, 3, 3)))
    assert not isinstance(y.grad_fn, conv.CUDAConv2d)


def test_errors_are_those_of_the_reference():
    x = Tensor(drawn(0, 2, 4, 9, 9))
    with emulated():
        with pytest.raises(ValueError, match="expects 3 input channels"):
            F.conv2d(x, Tensor(drawn(1, 5, 3, 3, 3)))
        with pytest.raises(ValueError, match="the kernel spans"):
            F.conv2d(x, Tensor(drawn(1, 4, 1, 9, 9)), padding=(0, 3), dilation=2, groups=4)
        with pytest.raises(ValueError, match="stride"):
            F.conv2d(x, Tensor(drawn(1, 5, 4, 3, 3)), stride=0)
