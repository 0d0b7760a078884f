"""`minigrad.utils.checkpoint.checkpoint`: the gradients of a module and of a function."""

import numpy as np
import pytest

from minigrad import Tensor, nn, no_grad
from minigrad.utils.checkpoint import checkpoint


def test_module_and_function_have_the_same_gradients_as_without():
    net, calls = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), []
    net.register_forward_hook(lambda *_: calls.append(1))
    grads = []
    for run in (
        net,
        lambda x: checkpoint(net, x, use_reentrant=False),
        lambda x: checkpoint(lambda a, k: net(a) * k, x, 1),
    ):
        x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
        net.zero_grad()
        run(x).sum().backward()
        grads.append([x.grad.numpy(), *(p.grad.numpy() for p in net.parameters() if p.grad is not None)])
    assert len(calls) == 5  # each checkpoint runs the forward twice
    for a, b in zip(grads[0], grads[1], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(grads[0][0], grads[2][0])


def test_other_arguments_must_not_require_gradients():
    x = Tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match="only the first argument"):
        checkpoint(lambda a, b: a * b, x, x)
    with no_grad():
        assert not checkpoint(lambda a, b: a * b, x, Tensor([2.0])).requires_grad
