"""What people who come from PyTorch or NumPy try: it works as there, or says what to do instead."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Function, Tensor, nn, optim

X32 = Tensor(np.array([1.0, 2.0, 3.0], np.float32), requires_grad=True)
INTS = Tensor([1, 2, 3])


@pytest.mark.parametrize(
    "result",
    [
        lambda: INTS / 2, lambda: INTS / INTS, lambda: INTS * 0.5, lambda: Tensor(np.uint8([5])) / 255,
        lambda: INTS.exp(), lambda: INTS.erf(), lambda: Tensor(np.uint8([5])).sigmoid(), lambda: INTS.sqrt(),
        lambda: X32 * INTS, lambda: X32 + np.array([1, 2, 3]), lambda: X32 * Tensor(np.float64(2)),
        lambda: X32 * np.float64(2), lambda: X32.sum() / (INTS == 1).sum(), lambda: minigrad.cat([X32, INTS]),
        lambda: F.mse_loss(X32, INTS), lambda: minigrad.where(INTS > 1, 1.0, 0.0), lambda: X32.clamp(min=np.float64(0)),
        lambda: F.layer_norm(X32, 3, eps=np.float64(1e-5)), lambda: nn.DropPath(np.linspace(0, 0.1, 3)[1])(X32),
        lambda: F.dropout(X32, np.float64(0.5)), lambda: X32.maximum(INTS), lambda: X32**INTS,
        lambda: X32 @ INTS, lambda: F.cross_entropy(X32, Tensor(np.array([0.2, 0.3, 0.5]))),
        lambda: INTS.clamp(min=1.5), lambda: F.linear(INTS, X32[None]), lambda: F.linear(X32, INTS[None]),
        lambda: minigrad.einsum("i,i->", INTS, X32), lambda: minigrad.einsum("i,i->i", X32, INTS),
    ],
)  # fmt: skip
def test_float32_never_becomes_float64_by_accident(result):
    assert result().dtype == np.float32


def test_products_of_two_floating_types_are_of_the_wider():
    x, wide = minigrad.rand(1, 2, 3, 3, requires_grad=True), Tensor(np.ones((4, 2, 3, 3)), requires_grad=True)
    products = (
        x.flatten() @ wide.flatten(1).T, F.linear(x.flatten(), wide.flatten(1)), F.conv2d(x, wide).flatten(),
        minigrad.einsum("nchw,ochw->o", x, wide),
    )  # fmt: skip
    for y in products:
        x.grad = wide.grad = None
        np.testing.assert_allclose(y.numpy(), np.full(4, x.data.sum(dtype=np.float64)), rtol=1e-14)
        y.sum().backward()
        assert (y.dtype, x.grad.dtype, wide.grad.dtype) == (np.float64, np.float32, np.float64)
    y = F.conv2d(x, Tensor(np.ones((4, 2, 3, 3), np.float32)), Tensor(np.full(4, 1e-12)))
    assert y.dtype == np.float64


def test_an_array_without_axes_does_not_widen():
    assert (Tensor([0.1]) == Tensor(0.1, dtype=np.float64)).item() and (Tensor(np.float64(0.1)) <= Tensor([0.1])).item()
    small = Tensor(np.uint8([1, 2]))
    for y in (small + Tensor(1), Tensor(1) * small, small.maximum(Tensor(1)), small ^ Tensor(3)):
        assert y.dtype == np.uint8
    assert (Tensor(np.int32([1])) + Tensor(1)).dtype == np.int32 and (Tensor([True]) + Tensor(1)).dtype == np.int64
    assert (Tensor(np.int32(1)) + Tensor(1)).dtype == np.int64 and (small + Tensor(np.int8([1]))).dtype == np.int16


def test_values_of_promoted_integers():
    np.testing.assert_allclose(INTS.erf().numpy()[:2], [0.84270079, 0.99532227], rtol=1e-6)
    assert (INTS / INTS).tolist() == [1, 1, 1] and (INTS + INTS).dtype == np.int64
    assert Tensor(np.uint8([0, 5])).amin().item() == 0 and Tensor(np.int8([-128, 5])).amin().item() == -128
    assert INTS.clamp(min=1.5, max=2).tolist() == [1.5, 2, 2] and INTS.clamp(min=2).dtype == np.int64
    assert not Tensor([True, False]).amin().item() and minigrad.full((2,), 7).dtype == np.int64
    (X32 * INTS).sum().backward()
    assert X32.grad.dtype == np.float32


def test_writing_follows_the_rule_of_reading():
    x = minigrad.zeros(2, 3, 4)
    x[0, :, [0, 1]] = Tensor([[1.0, 2.0]] * 3)
    assert x[0, :, [0, 1]].tolist() == [[1, 2]] * 3 and x.sum().item() == 9
    with pytest.raises(RuntimeError, match="gradient would be lost"):
        x[0, 0, 0] = X32[0]
    y = Tensor([1.0, 2.0], requires_grad=True)
    y[(0, 0),].sum().backward()
    assert y.grad.tolist() == [2, 0]


def test_an_index_may_change_after_it_was_used():
    x, index = Tensor([1.0, 2.0, 3.0], requires_grad=True), np.array([0, 0])
    y = x[index]
    index[:] = 2
    y.sum().backward()
    assert x.grad.tolist() == [2, 0, 0]


def test_gradients_without_axes_are_arrays():
    x = Tensor(np.float32(3.0), requires_grad=True)
    (x[None].sum() + x * 3).backward()
    assert isinstance(x.grad.data, np.ndarray) and x.grad.item() == 4
    assert optim.clip_grad_norm_(x, 1.0).item() == 4 and x.grad.item() == pytest.approx(1, rel=1e-5)


def test_a_masked_out_infinity_leaves_the_gradient_alone():
    with np.errstate(divide="ignore"):
        x = Tensor([-1.0, 4.0], requires_grad=True)
        F.relu(x).sqrt().sum().backward()
        assert x.grad.tolist() == [0, 0.25]
        x.grad = None
        minigrad.where(x > 0, x, 0.0).sqrt().sum().backward()
        assert x.grad.tolist() == [0, 0.25]


def test_a_hook_may_keep_the_gradient():
    x, kept = Tensor([1.0], requires_grad=True), []
    x.register_hook(kept.append)
    for _ in range(2):
        (x * 2).sum().backward()
    assert [g.tolist() for g in kept] == [[2], [2]] and x.grad.tolist() == [4]
    x.register_hook(lambda grad: grad.numpy())
    with pytest.raises(TypeError, match="a hook returns None or a Tensor"):
        (x * 2).sum().backward()


def test_no_grad_may_be_written_without_brackets():
    @minigrad.no_grad
    def double(x):
        return x * 2

    assert not double(X32).requires_grad and (X32 * 2).requires_grad
    assert ((INTS > 1) & (INTS < 3) | (INTS == 1)).tolist() == [True, True, False]
    assert (True & (INTS > 1)).tolist() == (False | (INTS > 1)).tolist() == [False, True, True]
    assert (True ^ (INTS > 1)).tolist() == [True, False, False] and (6 & INTS).tolist() == [0, 2, 2]


def test_a_model_takes_keywords_and_stays_where_it_is():
    layer = nn.Linear(3, 2)
    layer(x=X32).sum().backward()
    assert layer.to("cpu").weight.grad is not None
    assert layer.to(np.float64).weight.grad is None and layer.weight.dtype == np.float64


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
        (lambda: X32 * [1.0, 2.0, 3.0], TypeError, r"wrap it in Tensor\(\.\.\.\)"),
        (lambda: X32 + 1j, TypeError, "real numbers, got complex"),
        (lambda: F.where(True, X32, 0.0), TypeError, "where: the condition must be a Tensor of bool, got bool"),
        (lambda: INTS**-1, ValueError, "negative integer powers"),
        (lambda: X32.to("gpu"), ValueError, 'a device "cpu" or "cuda"'),
        (lambda: F.pad(X32, 1), ValueError, "pad: needs widths"),
        (lambda: Tensor(1.0).unbind(), ValueError, "no axis to unbind"),
        (lambda: nn.Sequential([nn.Linear(2, 3)]), TypeError, "Sequential: holds Modules, got list"),
        (lambda: nn.Sequential(nn.Linear(2, 3), F.relu), TypeError, "holds Modules, got function"),
        (lambda: minigrad.rand(2, -1), ValueError, "must not be negative"),
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
            lambda: F.scaled_dot_product_attention(*[minigrad.ones(2, 3)] * 3, minigrad.ones(2, 2, dtype=np.int64)),
            TypeError,
            "the mask must be boolean, or floating-point",
        ),
    ],
)
def test_mistakes_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()
