"""Error messages for common mistakes of PyTorch and NumPy users: each names the likely fix."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Function, Tensor, nn, optim

X32 = Tensor(np.array([1.0, 2.0, 3.0], np.float32), requires_grad=True)
INTS = Tensor([1, 2, 3])


class _Returns(Function):
    def forward(self, x, *, forward, backward):
        self.result = backward
        return x if forward is None else forward

    def backward(self, grad_output):
        return self.result


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.relu([1.0]), TypeError, "ReLU: takes Tensors, arrays and real numbers, got list"),
        (lambda: X32 * [1.0, 2.0, 3.0], TypeError, r"convert with Tensor\(\.\.\.\)"),
        (lambda: X32 + 1j, TypeError, "real numbers, got complex"),
        (lambda: F.where(True, X32, 0.0), TypeError, "where: the condition must be a Tensor of bool, got bool"),
        (lambda: INTS**-1, ValueError, "negative integer powers"),
        (lambda: X32.to("gpu"), ValueError, 'a device "cpu" or "cuda"'),
        (lambda: F.pad(X32, 1), ValueError, "pad: needs widths"),
        (lambda: Tensor(1.0).unbind(), ValueError, "no axis to unbind"),
        (lambda: nn.Sequential([nn.Linear(2, 3)]), TypeError, "Sequential: elements must be Modules, got list"),
        (lambda: nn.Sequential(nn.Linear(2, 3), F.relu), TypeError, "elements must be Modules, got function"),
        (lambda: minigrad.rand(2, -1), ValueError, "must not have negative sizes"),
        (lambda: minigrad.randn(2, dtype=np.int64), TypeError, "floating-point"),
        (lambda: nn.init.kaiming_normal_(nn.Parameter(np.ones((2, 2))), mode="fanin"), ValueError, "fan_in"),
        (lambda: optim.AdamW([X32]).load_state_dict({}), ValueError, "lacks 0.lr"),
        (lambda: Tensor.apply(_Returns, X32, forward=1.0, backward=None), TypeError, "forward must return an array"),
        (
            lambda: Tensor.apply(_Returns, X32, forward=None, backward=[1.0]).sum().backward(),
            TypeError,
            "backward must return arrays or None, got list",
        ),
        (
            lambda: Tensor.apply(_Returns, X32, forward=X32.data, backward=X32).sum().backward(),
            TypeError,
            "backward must return arrays or None, got Tensor",
        ),
        (
            lambda: F.scaled_dot_product_attention(*[minigrad.ones(2, 3)] * 3, minigrad.ones(2, 2, dtype=np.int64)),
            TypeError,
            "the mask must be boolean, or floating-point",
        ),
    ],
)
def test_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_errors_of_ops_list_shapes_and_dtypes():
    with pytest.raises(ValueError, match=r"add: shapes \(2,\) and \(3,\) do not broadcast"):
        Tensor([1.0, 2.0]) + Tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="matmul") as caught:
        Tensor(np.ones((2, 3), np.float32)) @ Tensor(np.ones((2, 3), np.float32))
    assert any("inputs of MatMul: (2, 3) float32, (2, 3) float32" in note for note in caught.value.__notes__)
