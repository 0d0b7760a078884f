"""CPU fast paths equal the reference implementation, outputs and gradients, on random and on large inputs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.autograd.function import Function
from minigrad.backend.fast_paths import FAST_PATHS, fast_paths_of
from minigrad.kernels.cpu import winograd
from minigrad.kernels.cpu.activation import LOGIT
from minigrad.kernels.cpu.chunks import CHUNK
from minigrad.kernels.cpu.conv import TilesOrRows
from minigrad.kernels.cpu.depthwise import Tiles
from minigrad.kernels.cpu.depthwise_rows import Rows
from minigrad.ops import special
from minigrad.ops.activation import GELU, ReLU
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.conv import Conv2d, Depthwise
from minigrad.ops.norm import GroupNorm, GroupNormReLU, LayerNorm
from minigrad.ops.window_attention import WindowAttention
from minigrad.ops.windows import Windows

SIZES = st.integers(1, 7) | st.sampled_from([40, 300])


def randn(seed, *shape, offset=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + offset).astype(np.float32)


def forward_backward(run, *arrays, requires_grad):
    """The class of grad_fn (the implementation that ran), the output and the gradients."""
    tensors = [
        None if x is None else Tensor(x, requires_grad=requires)
        for x, requires in zip(arrays, requires_grad, strict=True)
    ]
    y = run(*tensors)
    implementation = type(y.grad_fn)
    y.backward(Tensor(randn(9, *y.shape)))
    return implementation, [y.numpy(), *(t.grad.numpy() for t in tensors if t is not None and t.requires_grad)]


def assert_equals_reference(op, run, *arrays, requires_grad=None, tolerance=2e-5):
    requires_grad = requires_grad or [x is not None for x in arrays]
    implementation, actual = forward_backward(run, *arrays, requires_grad=requires_grad)
    with minigrad.without_fast_paths():
        reference, expected = forward_backward(run, *arrays, requires_grad=requires_grad)
    assert implementation in fast_paths_of(op) and reference is op
    for y, expected_y in zip(actual, expected, strict=True):
        assert y.shape == expected_y.shape and y.dtype == expected_y.dtype
        assert abs(y - expected_y).max(initial=0) <= tolerance * max(abs(expected_y).max(initial=0), 1)


@given(SIZES, SIZES, st.sampled_from(["C", "F", "reversed", "strided"]), st.integers(0, 99))
def test_gelu_and_relu_equal_reference(rows, columns, layout, seed):
    x = randn(seed, rows, columns * (2 if layout == "strided" else 1))
    x = {"C": x, "F": np.asfortranarray(x), "reversed": x[::-1], "strided": x[:, ::2]}[layout]
    assert_equals_reference(GELU, F.gelu, x, tolerance=6e-7)
    assert_equals_reference(ReLU, F.relu, x, tolerance=0)


def test_gelu_coefficients_are_the_minimax_approximation():
    """For x > 0, the error of Φ in float64 has 6 extrema of equal height and alternating signs, for 5 coefficients."""
    x, (a, b, c, d, e) = np.linspace(0, 9, 90_001), LOGIT
    u = x * x
    error = 1 / (1 + np.exp(-x * (u + a) * (b + c / ((u + d) ** 2 + e)))) - special.normal_cdf(x)
    turns = np.flatnonzero(np.diff(np.sign(np.diff(error))) * (abs(error[1:-1]) > 1e-9)) + 1
    signs = -np.array([1, -1, 1, -1, 1, -1])
    np.testing.assert_allclose(error[turns], 7.05e-8 * signs, rtol=1e-3)
    assert abs(error).max() <= 7.1e-8


def test_slope_of_gelu_in_float32():
    x = Tensor(np.linspace(-40, 40, 200_001, dtype=np.float32), requires_grad=True)
    F.gelu(x).sum().backward()
    exact = x.numpy().astype(np.float64)
    slope = special.normal_cdf(exact) + exact * np.exp(-0.5 * exact * exact) * (2 * np.pi) ** -0.5
    assert abs(x.grad.numpy() - slope).max() <= 3e-7


def test_gelu_over_several_chunks_and_of_large_inputs():
    x = np.linspace(-40, 40, 200_001, dtype=np.float32)
    exact = np.array([v * 0.5 * math.erfc(-v / 2**0.5) for v in x.astype(np.float64)])
    y = F.gelu(Tensor(x)).numpy()
    assert (abs(y - exact) <= 3e-7 * np.maximum(abs(exact), 1)).all()
    assert_equals_reference(GELU, F.gelu, x, tolerance=6e-7)
    np.testing.assert_array_equal(
        F.gelu(Tensor(np.array([np.inf, 0, np.nan], np.float32))).numpy(), [np.inf, 0, np.nan]
    )
    x = Tensor(np.array([0, np.nan], np.float32), requires_grad=True)
    F.gelu(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0.5, np.nan])
    largest = np.finfo(np.float32).max  # overflows if rounded to fewer bits
    x = Tensor(np.array([largest, 2, -largest], np.float32), requires_grad=True)
    y = F.gelu(x)
    y.sum().backward()
    np.testing.assert_array_equal(y.numpy()[[0, 2]], [largest, 0])
    np.testing.assert_array_equal(x.grad.numpy()[[0, 2]], [1, 0])


def test_relu_backward_at_nan_and_for_infinite_gradients():
    x = Tensor(np.array([-1.0, 0.0, 2.0, np.nan], np.float32), requires_grad=True)
    F.relu(x).backward(Tensor(np.array([np.inf, np.nan, np.inf, 1.0], np.float32)))
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, np.inf, 1])


@given(
    SIZES, SIZES, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1e-5, 0.1]), st.integers(0, 99)
)  # fmt: skip
def test_layer_norm_equals_reference(tokens, C, two_axes, weight, bias, eps, seed):
    x = randn(seed, 2, tokens, C, offset=seed % 3)
    shape = (tokens, C) if two_axes else (C,)
    weight, bias = randn(1, *shape) if weight else None, randn(2, *shape) if bias else None
    # For C = 1, x - mean is 0 up to rounding errors, which 1 / √eps magnifies.
    tolerance = 2e-5 if C > 2 else 2e-3
    assert_equals_reference(
        LayerNorm, lambda x, w, b: F.layer_norm(x, shape, w, b, eps), x, weight, bias, tolerance=tolerance
    )


def test_layer_norm_over_several_chunks():
    """The last chunk is a single token."""
    C = 300
    tokens = 2 * (CHUNK // C) + 1
    run = lambda x, w, b: F.layer_norm(x, C, w, b)  # noqa: E731
    assert_equals_reference(LayerNorm, run, randn(0, tokens, C), randn(1, C), randn(2, C), tolerance=1e-4)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), SIZES, st.integers(2, 5), st.integers(0, 99))
def test_group_norm_equals_reference(N, groups, width, H, W, seed):
    """The images are channels-last, the memory layout of convolution outputs."""
    C = groups * width
    x = randn(seed, N, H, W, C, offset=seed % 3).transpose(0, 3, 1, 2)
    run = lambda x, w, b: F.group_norm(x, groups, w, b)  # noqa: E731
    assert_equals_reference(GroupNorm, run, x, randn(1, C), randn(2, C), tolerance=2e-4)


@pytest.mark.parametrize("offset", [1.0, 1e3])
def test_group_norm_over_several_chunks(offset):
    """The last chunk is a single image; the mean is small or large against the standard deviation."""
    N, C, H = 2 * (CHUNK // (32 * 32 * 32)) + 1, 32, 32
    run = lambda x, w, b: F.group_norm(x, 8, w, b)  # noqa: E731
    x = randn(0, N, H, H, C, offset=1.0).transpose(0, 3, 1, 2)
    x[0] += np.float32(offset)  # of the first chunk alone
    before = x.copy()
    assert_equals_reference(GroupNorm, run, x, randn(1, C), randn(2, C), tolerance=2e-4)
    np.testing.assert_array_equal(x, before)


def test_group_norm_of_equal_and_of_overflowing_values():
    """x² exceeds the range of float32, but not the variance of x."""
    run = lambda x, w, b: F.group_norm(x, 2, w, b)  # noqa: E731
    equal, overflowing = np.full((2, 3, 3, 8), 7, np.float32), np.full((2, 3, 3, 8), 1e20, np.float32)
    overflowing[:, 1] += np.float32(1e17)
    for x in (equal, overflowing):
        assert_equals_reference(GroupNorm, run, x.transpose(0, 3, 1, 2), randn(1, 8), randn(2, 8), tolerance=2e-4)


def test_group_norm_of_equal_large_values():
    """The rounding error of the mean exceeds √eps: without its subtraction, the variance could be negative."""
    C = 27
    x, weight, bias = np.full((2, 39, 38, C), 3.5e10, np.float32).transpose(0, 3, 1, 2), randn(1, C), randn(2, C)
    y = F.group_norm(Tensor(x), C, Tensor(weight), Tensor(bias)).numpy()
    assert abs(y - bias[:, None, None]).max() <= 1e-2


def test_group_norm_gradient_of_large_deviations():
    """r³ is below the range of float32, k is not."""
    x, arrays = randn(0, 2, 5, 5, 8).transpose(0, 3, 1, 2), (randn(1, 8), randn(2, 8))
    run = lambda x, w, b: F.group_norm(x, 2, w, b, eps=0.0)  # noqa: E731
    scale = np.float32(2**56)
    grads = [forward_backward(run, x * s, *arrays, requires_grad=[True] * 3)[1][1] * s for s in (scale, 1)]
    np.testing.assert_allclose(*grads, rtol=0, atol=1e-5)


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), SIZES, st.sampled_from([None, "channels-last", "first"]),
    st.lists(st.booleans(), min_size=4, max_size=4).filter(any), st.integers(0, 99),
)  # fmt: skip
def test_group_norm_relu_equals_reference(N, groups, width, H, shortcut, requires_grad, seed):
    """With a shortcut in either memory order, and gradients of some of the inputs."""
    C = groups * width
    x, s = (randn(seed + i, N, H, 4, C, offset=seed % 3).transpose(0, 3, 1, 2) for i in range(2))
    s = {None: None, "channels-last": s, "first": np.ascontiguousarray(s)}[shortcut]
    requires_grad = [*requires_grad[:3], requires_grad[3] and s is not None]
    if any(requires_grad):
        run = lambda x, w, b, s: F.group_norm_relu(x, groups, w, b, shortcut=s)  # noqa: E731
        arrays = x, randn(1, C), randn(2, C), s
        assert_equals_reference(GroupNormReLU, run, *arrays, requires_grad=requires_grad, tolerance=2e-4)


@given(
    st.integers(1, 3), st.integers(2, 5), st.integers(1, 20), st.sampled_from([1, 2, 3, 7, 8, 9, 30, 31, 57]),
    st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 7])), st.booleans(), st.sampled_from([Tiles, Rows]),
    st.sampled_from(["first", "last"]), st.integers(0, 99),
)  # fmt: skip
def test_depthwise_convolution_equals_reference(N, C, H, W, kernel, bias, method, channels, seed):
    """Tiles contain a full image, several rows, one row, or part of a row."""
    x = randn(seed, N, C, H, W) if channels == "first" else randn(seed, N, H, W, C).transpose(0, 3, 1, 2)
    padding = (kernel[0] // 2, kernel[1] // 2)
    run = lambda x, w, b: F.conv2d(x, w, b, padding=padding, groups=C)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TilesOrRows, "_method", lambda self, shape: method(self.windows))
        assert_equals_reference(Conv2d, run, x, randn(1, C, 1, *kernel), randn(2, C) if bias else None, tolerance=1e-4)


def test_depthwise_method_depends_on_the_images():
    """Tiles for many images of a feature map, rows for one image, and for large images with many channels."""
    windows = Windows((7, 7), (1, 1), (1, 1), (3, 3), (3, 3), (16, 16))
    method = lambda *shape: type(TilesOrRows(windows)._method(shape))  # noqa: E731
    assert method(32, 16, 16, 40) is method(32, 8, 8, 80) is Tiles
    assert method(1, 16, 16, 40) is method(1, 7, 7, 768) is method(8, 56, 56, 96) is Rows


def test_depthwise_rows_over_several_chunks():
    """A chunk contains three images; the last is a single image."""
    windows = Windows((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (32, 32))
    N = 3 * 2 + 1
    C = CHUNK // (3 * 34 * 34)
    x, weight = randn(0, N, 32, 32, C), randn(1, C, 1, 3, 3)
    for name, arguments in (("correlate", (x, weight)), ("grad_weight", (x[::-1], x, weight.shape))):
        found, expected = (getattr(method(windows), name)(*arguments) for method in (Rows, Depthwise))
        assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


@given(
    st.integers(1, 3), st.integers(16, 20), st.integers(16, 20), st.integers(3, 9), st.integers(3, 20),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), st.booleans(), st.sampled_from(["first", "last"]),
    st.integers(0, 99),
)  # fmt: skip
def test_convolution_3_by_3_equals_reference(N, C, O, H, W, padding, bias, channels, seed):  # noqa: E741
    x = randn(seed, N, C, H, W) if channels == "first" else randn(seed, N, H, W, C).transpose(0, 3, 1, 2)
    run = lambda x, w, b: F.conv2d(x, w, b, padding=padding)  # noqa: E731
    assert_equals_reference(Conv2d, run, x, randn(1, O, C, 3, 3), randn(2, O) if bias else None, tolerance=3e-6 * 9 * C)


def test_convolution_3_by_3_over_several_chunks():
    """The last chunk is a single image."""
    x, weight = randn(0, 2 * (winograd.SCRATCH // (16 * 16 * 16 * 16)) + 1, 16, 32, 32), randn(1, 16, 16, 3, 3)
    assert_equals_reference(Conv2d, lambda x, w: F.conv2d(x, w, padding=1), x, weight, tolerance=2e-5)


@given(st.integers(1, 3), SIZES, SIZES, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_convolution_1_by_1_equals_reference(N, C, O, H, W, stride, bias):  # noqa: E741
    run = lambda x, w, b: F.conv2d(x, w, b, stride=(stride, 1))  # noqa: E731
    x, weight = randn(0, N, C, H, W), randn(1, O, C, 1, 1)
    assert_equals_reference(Conv2d, run, x, weight, randn(2, O) if bias else None, tolerance=1e-4)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5),
    st.integers(1, 5), st.sampled_from([None, "all", "last", "first", "middle"]), st.sampled_from(["C", "packed"]),
    st.integers(0, 99),
)  # fmt: skip
def test_attention_equals_reference(lead, L, S, E, V, mask, layout, seed):
    """Masks have all leading axes, lack the first, or have axes of size 1."""
    shapes = [(*lead, L, E), (*lead, S, E), (*lead, S, V)]
    q, k, v = (randn(seed + i, *shape) for i, shape in enumerate(shapes))
    if layout == "packed":  # the layout of a linear layer's output: (..., L, heads, E) in memory
        q, k, v = (np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3) for x in (q, k, v))
    masks = {"all": lead, "last": lead[1:], "first": [lead[0], *[1] * (len(lead) - 1)], "middle": [1, *lead[1:]]}
    bias = None if mask is None else randn(seed, *masks[mask], L, S)
    run = lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m)  # noqa: E731
    # For E = 1, ∂scores is the difference of almost equal values, times values of q up to 10.
    tolerance = 2e-5 if E > 1 else 1e-4
    assert_equals_reference(ScaledDotProductAttention, run, q, k, v, bias, tolerance=tolerance)


@pytest.mark.parametrize("offset", [-1e4, -200.0, -100.0, -30.0, 30.0, 80.0, 87.0, 1e4])
def test_attention_of_scores_with_a_large_offset(offset):
    """The scores of all rows, or of one row, have an offset; beyond ±88, exp would leave the range of float32. A little
    below, the sum of exponentials would."""
    q, k, v = (randn(i, 2, 3, 7, 4) for i in range(3))
    for mask in (np.full((7, 7), offset, np.float32), np.where(np.eye(7)[:, :1] > 0, offset, 0).astype(np.float32)):
        mask = np.broadcast_to(mask, (7, 7)).copy()
        run = lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m)  # noqa: E731
        assert_equals_reference(
            ScaledDotProductAttention, run, q, k, v, mask, tolerance=1e-3 if abs(offset) > 1e3 else 2e-5
        )


def test_attention_without_a_gradient():
    """Without a gradient, all chunks share one buffer of probabilities; the last chunk is shorter."""
    heads, L = 3, 65
    B = 3 * (CHUNK // (heads * L * L)) - 1
    q, k, v = (Tensor(randn(i, B, heads, L, 8)) for i in range(3))
    y = F.scaled_dot_product_attention(q, k, v)
    with minigrad.without_fast_paths():
        np.testing.assert_allclose(y.numpy(), F.scaled_dot_product_attention(q, k, v).numpy(), atol=2e-5)


def test_attention_of_a_fully_masked_query():
    q, k, v = (randn(i, 2, 3, 7, 4) for i in range(3))
    mask = np.zeros((7, 7), np.float32)
    mask[2] = -np.inf
    mask[3, :4] = -np.inf
    run = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, Tensor(mask))  # noqa: E731
    assert_equals_reference(ScaledDotProductAttention, run, q, k, v)


def test_attention_over_several_chunks():
    """The last chunk is a single image."""
    heads, L = 3, 65
    B = 2 * (CHUNK // (heads * L * L)) + 1
    q, k, v = (randn(i, B, heads, L, 8) for i in range(3))
    run = lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m)  # noqa: E731
    for images in (B, 1):
        assert_equals_reference(ScaledDotProductAttention, run, q, k, v, randn(3, images, heads, L, L), tolerance=5e-5)


@pytest.mark.parametrize("requires_grad", [(True, True), (True, False), (False, True)])
def test_window_attention_over_several_chunks(requires_grad):
    """The last chunk is a single image."""
    H, W, heads, d = 4, 6, 2, 3
    images = 2 * (CHUNK // (H * W * 3 * heads * d)) + 1
    qkv, bias = randn(0, images, H, W, 3 * heads * d), randn(1, heads, 4, 4)
    run = lambda qkv, bias: F.window_attention(qkv, bias, heads, window_size=2, shift=1)  # noqa: E731
    assert_equals_reference(WindowAttention, run, qkv, bias, requires_grad=requires_grad, tolerance=5e-5)
    for unsupported in (qkv[:1], qkv.astype(np.float64)):
        assert (
            forward_backward(run, unsupported, bias.astype(unsupported.dtype), requires_grad=(True, True))[0]
            is WindowAttention
        )


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_gradients_with_one_frozen_input(frozen):
    requires_grad = [i != frozen for i in range(3)]
    x = randn(0, 2, 5, 3, 8)
    assert_equals_reference(
        LayerNorm, lambda x, w, b: F.layer_norm(x, 8, w, b), x, randn(1, 8), randn(2, 8), requires_grad=requires_grad
    )
    images = x.transpose(0, 3, 1, 2)
    assert_equals_reference(
        ScaledDotProductAttention, F.scaled_dot_product_attention, x, x + 1, x - 1, requires_grad=requires_grad
    )
    for weight in (randn(1, 4, 8, 1, 1), randn(1, 16, 16, 3, 3)):
        maps = randn(0, 2, weight.shape[1], 5, 6)
        assert_equals_reference(
            Conv2d, F.conv2d, maps, weight, randn(2, len(weight)), requires_grad=requires_grad, tolerance=1e-4
        )
    assert_equals_reference(
        GroupNorm,
        lambda x, w, b: F.group_norm(x, 2, w, b),
        images,
        randn(1, 8),
        randn(2, 8),
        requires_grad=requires_grad,
    )


@pytest.mark.parametrize(
    ("run", "x"),
    [
        (F.gelu, randn(0, 3, 4).astype(np.float64)),
        (F.relu, randn(0, 3, 4).astype(np.float64)),
        (lambda x: F.layer_norm(x, 4), randn(0, 3, 8)[:, ::2]),
        (lambda x: F.layer_norm(x, 4), randn(0, 4)),
        (lambda x: F.group_norm(x, 2), randn(0, 2, 4, 3, 3)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 4, 1, 3, 3)), groups=4), randn(0, 20, 4, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 4, 1, 2, 3)), padding=1, groups=4), randn(0, 20, 4, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 8, 1, 3, 3)), padding=1, groups=4), randn(0, 20, 4, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 4, 1, 3, 3)), stride=2, padding=1, groups=4), randn(0, 20, 4, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 4, 1, 3, 3)), padding="same", groups=4), randn(0, 20, 4, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 16, 16, 3, 3)), stride=2), randn(0, 2, 16, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 16, 16, 3, 3)), dilation=2), randn(0, 2, 16, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 16, 16, 3, 3)), padding=3), randn(0, 2, 16, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 16, 8, 3, 3)), groups=2), randn(0, 2, 16, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 16, 8, 1, 1)), groups=2), randn(0, 2, 16, 9, 9)),
        (lambda x: F.conv2d(x, Tensor(randn(1, 16, 16, 1, 1)), padding=1), randn(0, 2, 16, 9, 9)),
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), randn(0, 2, 3, 4)),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), randn(0, 2, 3, 4)),
        (lambda x: F.scaled_dot_product_attention(x, x, x), randn(0, 3, 4)),
        (lambda x: F.scaled_dot_product_attention(x, x[:1], x[:1]), randn(0, 2, 3, 4)),
        (lambda x: F.scaled_dot_product_attention(x, x, x, Tensor(np.ones((3, 3), bool))), randn(0, 2, 3, 4)),
    ],
)
def test_unsupported_inputs_run_the_reference(run, x):
    y = run(Tensor(x, requires_grad=True))
    assert type(y.grad_fn) in FAST_PATHS  # the keys are the reference implementations


def test_error_messages_are_those_of_the_reference():
    with pytest.raises(ValueError, match="normalized_shape must equal the last sizes"):
        F.layer_norm(Tensor(randn(0, 3, 4)), 5)
    with pytest.raises(ValueError, match="num_groups must divide"):
        nn.GroupNorm(3, 4)(Tensor(randn(0, 1, 4, 2, 2)))


def test_a_subclass_of_an_op_runs_its_own_forward():
    class Doubled(GELU):
        def forward(self, x):
            return 2 * super().forward(x)

    x = randn(0, 3, 4)
    np.testing.assert_allclose(Tensor.apply(Doubled, x).numpy(), 2 * F.gelu(Tensor(x)).numpy(), atol=1e-6)


CONVOLUTIONS = {"winograd": ((16, 16, 3, 3), 1), "depthwise 3 x 3": ((16, 1, 3, 3), 16), "7 x 7": ((16, 1, 7, 7), 16)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_nan_and_infinity_reach_only_their_windows(name, value):
    """NaN or infinity is in the input, the weight or the upstream gradient. The sum of two values 3e38 overflows."""
    shape, groups = CONVOLUTIONS[name]
    for place in ("x", "weight", "gradient"):
        x, weight, gradient = randn(0, 3, 16, 12, 11), randn(1, *shape) / 100, randn(2, 3, 16, 12, 11)
        {"x": x[1, 3], "weight": weight[3, 0], "gradient": gradient[1, 3]}[place][-1, 2] = value

        def run(x=x, weight=weight, gradient=gradient):
            x, weight = Tensor(x, requires_grad=True), Tensor(weight, requires_grad=True)
            y = F.conv2d(x, weight, padding=shape[2] // 2, groups=groups)
            y.backward(Tensor(gradient))
            return type(y.grad_fn), [y.numpy(), x.grad.numpy(), weight.grad.numpy()]

        with np.errstate(all="ignore"):
            implementation, actual = run()
            with minigrad.without_fast_paths():
                reference, expected = run()
        assert implementation in fast_paths_of(Conv2d) and reference is Conv2d
        for y, expected_y in zip(actual, expected, strict=True):
            finite = np.isfinite(expected_y)
            np.testing.assert_array_equal(y[~finite], expected_y[~finite])
            np.testing.assert_allclose(y[finite], expected_y[finite], rtol=1e-3, atol=1e-4)


def test_fast_paths_are_subclasses_of_their_ops():
    ops = {op: paths for op, paths in FAST_PATHS.items() if isinstance(op, type)}
    assert len(ops) >= 10
    assert all(issubclass(path, op) and issubclass(op, Function) for op, paths in ops.items() for path in paths)


def test_repr_of_grad_fn_names_the_implementation():
    x = Tensor(randn(0, 3, 4), requires_grad=True)
    assert repr(F.layer_norm(x, 4).grad_fn) == "<LayerNorm, cpu fast path>"
    with minigrad.without_fast_paths():
        assert repr(F.layer_norm(x, 4).grad_fn) == "<LayerNorm>"
