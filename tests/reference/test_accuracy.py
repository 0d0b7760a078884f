"""Rounding errors of float32 sums: at most three times PyTorch's error, or 2 units in the last place (ulps).

PyTorch in float64 is the exact value for both.
"""

import numpy as np
import pytest

from minigrad import Tensor
from minigrad import functional as F
from tests.accuracy import ALONG_ONE_AXIS, AXES, LAYOUTS, PARAMETERS, REDUCTIONS, rand, ulps

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch: pip install -e '.[reference]'")


def minigrad_results(run, arrays):
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    y = run(F, *tensors)
    y.backward(Tensor(rand(9, *y.shape)))
    return [y.numpy(), *(t.grad.numpy() for t in tensors)]


def torch_results(run, arrays):
    tensors = [torch.from_numpy(x.copy() if min(x.strides) < 0 else x).requires_grad_() for x in arrays]
    y = run(torch.nn.functional, *tensors)
    y.backward(torch.from_numpy(rand(9, *y.shape)).to(y.dtype))
    return [y.detach().numpy(), *(t.grad.numpy() for t in tensors)]


def assert_accurate_as_pytorch(run, *arrays):
    exact = torch_results(run, [x.astype(np.float64) for x in arrays])
    for actual, torch_value, exact_value in zip(
        minigrad_results(run, arrays), torch_results(run, arrays), exact, strict=True
    ):
        assert ulps(actual, exact_value) <= max(3 * ulps(torch_value, exact_value), 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_are_accurate_as_pytorch(name, layout):
    for shape, axis in AXES:
        assert_accurate_as_pytorch(lambda F, x: REDUCTIONS[name](x, axis), LAYOUTS[layout](rand(0, *shape)))  # noqa: B023


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALONG_ONE_AXIS)
def test_ops_along_one_axis_are_accurate_as_pytorch(name, layout):
    run, x = ALONG_ONE_AXIS[name]
    assert_accurate_as_pytorch(run, LAYOUTS[layout](x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_gradients_are_accurate_as_pytorch(name):
    run, arrays = PARAMETERS[name]
    assert_accurate_as_pytorch(run, *arrays)
