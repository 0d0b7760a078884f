"""Every op against PyTorch, values and gradients in float64. The worst differences are shown at the end.

And what types and indices mean."""

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.backend.dtypes import is_half
from tests.cases import ALL_CASES
from tests.compare import TOLERANCE, difference, outcome, torch_outcome

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch: pip install torch")

CASES = [case for case in ALL_CASES if case.torch is not None]


def grad_output(shape):
    return np.random.default_rng(1).standard_normal(shape)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@given(data=st.data())
def test_op_equals_torch(case, parity, data):
    call = data.draw(case.calls)
    ours, theirs = outcome(case, call, grad_output), torch_outcome(torch, case, call, grad_output)
    errors = [difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    parity.add(case.name, errors[0], max(errors[1:], default=0.0))
    assert max(errors) <= TOLERANCE


KINDS = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


def both_of(values, kind):
    """The same numbers as a Tensor and as PyTorch's."""
    return Tensor(np.array(values), dtype=kind), torch.tensor(values, dtype=torch.float64).to(getattr(torch, kind))


@pytest.mark.parametrize("shapes", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("first", KINDS)
def test_two_types_meet_as_in_torch(first, shapes):
    for second in KINDS:
        pairs = [both_of([1.1, 2.7, 3.2] if n else 2.7, kind) for n, kind in zip(shapes, (first, second), strict=True)]
        (a, theirs_a), (b, theirs_b) = pairs
        operations = [operator.add, operator.mul, operator.eq, operator.lt, operator.ge]
        operations += [operator.truediv] * ("bool" not in (first, second))
        operations += [operator.and_, operator.xor] * ("float" not in first + second)
        for operation in operations:
            y, theirs = operation(a, b), operation(theirs_a, theirs_b)
            assert y.dtype.name == str(theirs.dtype).removeprefix("torch."), operation
            rtol = 2**-7 if is_half(y.dtype) else 0  # PyTorch does not round a 0-d 16-bit tensor
            np.testing.assert_allclose(y.double().numpy(), theirs.double().numpy(), rtol, err_msg=str(operation))


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int32"])
def test_arithmetic_with_python_integers_wraps_as_in_torch(kind):
    """Comparisons do not: PyTorch wraps there too, so that uint8's 44 equals 300; here they are exact, as in NumPy."""
    x, theirs_x = both_of([0, 1, 44, 100], kind)
    for number in (-300, -1, 128, 300, 70000):
        arithmetic = [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]
        for operation in [*arithmetic, lambda a, b: b - a, lambda a, b: b**a]:
            y, theirs = operation(x, number), operation(theirs_x, number)
            assert y.dtype.name == kind == str(theirs.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(y.numpy(), theirs.numpy())
    y, theirs = minigrad.arange(-3, 300, 7, dtype=kind), torch.arange(-3, 300, 7, dtype=getattr(torch, kind))
    np.testing.assert_array_equal(y.numpy(), theirs.numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", ["sum", "prod", "cumsum", "amax"])
def test_reductions_have_torchs_types(kind, reduce):
    x, theirs = both_of([3.0, 1.0, 2.0], kind)
    y, theirs = (getattr(t, reduce)(0) for t in (x, theirs))
    assert y.dtype.name == str(theirs.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(y.double().numpy(), theirs.double().numpy())


@given(data=st.data())
def test_an_index_means_what_it_means_in_torch(data):
    shape = data.draw(st.sampled_from([(2, 3, 4), (3, 2), (2, 2, 2, 3)]))
    array = np.arange(float(np.prod(shape)))
    pairs = []
    for size in shape[: data.draw(st.integers(1, len(shape)))]:
        at = st.integers(-size, size - 1)
        drawn = data.draw(at | at.map(np.array) | st.lists(at, min_size=2, max_size=2).map(np.array) | st.just(None))
        if isinstance(drawn, np.ndarray):
            pairs.append((Tensor(drawn), torch.tensor(drawn)))
        else:
            pairs.append((slice(None), slice(None)) if drawn is None else (drawn, drawn))
    ours, theirs = zip(*pairs, strict=True)
    x, theirs_x = Tensor(array.reshape(shape), requires_grad=True), torch.tensor(array.reshape(shape))
    y = x[ours]
    np.testing.assert_array_equal(y.numpy(), theirs_x[theirs].numpy())
    y.sum().backward()
    theirs_x.requires_grad_()[theirs].sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), theirs_x.grad.numpy())
    x, theirs_x = x.detach(), theirs_x.detach()
    x[ours] = theirs_x[theirs] = -1
    np.testing.assert_array_equal(x.numpy(), theirs_x.numpy())
