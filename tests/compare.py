"""One call of an op, here and in PyTorch: its output and gradients, and how far they are apart."""

import warnings

import numpy as np

from minigrad import Tensor

TOLERANCE = 1e-10  # in float64


def outcome(case, call, grad_output):
    """The output, and the gradients of the inputs that have one."""
    wanted = case.wanted(call)
    tensors = [None if x is None else Tensor(x, requires_grad=i in wanted) for i, x in enumerate(call.inputs)]
    y = case.run(*tensors, **call.options)
    y.backward(Tensor(grad_output(y.shape)))
    return [y.data, *(tensors[i].grad.data for i in wanted)]


def at(function, *values, dtype=np.float64):
    """The output at these values, and the gradient of its sum with respect to each, as arrays."""
    tensors = [Tensor(np.array(value, dtype), requires_grad=True) for value in values]
    y = function(*tensors)
    y.backward(Tensor(np.ones(y.shape, dtype)))
    return y.data, *(tensor.grad.data for tensor in tensors)


def torch_outcome(torch, case, call, grad_output):
    """The same, by PyTorch."""
    wanted = case.wanted(call)
    tensors = [None if x is None else torch.tensor(x.copy()) for x in call.inputs]
    for i in wanted:
        tensors[i].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's advice on its own use
        y = case.torch(torch, *tensors, **call.options)
        y.backward(torch.tensor(grad_output(tuple(y.shape))))
    gradients = ((tensors[i], tensors[i].grad) for i in wanted)
    return [y.detach().numpy(), *((torch.zeros_like(x) if grad is None else grad).numpy() for x, grad in gradients)]


def difference(ours, theirs):
    """The largest difference, relative to the largest entry; NaN must meet NaN, and an infinity its like.

    A tensor of entries below 1e-3 is what cancellation leaves of larger numbers: it is measured against 1e-3.
    """
    assert ours.shape == theirs.shape
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(np.where(finite, 0, ours), np.where(finite, 0, theirs))
    largest = np.max(abs(theirs), initial=1e-3, where=finite)
    return float(np.max(abs(ours - theirs), initial=0, where=finite) / largest)
