"""All ops against PyTorch, outputs and gradients in float64; type promotion, integer arithmetic, and indexing.

pytest prints the maximum errors at the end of the run.
"""

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.backend.dtypes import is_half
from tests.cases import ALL_CASES
from tests.compare import TOLERANCE, forward_backward, relative_error, torch_forward_backward

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch: pip install -e '.[reference]'")

CASES = [case for case in ALL_CASES if case.torch is not None]


def grad_output(shape):
    return np.random.default_rng(1).standard_normal(shape)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@given(data=st.data())
def test_ops_equal_pytorch(case, worst_errors, data):
    call = data.draw(case.calls)
    actual, expected = forward_backward(case, call, grad_output), torch_forward_backward(torch, case, call, grad_output)
    errors = [relative_error(a, b) for a, b in zip(actual, expected, strict=True)]
    worst_errors.add(case.name, errors[0], max(errors[1:], default=0.0))
    assert max(errors) <= TOLERANCE


DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


def tensors_of(values, dtype):
    """The same values as a Tensor of minigrad and of PyTorch."""
    return Tensor(np.array(values), dtype=dtype), torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))


@pytest.mark.parametrize("shapes", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("first", DTYPES)
def test_type_promotion_equals_pytorch(first, shapes):
    for second in DTYPES:
        pairs = [
            tensors_of([1.1, 2.7, 3.2] if n else 2.7, dtype) for n, dtype in zip(shapes, (first, second), strict=True)
        ]
        (a, torch_a), (b, torch_b) = pairs
        operations = [operator.add, operator.mul, operator.eq, operator.lt, operator.ge]
        operations += [operator.truediv] * ("bool" not in (first, second))
        operations += [operator.and_, operator.xor] * ("float" not in first + second)
        for operation in operations:
            y, expected = operation(a, b), operation(torch_a, torch_b)
            assert y.dtype.name == str(expected.dtype).removeprefix("torch."), operation
            rtol = 2**-7 if is_half(y.dtype) else 0  # PyTorch does not round 0-d half-precision tensors
            np.testing.assert_allclose(y.double().numpy(), expected.double().numpy(), rtol, err_msg=str(operation))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32"])
def test_arithmetic_with_python_integers_wraps_as_in_pytorch(dtype):
    """Comparisons are not tested: PyTorch wraps, so that uint8 44 == 300; minigrad and NumPy compare exactly."""
    x, torch_x = tensors_of([0, 1, 44, 100], dtype)
    for number in (-300, -1, 128, 300, 70000):
        arithmetic = [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]
        for operation in [*arithmetic, lambda a, b: b - a, lambda a, b: b**a]:
            y, expected = operation(x, number), operation(torch_x, number)
            assert y.dtype.name == dtype == str(expected.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(y.numpy(), expected.numpy())
    y, expected = minigrad.arange(-3, 300, 7, dtype=dtype), torch.arange(-3, 300, 7, dtype=getattr(torch, dtype))
    np.testing.assert_array_equal(y.numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduce", ["sum", "prod", "cumsum", "amax"])
def test_dtypes_of_reductions_equal_pytorch(dtype, reduce):
    y, expected = (getattr(x, reduce)(0) for x in tensors_of([3.0, 1.0, 2.0], dtype))
    assert y.dtype.name == str(expected.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(y.double().numpy(), expected.double().numpy())


@given(data=st.data())
def test_indexing_equals_pytorch(data):
    shape = data.draw(st.sampled_from([(2, 3, 4), (3, 2), (2, 2, 2, 3)]))
    array = np.arange(float(np.prod(shape)))
    pairs = []
    for size in shape[: data.draw(st.integers(1, len(shape)))]:
        at = st.integers(-size, size - 1)
        part = data.draw(at | at.map(np.array) | st.lists(at, min_size=2, max_size=2).map(np.array) | st.just(None))
        if isinstance(part, np.ndarray):
            pairs.append((Tensor(part), torch.tensor(part)))
        else:
            pairs.append((slice(None), slice(None)) if part is None else (part, part))
    index, torch_index = zip(*pairs, strict=True)
    x, torch_x = Tensor(array.reshape(shape), requires_grad=True), torch.tensor(array.reshape(shape))
    y = x[index]
    np.testing.assert_array_equal(y.numpy(), torch_x[torch_index].numpy())
    y.sum().backward()
    torch_x.requires_grad_()[torch_index].sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), torch_x.grad.numpy())
    x, torch_x = x.detach(), torch_x.detach()
    x[index] = torch_x[torch_index] = -1
    np.testing.assert_array_equal(x.numpy(), torch_x.numpy())
