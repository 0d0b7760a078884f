"""Kernels compute with 0 in place of denormal float32 values, below 2⁻¹²⁶ = 1.2e-38: CuPy compiles with -ftz=true.

No kernel divides by a value that was flushed to 0: where the reference in float64 is finite, so is the result. They
differ by at most

    the usual relative error + 2⁻¹²⁶ · factor,      factor: by which the op amplifies an input, such as 1 / √eps

The reference, too, gets 0 in place of denormal inputs: at a denormal, the gradient of ReLU is that at 0. bfloat16 has
the exponents of float32, so its denormals are flushed. Denormal float16 values, below 2⁻¹⁴, are normal in float32:
there, the rounding error of a denormal float16, 2⁻²⁵, takes the place of 2⁻¹²⁶.
"""

from operator import add

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, optim
from minigrad import functional as F
from minigrad.backend.dtypes import cast, cast_all
from minigrad.backend.fast_paths import call
from minigrad.kernels.cuda import convert
from minigrad.ops import updates
from tests.cuda.comparison import BFLOAT16, DTYPES, FLOAT16, FLOAT32, error_of, normal, run_op, run_reference
from tests.cuda.runner import emulated, needs_compiler, recorded

pytestmark = needs_compiler

SMALLEST = 2.0**-126  # the smallest normal float32
ABSOLUTE = {FLOAT32: SMALLEST, BFLOAT16: SMALLEST, FLOAT16: 2.0**-25}
ROUNDING = {FLOAT32: 1e-5, BFLOAT16: 2.0**-5, FLOAT16: 2.0**-8}  # of a few casts; relative to the maximum
SCALES = {FLOAT32: [1e-40, 1e-38, 1e-25, 1e-12], BFLOAT16: [1e-40, 1e-38, 1e-12], FLOAT16: [1e-7, 1e-5]}


def small(seed, *shape, dtype, scale):
    """Normal values of standard deviation `scale`, in every third column 0."""
    x = np.random.default_rng(seed).standard_normal(shape) * scale
    x[..., ::3] = 0
    return x.astype(dtype)


def flushed(x):
    """x with 0 in place of denormal float32 values."""
    return np.where(abs(x.astype(np.float64)) < SMALLEST, 0, x).astype(x.dtype)


def assert_close(found, exact, dtype=FLOAT32, factor=1.0):
    """Check results against the bound of this file's docstring."""
    found, exact = (np.asarray(x, np.float64) for x in (found, exact))
    assert found.shape == exact.shape and np.isfinite(exact).all()
    limit = ROUNDING[dtype] * abs(exact).max() + ABSOLUTE[dtype] * factor
    error = abs(found - exact).max()
    assert error <= limit, f"{error:.2g} of {limit:.2g}"


# Ops ----------------------------------------------------------------------------------------------------------------


def layer_norm(x, weight, bias):
    return F.layer_norm(x, 24, weight, bias)


def residual_layer_norm(x, branch, weight, bias):
    return add(*F.residual_layer_norm(x, branch, weight, bias, drop_path=0.4))


def group_norm(x, weight, bias):
    return F.group_norm(x.permute(0, 3, 1, 2), 2, weight, bias)


def residual(x, branch, scale):
    return F.residual(x, branch, scale, drop_path=0.4)


def window_attention(qkv, bias):
    return F.window_attention(qkv, bias, num_heads=2, window_size=4, shift=1)


def depthwise(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=3, groups=40)


def cross_entropy(x, reduction="mean"):
    return F.cross_entropy(x, Tensor(np.arange(6)), reduction=reduction)


OPS = {  # name: op, shapes of inputs of the dtype, shapes of float32 parameters, factor
    "relu": (F.relu, [(5, 40)], [], 1),
    "gelu": (F.gelu, [(5, 40)], [], 4),
    "layer_norm": (layer_norm, [(7, 24)], [(24,), (24,)], 1e3),
    "residual_layer_norm": (residual_layer_norm, [(5, 3, 24)] * 2, [(24,), (24,)], 5e3),
    "group_norm": (group_norm, [(2, 4, 5, 6)], [(6,), (6,)], 1e3),
    "standardize_weight": (F.standardize_weight, [(6, 3, 3, 3)], [], 1e4),
    "residual": (residual, [(5, 3, 24)] * 2, [(24,)], 20),
    "attention": (F.scaled_dot_product_attention, [(2, 2, 9, 16)] * 3, [], 100),
    "window_attention": (window_attention, [(1, 8, 8, 3 * 32)], [(2, 16, 16)], 100),
    "conv2d": (F.conv2d, [(2, 8, 6, 6)], [(8, 8, 3, 3), (8,)], 1e3),
    "depthwise": (depthwise, [(2, 40, 9, 9)], [(40, 1, 7, 7), (40,)], 1e3),
    "cross_entropy": (cross_entropy, [(6, 10)], [], 10),
}


@pytest.mark.parametrize("scale_of_grad", [1.0, 1e-39])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_ops_differ_by_flushed_values_only(name, dtype, scale_of_grad):
    op, shapes, parameters, factor = OPS[name]

    def under_autocast(*tensors):
        with minigrad.autocast(dtype.name, dtype != FLOAT32):
            return op(*tensors)

    for scale in SCALES[dtype]:
        arrays = [small(i, *shape, dtype=dtype, scale=scale) for i, shape in enumerate(shapes)]
        arrays += [normal(9 + i, *shape) for i, shape in enumerate(parameters)]
        y = under_autocast(*map(Tensor, arrays))
        grad_y = (normal(8, *y.shape) * scale_of_grad).astype(y.dtype)
        with recorded() as launches:
            run = run_op(under_autocast, *arrays, grad_y=grad_y)
        assert launches
        exact = run_reference(under_autocast, *map(flushed, arrays), grad_y=flushed(grad_y))
        for ours, theirs in zip(run.results, exact, strict=True):
            assert_close(ours, theirs, dtype, factor)


# Attention weights, class probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_of_very_negative_scores(dtype):
    """Scores up to 300 below the maximum: exp(-88) is denormal."""
    q, k, v = (normal(i, 2, 9, 16, dtype=dtype) for i in range(3))
    mask = np.where(np.arange(9) % 3 == 1, -np.inf, -300 * np.random.default_rng(3).random((9, 9))).astype(np.float32)

    def attention(*tensors):
        return F.scaled_dot_product_attention(*tensors, Tensor(mask))

    with emulated():
        run = run_op(attention, q, k, v)
    for ours, theirs in zip(run.results, run_reference(attention, q, k, v, grad_y=run.grad_y), strict=True):
        assert error_of(ours, theirs) <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_of_very_negative_logits(reduction, dtype):
    x = normal(0, 6, 10, dtype=dtype) * dtype.type(100)
    op = lambda x: cross_entropy(x, reduction)  # noqa: E731
    with emulated():
        run = run_op(op, x)
    for ours, theirs in zip(run.results, run_reference(op, x, grad_y=run.grad_y), strict=True):
        assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("eps", [0.0, 1e-40])
def test_norms_without_eps_are_finite(eps):
    """A variance of 1e-42 is flushed: 1 / √(variance + eps) would be infinite."""
    x = normal(0, 7, 24) * np.float32(1e-21)
    images = x.reshape(7, 1, 1, 24).transpose(0, 3, 1, 2)
    with emulated():
        runs = [
            run_op(lambda x: F.layer_norm(x, 24, eps=eps), x),
            run_op(lambda x: F.group_norm(x, 1, eps=eps), images),
            run_op(lambda x: F.standardize_weight(x, eps=eps), x),
        ]
    assert all(np.isfinite(result).all() and abs(result).max() > 0 for run in runs for result in run.results)


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "standardize_weight"])
def test_norms_of_nearly_constant_rows(name):
    """The variance, about 1e-42, is denormal, and 0 in one row."""
    op, (shape, *_), parameters, factor = OPS[name]
    x = normal(0, *shape) * np.float32(1e-21)
    x[0] = 0
    arrays = [x, *(normal(9 + i, *shape) for i, shape in enumerate(parameters))]
    with emulated():
        run = run_op(op, *arrays)
    for ours, theirs in zip(run.results, run_reference(op, *arrays, grad_y=run.grad_y), strict=True):
        assert_close(ours, theirs, FLOAT32, factor)


# Functions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e-12])
def test_adamw_of_tiny_gradients(scale):
    """The second moment of gradients below 1e-17 is denormal or 0; √v + eps is not."""
    lr, eps = 0.1, 1e-8
    x, *grads = (normal(i, 300) * (1 if i == 0 else scale) for i in range(4))

    def steps(dtype):
        parameter = Tensor(np.where(np.arange(300) % 2, x, 0).astype(dtype), requires_grad=True)
        optimizer = optim.AdamW([parameter], lr=lr, eps=eps)
        for grad in grads:
            parameter.grad = Tensor(grad.astype(dtype))
            optimizer.step()
        return [parameter.numpy(), optimizer.state[0][0]["m"], optimizer.state[0][0]["v"]]

    with emulated():
        found = steps(np.float32)
    for ours, theirs in zip(found, steps(np.float64), strict=True):
        # of a step of the parameter, lr / (1 - β₁) times m is divided by eps
        assert_close(ours[::2], theirs[::2], FLOAT32, 1 + len(grads) * 10 * lr / eps)
        assert_close(ours[1::2], theirs[1::2], FLOAT32)


@pytest.mark.parametrize("eps", [0.0, 1e-40])
@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e-18, 1e-10])
def test_adamw_without_eps_is_finite(scale, eps):
    """√v is flushed, or at least 1e-19: a parameter moves by at most lr, as without the flush."""
    parameter = Tensor(np.zeros(300, np.float32), requires_grad=True)
    parameter.grad = Tensor(normal(1, 300) * np.float32(scale))
    with emulated():
        optim.AdamW([parameter], lr=0.1, eps=eps).step()
    assert abs(parameter.numpy()).max() <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0])
def test_clipping_of_tiny_gradients(scale):
    for max_norm in (1e-40, 1e-3, 1.0):
        grads = [normal(i, 50) * np.float32(scale) for i in range(2)]
        expected = [flushed(grad).astype(np.float64) for grad in grads]
        norm = updates.clip_by_global_norm(expected, max_norm)
        with emulated():
            assert_close(call(updates.clip_by_global_norm, grads, max_norm), norm)
        for ours, theirs in zip(grads, expected, strict=True):
            assert_close(ours, theirs, factor=4)


@pytest.mark.parametrize("loss_scale", [2.0**-14, 1.0, 2.0**16, 2.0**126])
def test_unscaling_flushes_but_stays_finite(loss_scale):
    for scale in (1e-40, 1e-36, 1.0):
        grad = normal(0, 50) * np.float32(scale)
        exact = flushed(grad).astype(np.float64) / loss_scale
        with emulated():
            assert call(updates.unscale, [grad], 1 / loss_scale)
        assert_close(grad, exact)


@pytest.mark.parametrize("scale", [1e-40, 1e-36, 1.0])
def test_average_of_tiny_values(scale):
    ema, x = (normal(i, 50) * np.float32(scale) for i in range(2))
    for rest in (1.0, 2e-4, 1e-9):
        found, exact = ema.copy(), ema.astype(np.float64)
        updates.average(exact, x.astype(np.float64), rest)
        with emulated():
            call(updates.average_all, [(found, x)], lambda rest=rest: rest)
        assert_close(found, exact, factor=4)


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_casts_keep_denormals_of_bfloat16_and_float16(source, target):
    """A cast is not arithmetic: bfloat16 to float32 copies bits. Only a denormal float32 result is flushed."""
    x = (normal(0, 200) * np.logspace(-45, 0, 200)).astype(source)
    with emulated():
        found = convert.convert(x, target)
        (fused,) = cast_all([x], target)
    np.testing.assert_array_equal(found.view(np.uint8), cast(x, target).view(np.uint8))
    np.testing.assert_array_equal(fused.view(np.uint8), cast(x, target).view(np.uint8))
