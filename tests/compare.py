"""One call of an op, here and in PyTorch: its output and gradients, and how far they are apart."""

import warnings

import numpy as np

from minigrad import Tensor

TOLERANCE = 1e-10  # in float64


def outcome(case, call, grad_output):
    """The output, and the gradients of the inputs that have one."""
    wanted = case.wanted(call)
    tensors = [None if x is None else Tensor(x, requires_grad=i in wanted) for i, x in enumerate(call.inputs)]
    y = case.run(*tensors, **call.choices)
    y.backward(Tensor(grad_output(y.shape)))
    return [y.data, *(tensors[i].grad.data for i in wanted)]


def torch_outcome(torch, case, call, grad_output):
    """The same, by PyTorch."""
    wanted = case.wanted(call)
    tensors = [None if x is None else torch.tensor(x.copy()) for x in call.inputs]
    for i in wanted:
        tensors[i].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's advice on its own use
        y = case.torch(torch, *tensors, **call.choices)
        y.backward(torch.tensor(grad_output(tuple(y.shape))))
    grads = [tensors[i].grad for i in wanted]
    return [y.detach().numpy(), *(np.zeros(call.inputs[i].shape) if g is None else g.numpy() for i, g in zip(wanted, grads, strict=True))]


def difference(ours, theirs):
    """The largest difference, relative to the largest entry; NaN must meet NaN, and an infinity its like.

    A tensor of entries below 1e-3 is what cancellation leaves of larger numbers: it is measured against 1e-3.
    """
    assert ours.shape == theirs.shape
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    return float(np.max(abs(ours - theirs), initial=0, where=finite) / np.max(abs(theirs), initial=1e-3, where=finite))
