"""Rounding errors of float32 sums beside PyTorch's own: at most three times as large, or 2 units in the last place.

Both are measured against PyTorch in float64.
"""

import numpy as np
import pytest

from minigrad import Tensor
from minigrad import functional as F
from tests.accuracy import ALONG_ONE_AXIS, AXES, LAYOUTS, PARAMETERS, REDUCTIONS, drawn, ulps

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch: pip install 'minigrad[reference]'")


def ours(run, arrays):
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    y = run(F, *tensors)
    y.backward(Tensor(drawn(9, *y.shape)))
    return [y.numpy(), *(t.grad.numpy() for t in tensors)]


def theirs(run, arrays):
    tensors = [torch.from_numpy(x.copy() if min(x.strides) < 0 else x).requires_grad_() for x in arrays]
    y = run(torch.nn.functional, *tensors)
    y.backward(torch.from_numpy(drawn(9, *y.shape)).to(y.dtype))
    return [y.detach().numpy(), *(t.grad.numpy() for t in tensors)]


def assert_as_exact_as_torch(run, *arrays):
    exact = theirs(run, [x.astype(np.float64) for x in arrays])
    for our, their, true in zip(ours(run, arrays), theirs(run, arrays), exact, strict=True):
        assert ulps(our, true) <= max(3 * ulps(their, true), 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, layout):
    for shape, axis in AXES:
        assert_as_exact_as_torch(lambda F, x: REDUCTIONS[name](x, axis), LAYOUTS[layout](drawn(0, *shape)))  # noqa: B023


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALONG_ONE_AXIS)
def test_ops_along_one_axis(name, layout):
    run, x = ALONG_ONE_AXIS[name]
    assert_as_exact_as_torch(run, LAYOUTS[layout](x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_of_parameters(name):
    run, arrays = PARAMETERS[name]
    assert_as_exact_as_torch(run, *arrays)
