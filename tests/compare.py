"""Output and gradients of one call of an op, in minigrad and in PyTorch, and their difference."""

import warnings

import numpy as np

from minigrad import Tensor

TOLERANCE = 1e-10  # in float64


def outcome(case, call, grad_output):
    """The output, and the gradients of all differentiable inputs."""
    wanted = case.wanted(call)
    tensors = [None if x is None else Tensor(x, requires_grad=i in wanted) for i, x in enumerate(call.inputs)]
    y = case.run(*tensors, **call.options)
    y.backward(Tensor(grad_output(y.shape)))
    return [y.data, *(tensors[i].grad.data for i in wanted)]


def at(function, *values, dtype=np.float64):
    """The output for these values, and the gradients of its sum with respect to each value, as arrays."""
    tensors = [Tensor(np.array(value, dtype), requires_grad=True) for value in values]
    y = function(*tensors)
    y.backward(Tensor(np.ones(y.shape, dtype)))
    return y.data, *(tensor.grad.data for tensor in tensors)


def torch_outcome(torch, case, call, grad_output):
    """`outcome` in PyTorch."""
    wanted = case.wanted(call)
    tensors = [None if x is None else torch.tensor(x.copy()) for x in call.inputs]
    for i in wanted:
        tensors[i].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about deprecated arguments
        y = case.torch(torch, *tensors, **call.options)
        y.backward(torch.tensor(grad_output(tuple(y.shape))))
    gradients = ((tensors[i], tensors[i].grad) for i in wanted)
    return [y.detach().numpy(), *((torch.zeros_like(x) if grad is None else grad).numpy() for x, grad in gradients)]


def difference(ours, theirs):
    """The largest difference, relative to the largest element, but at least to 1e-3; NaN and ±∞ must be equal.

    The errors of smaller results, which come from cancellation, are relative to the terms that cancelled.
    """
    assert ours.shape == theirs.shape
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(np.where(finite, 0, ours), np.where(finite, 0, theirs))
    largest = np.max(abs(theirs), initial=1e-3, where=finite)
    return float(np.max(abs(ours - theirs), initial=0, where=finite) / largest)
