"""Run an op in minigrad and in PyTorch, and compare outputs and gradients."""

import warnings

import numpy as np

import minigrad
from minigrad import Tensor

TOLERANCE = 1e-10  # in float64


def randn(*shape):
    """A float64 array of standard normal values. Each call returns new values, the same in each run of a test."""
    return minigrad.randn(*shape, dtype=np.float64).numpy()


def value_and_grad(function, *values, dtype=np.float64):
    """The output at these values, and the gradient of its sum with respect to each, as arrays."""
    tensors = [Tensor(np.array(value, dtype), requires_grad=True) for value in values]
    y = function(*tensors)
    y.backward(Tensor(np.ones(y.shape, dtype)))
    return y.data, *(tensor.grad.data for tensor in tensors)


def assert_close(results, *expected):
    """Each array equals the expected one up to a relative error of 1e-15."""
    for actual, desired in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-15)


def forward_backward(case, call, grad_output):
    """The output of a call, and the gradients of its differentiable inputs."""
    differentiable = case.differentiable_inputs(call)
    tensors = [None if x is None else Tensor(x, requires_grad=i in differentiable) for i, x in enumerate(call.inputs)]
    y = case.run(*tensors, **call.options)
    y.backward(Tensor(grad_output(y.shape)))
    return [y.data, *(tensors[i].grad.data for i in differentiable)]


def torch_forward_backward(torch, case, call, grad_output):
    """The output and gradients of a call in PyTorch."""
    differentiable = case.differentiable_inputs(call)
    tensors = [None if x is None else torch.tensor(x.copy()) for x in call.inputs]
    for i in differentiable:
        tensors[i].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's advice on its own use
        y = case.torch(torch, *tensors, **call.options)
        y.backward(torch.tensor(grad_output(tuple(y.shape))))
    gradients = ((tensors[i], tensors[i].grad) for i in differentiable)
    return [y.detach().numpy(), *((torch.zeros_like(x) if grad is None else grad).numpy() for x, grad in gradients)]


def relative_error(actual, expected, floor=1e-3):
    """The maximum error over the maximum absolute entry. NaN and infinities must be at the same places.

    The denominator is at least `floor`: smaller entries are rounding errors of larger terms that cancel.
    """
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.where(finite, 0, actual), np.where(finite, 0, expected))
    largest = np.max(abs(expected), initial=floor, where=finite)
    return float(np.max(abs(actual - expected), initial=0, where=finite) / largest)
