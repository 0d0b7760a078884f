"""Small integer dtypes and Python numbers: arithmetic wraps as in PyTorch, comparisons are exact, values must fit."""

import operator

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor

SMALL_INTEGERS = [np.uint8, np.int8, np.int16, np.int32]
NUMBERS = [-(2**40) - 7, -40000, -200, -1, 128, 255, 256, 300, 70000, 2**40 + 3]
ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("dtype", SMALL_INTEGERS)
@pytest.mark.parametrize("operation", ARITHMETIC, ids=lambda f: f.__name__)
def test_arithmetic_with_a_python_integer_wraps(operation, dtype, device):
    exact = np.array([0, 1, 5, 100], np.int64)
    x = Tensor(exact.astype(dtype), device=device)
    for number in NUMBERS:
        for y, expected in (
            (operation(x, number), operation(exact, number)),
            (operation(number, x), operation(number, exact)),
        ):
            assert y.dtype == dtype
            np.testing.assert_array_equal(y.cpu().numpy(), expected.astype(dtype))


@pytest.mark.parametrize("dtype", SMALL_INTEGERS)
@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda f: f.__name__)
def test_comparisons_with_a_python_integer_are_exact(compare, dtype, device):
    exact = np.array([0, 1, 44, 127], np.int64)
    x = Tensor(exact.astype(dtype), device=device)
    for number in NUMBERS:
        np.testing.assert_array_equal(compare(x, number).cpu().numpy(), compare(exact, number))
        np.testing.assert_array_equal(compare(number, x).cpu().numpy(), compare(number, exact))
    assert 300 not in x and 44 in x


def test_division_by_a_python_integer_is_exact(device):
    assert (Tensor(np.uint8([1, 30]), device=device) / 300).tolist() == np.float32([1 / 300, 0.1]).tolist()


def test_pow_wraps_the_base_and_refuses_exponents_out_of_range(device):
    x = Tensor(np.uint8([0, 1, 3]), device=device)
    assert (300**x).tolist() == [1, 44, 44**3 % 256] and (x**3).tolist() == [0, 1, 27]
    for exponent in (300, -1):
        with pytest.raises(ValueError, match=f"pow: uint8 cannot hold {exponent}; convert first, as with x.float"):
            x**exponent


def test_clamp_ignores_limits_out_of_range(device):
    x = Tensor(np.uint8([0, 7, 255]), device=device)
    assert x.clamp(-1, 300).tolist() == x.clamp(max=300).tolist() == x.clamp(min=-5).tolist() == [0, 7, 255]
    assert x.clamp(-1, 9).tolist() == [0, 7, 9] and x.clamp(5, 2**70).tolist() == [5, 7, 255]
    assert x.clamp(-1, 300).dtype == np.uint8 and x.clamp(0.5, 300).dtype == np.float32
    assert Tensor(np.int8([-128, 3]), device=device).clamp(-200, 300).tolist() == [-128, 3]


@pytest.mark.parametrize(
    ("call", "op", "number"),
    [
        (lambda x: x.clamp(min=300), "clamp", 300),
        (lambda x: x.clamp(max=-1), "clamp", -1),
        (lambda x: x.maximum(300), "maximum", 300),
        (lambda x: x.minimum(-1), "minimum", -1),
        (lambda x: minigrad.where(x > 0, x, 300), "where", 300),
        (lambda x: minigrad.where(x > 0, -1, x), "where", -1),
        (lambda x: x.masked_fill(x > 0, 300), "masked_fill", 300),
        (lambda x: F.pad(x, (1, 1), value=300), "pad", 300),
        (lambda x: F.pad(x, (1, 1), value=-1), "pad", -1),
        (lambda x: minigrad.full((2,), 300, dtype=x.dtype), "full", 300),
        (lambda x: minigrad.full_like(x, np.int64(-1)), "full", -1),
        (lambda x: x.__setitem__(0, 300), r"x\[i\] = v", 300),
        (lambda x: x.__setitem__(0, np.int64(-1)), r"x\[i\] = v", -1),
        (lambda x: x.__setitem__(slice(0, 2), [1, 300]), r"x\[i\] = v", 300),
        (lambda x: Tensor([[1], [300]], dtype=x.dtype), "Tensor", 300),
        (lambda x: Tensor(-1, dtype=x.dtype), "Tensor", -1),
    ],
)
def test_values_out_of_range_are_refused(call, op, number, device):
    with pytest.raises(ValueError, match=f"^{op}: uint8 cannot hold {number}; convert first, as with x.float"):
        call(Tensor(np.uint8([1, 2]), device=device))


def test_values_in_range_are_accepted(device):
    x = Tensor(np.uint8([1, 2]), device=device)
    assert minigrad.where(x > 1, 255, x).tolist() == [1, 255] and F.pad(x, (1, 0), value=255).tolist() == [255, 1, 2]
    assert x.maximum(255).tolist() == [255, 255] and minigrad.full((1,), 255, dtype=np.uint8).tolist() == [255]
    assert (x + True).tolist() == [2, 3] and minigrad.where(x > 1, x, 300.0).tolist() == [300, 2]
    x[0] = 255
    assert x.tolist() == [255, 2] and x.dtype == np.uint8
    assert (Tensor(np.array([True]), device=device) + 300).tolist() == [301]


def test_arange_wraps():
    assert minigrad.arange(300, dtype=np.uint8).tolist() == [i % 256 for i in range(300)]
    assert minigrad.arange(-3, 3, dtype=np.uint8).tolist() == [253, 254, 255, 0, 1, 2]
    assert minigrad.arange(100, 200, 50, dtype=np.int8).tolist() == [100, -106]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_takes_targets_of_any_integer_dtype(dtype, smoothing, device):
    x = Tensor(np.random.default_rng(0).standard_normal((4, 200)).astype(np.float32), device=device)

    def loss(dtype, labels, **options):
        labels = Tensor(np.array(labels).astype(dtype), device=device)
        return F.cross_entropy(x, labels, label_smoothing=smoothing, **options).item()

    assert loss(dtype, [0, 127, 5, 9]) == loss(np.int64, [0, 127, 5, 9])
    assert loss(dtype, [0, 127, 5, 9], ignore_index=127) == loss(np.int64, [0, -100, 5, 9])
    if dtype is np.uint8:
        assert loss(dtype, [0, 255, 5, 199], ignore_index=255) == loss(np.int64, [0, -100, 5, 199])
    else:
        assert loss(dtype, [0, -100, 5, 9]) == loss(np.int64, [0, -100, 5, 9])


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_indices_of_small_integer_dtypes(dtype, device):
    x = Tensor(np.arange(600.0).reshape(300, 2), device=device, requires_grad=True)
    index = Tensor(np.array([0, 127, 127], dtype), device=device)
    for y in (x[index], x.index_select(0, index), x.gather(0, index[:, None].to(device))):
        x.grad = None
        y.sum().backward()
        assert y[:, 0].tolist() == [0, 254, 254] and x.grad[127, 0].item() == 2
    assert x[Tensor(np.array([-1], dtype), device=device)][0, 0].item() == 598


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
def test_one_hot_of_small_integer_dtypes(dtype, device):
    index = Tensor(np.array([0, 127, 127], dtype), device=device)
    assert F.one_hot(index, 300).shape == (3, 300) and F.one_hot(index, 300).sum().item() == 3
