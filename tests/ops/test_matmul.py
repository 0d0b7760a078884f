"""Matrix products: saved operands, dtypes, rounding, and error messages."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor


def test_only_operands_that_backward_needs_are_saved():
    a, b = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones((3, 4)))
    node = (a @ b).grad_fn
    assert node.a is None
    assert node.b is b.data


def test_matmul_with_a_numpy_array_on_either_side():
    x = np.ones((2, 2))
    assert isinstance(x @ Tensor(x), Tensor)
    assert isinstance(Tensor(x) @ x, Tensor)


def test_integer_operands_are_promoted():
    """As in NumPy, int8 and int64 give int64: 100 · 100 overflows int8."""
    y = Tensor(np.full((1, 1), 100, np.int8)) @ Tensor(np.full((1, 1), 100))
    assert y.dtype == np.int64 and y.item() == 10000


def test_bfloat16_bias_is_added_before_rounding():
    """In bfloat16, 1 + 3 · 2⁻¹⁰ rounds to 1, and 1 + 2⁻⁹ too. The sum of all three terms rounds up to 1 + 2⁻⁷."""
    one, weight = Tensor(np.array([[1.0, 2**-5]])).bfloat16(), Tensor(np.array([[1.0, 3 * 2**-5]])).bfloat16()
    assert (one @ weight.transpose(0, 1)).item() == 1.0  # 1 + 3 · 2⁻¹⁰
    assert F.linear(one, weight, Tensor(np.array([2**-9])).bfloat16()).item() == 1 + 2**-7


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (2, 3)), r"matmul: the last axis of a.*\(2, 3\) and \(2, 3\)"),
        (((3,), (4,)), "matmul: the last axis"),
        (((), (3,)), "matmul: the last axis"),
        (((2, 2, 3), (3, 3, 4)), "broadcast|mismatch"),
    ],
)
def test_matmul_error_messages(shapes, message):
    a, b = (Tensor(np.ones(shape)) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        a @ b


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (
            (2, 3),
            (4, 2),
            None,
            r"linear: the weight must be \(out_features, in_features\).*\(2, 3\), the weight \(4, 2\)",
        ),
        ((2, 3), (3,), None, "linear: the weight must be"),
        ((), (4, 2), None, "linear: the weight must be"),
        ((2, 3), (4, 3), (3,), r"linear: the bias must have shape \(4,\)"),
    ],
)
def test_linear_error_messages(x, weight, bias, message):
    bias = None if bias is None else Tensor(np.ones(bias))
    with pytest.raises(ValueError, match=message):
        F.linear(Tensor(np.ones(x)), Tensor(np.ones(weight)), bias)
