"""Type promotion and 16-bit arithmetic: an op computes in the dtype in which PyTorch computes."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor, nn
from minigrad.backend.dtypes import as_dtype, cast

X32 = Tensor(np.array([1.0, 2.0, 3.0], np.float32), requires_grad=True)
INTS = Tensor([1, 2, 3])


@pytest.mark.parametrize(
    "result",
    [
        lambda: INTS / 2, lambda: INTS / INTS, lambda: INTS * 0.5, lambda: Tensor(np.uint8([5])) / 255,
        lambda: INTS.exp(), lambda: INTS.erf(), lambda: Tensor(np.uint8([5])).sigmoid(), lambda: INTS.sqrt(),
        lambda: X32 * INTS, lambda: X32 + np.array([1, 2, 3]), lambda: X32 * Tensor(np.float64(2)),
        lambda: X32 * np.float64(2), lambda: X32.sum() / (INTS == 1).sum(), lambda: minigrad.cat([X32, INTS]),
        lambda: F.mse_loss(X32, INTS), lambda: minigrad.where(INTS > 1, 1.0, 0.0), lambda: X32.clamp(min=np.float64(0)),
        lambda: F.layer_norm(X32, 3, eps=np.float64(1e-5)), lambda: nn.DropPath(np.linspace(0, 0.1, 3)[1])(X32),
        lambda: F.dropout(X32, np.float64(0.5)), lambda: X32.maximum(INTS), lambda: X32**INTS,
        lambda: X32 @ INTS, lambda: F.cross_entropy(X32, Tensor(np.array([0.2, 0.3, 0.5]))),
        lambda: INTS.clamp(min=1.5), lambda: F.linear(INTS, X32[None]), lambda: F.linear(X32, INTS[None]),
        lambda: minigrad.einsum("i,i->", INTS, X32), lambda: minigrad.einsum("i,i->i", X32, INTS),
    ],
)  # fmt: skip
def test_float32_is_not_promoted_to_float64(result):
    assert result().dtype == np.float32


def test_products_of_float32_and_float64_are_float64():
    x, wide = minigrad.rand(1, 2, 3, 3, requires_grad=True), Tensor(np.ones((4, 2, 3, 3)), requires_grad=True)
    products = (
        x.flatten() @ wide.flatten(1).T, F.linear(x.flatten(), wide.flatten(1)), F.conv2d(x, wide).flatten(),
        minigrad.einsum("nchw,ochw->o", x, wide),
    )  # fmt: skip
    for y in products:
        x.grad = wide.grad = None
        np.testing.assert_allclose(y.numpy(), np.full(4, x.data.sum(dtype=np.float64)), rtol=1e-14)
        y.sum().backward()
        assert (y.dtype, x.grad.dtype, wide.grad.dtype) == (np.float64, np.float32, np.float64)
    y = F.conv2d(x, Tensor(np.ones((4, 2, 3, 3), np.float32)), Tensor(np.full(4, 1e-12)))
    assert y.dtype == np.float64


def test_float16_input_with_float32_arguments():
    """As the docstring of `functional/` lists: some functions keep the dtype of the input, all others promote."""
    x, ones = Tensor(np.ones((1, 2, 2, 6), np.float16)), minigrad.ones
    kept = (
        F.conv2d(x, ones(3, 2, 1, 1), ones(3)), F.layer_norm(x, 6, ones(6), ones(6)),
        F.group_norm(x, 2, ones(2), ones(2)), F.batch_norm(x, ones(2), ones(2), ones(2), ones(2)),
        F.scaled_dot_product_attention(x, ones(1, 2, 3, 6), ones(1, 2, 3, 6), ones(2, 3)),
        F.window_attention(x, ones(1, 4, 4), 1, 2), F.residual(x, ones(1, 2, 2, 6), ones(6)),
        F.cross_entropy(x[0, 0], Tensor([0, 1]), ones(6)), F.nll_loss(x[0, 0], Tensor([0, 1]), ones(6)),
        F.conv1d(x[0], ones(3, 2, 1)), F.conv_transpose2d(x, ones(2, 3, 1, 1), ones(3)),
    )  # fmt: skip
    promoted = (
        F.l1_loss(x, ones(1, 2, 2, 6)), F.kl_div(x, ones(1, 2, 2, 6)), F.cosine_similarity(x, ones(6), -1),
        F.linear(x, ones(3, 6)), minigrad.cat([x, ones(1, 2, 2, 6)]), F.mse_loss(x, ones(1, 2, 2, 6)),
        minigrad.einsum("nchw,ow->o", x, ones(3, 6)), minigrad.where(x > 0, x, ones(6)), x + ones(6),
    )  # fmt: skip
    assert {y.dtype for y in kept} == {np.dtype(np.float16)} and {y.dtype for y in promoted} == {np.dtype(np.float32)}


def test_0d_arrays_do_not_promote():
    assert (Tensor([0.1]) == Tensor(0.1, dtype=np.float64)).item() and (Tensor(np.float64(0.1)) <= Tensor([0.1])).item()
    small = Tensor(np.uint8([1, 2]))
    for y in (small + Tensor(1), Tensor(1) * small, small.maximum(Tensor(1)), small ^ Tensor(3)):
        assert y.dtype == np.uint8
    assert (Tensor(np.int32([1])) + Tensor(1)).dtype == np.int32 and (Tensor([True]) + Tensor(1)).dtype == np.int64
    assert (Tensor(np.int32(1)) + Tensor(1)).dtype == np.int64 and (small + Tensor(np.int8([1]))).dtype == np.int16


def test_promotion_of_integers():
    np.testing.assert_allclose(INTS.erf().numpy()[:2], [0.84270079, 0.99532227], rtol=1e-6)
    assert (INTS / INTS).tolist() == [1, 1, 1] and (INTS + INTS).dtype == np.int64
    assert Tensor(np.uint8([0, 5])).amin().item() == 0 and Tensor(np.int8([-128, 5])).amin().item() == -128
    assert INTS.clamp(min=1.5, max=2).tolist() == [1.5, 2, 2] and INTS.clamp(min=2).dtype == np.int64
    assert not Tensor([True, False]).amin().item() and minigrad.full((2,), 7).dtype == np.int64
    (X32 * INTS).sum().backward()
    assert X32.grad.dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_sums_need_no_upcast(dtype):
    """A 16-bit sum is the float32 sum, rounded once. With a Python float, the inputs are upcast."""
    a, b = (
        cast(100 * np.random.default_rng(i).standard_normal(999).astype(np.float32), as_dtype(dtype)) for i in (0, 1)
    )
    x, y = Tensor(a, requires_grad=True), Tensor(b)
    for z, exact in ((x + y, a.astype(np.float32) + b.astype(np.float32)), (x - y, a.astype(np.float32) - b)):
        assert z.grad_fn.cast_back is None
        np.testing.assert_array_equal(z.data, cast(exact, as_dtype(dtype)))
    assert (x + 2.0).dtype == (x - 2.0).dtype == (2.0 - x).dtype == as_dtype(dtype)
    assert (x + 2.0).grad_fn.cast_back == as_dtype(dtype)
