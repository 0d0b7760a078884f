"""The plain engine and the real engine give the same gradients: of every op, and of a training step of a ViT."""

import numpy as np
import pytest
from hypothesis import given

import minigrad.functional as F
from minigrad import Tensor, is_grad_enabled, no_grad, without_fast_paths
from minigrad.autograd import plain
from minigrad.ops.elementwise import Mul
from minigrad.ops.reduction import Sum
from models import create_model
from tests.cases import ALL_CASES


def as_variable(x):
    """The Variable of a Tensor. If the Tensor requires a gradient, its Variable is stored as `_node`."""
    if not isinstance(x, Tensor):
        return x
    if x.requires_grad and not isinstance(x._node, plain.Variable):
        x._node = plain.Variable(x.data, requires_grad=True)
    return x._node or plain.Variable(x.data)


@pytest.fixture
def on_the_plain_engine(monkeypatch):
    """`run(function, ...)`: call a function while the plain engine replaces `Tensor.apply`."""

    def tensor(y):
        result = Tensor(y.data)
        result._node = y if y.requires_grad else None
        return result

    def apply(function, *inputs, **options):
        inputs = [as_variable(x) if is_grad_enabled() else getattr(x, "data", x) for x in inputs]
        output = plain.apply(function, *inputs, **options)
        return tuple(map(tensor, output)) if isinstance(output, tuple) else tensor(output)

    def run(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "apply", staticmethod(apply))
            return function(*arguments, **options)

    return run


def gradients_of(case, call, run, backward):
    """The output of a drawn call, and the gradient of each differentiable input."""
    wanted = case.differentiable_inputs(call)
    tensors = [None if x is None else Tensor(x, requires_grad=i in wanted) for i, x in enumerate(call.inputs)]
    y = run(case.run, *tensors, **call.options)
    if not y.requires_grad:
        return [y.data]
    backward(y, np.linspace(-1, 1, y.data.size).reshape(y.shape))
    return [y.data, *(leaf_gradient(tensors[i]) for i in wanted)]


def leaf_gradient(tensor):
    """The gradient of a leaf in either engine: `_node` is a Leaf or a Variable."""
    grad = tensor._node.grad
    return np.zeros(tensor.shape) if grad is None else grad


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_ops_match_the_real_engine(case, on_the_plain_engine):
    @given(call=case.calls)
    def check(call):
        with without_fast_paths():
            expected = gradients_of(case, call, lambda f, *a, **k: f(*a, **k), lambda y, g: y.backward(Tensor(g)))
            actual = gradients_of(case, call, on_the_plain_engine, lambda y, g: plain.backward(as_variable(y), g))
        assert len(actual) == len(expected)
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)

    check()


def test_vit_step_matches_the_real_engine(on_the_plain_engine):
    images, labels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)), Tensor([3, 1])

    def loss_of(model):
        return F.cross_entropy(model(Tensor(images)), labels)

    expected, actual = (create_model("vit_nano_cifar").to(dtype=np.float64) for _ in range(2))
    actual.load_state_dict(expected.state_dict())
    with without_fast_paths():
        loss, plain_loss = loss_of(expected), on_the_plain_engine(loss_of, actual)
        loss.backward()
        plain.backward(plain_loss._node)
    assert plain_loss.item() == loss.item()
    pairs = list(zip(actual.parameters(), expected.parameters(), strict=True))
    assert len(pairs) > 50
    for p, q in pairs:
        np.testing.assert_allclose(p._node.grad, q.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_input_used_twice_gets_both_gradients():
    x = plain.Variable(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    y = plain.apply(Sum, plain.apply(Mul, x, x), axis=None, keepdims=False)
    plain.backward(y)
    np.testing.assert_array_equal(x.grad, [2, 4, 6])


DTYPES = [np.float16, np.float32, np.float64, np.int64, bool]


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_promotion_matches_the_real_engine(first, second, on_the_plain_engine):
    def product(x, y):
        return x * y

    x, y = Tensor(np.ones(2, first)), Tensor(np.ones(2, second))
    assert on_the_plain_engine(product, x, y).dtype == product(x, y).dtype


def test_nothing_is_recorded_for_constants(on_the_plain_engine):
    assert plain.apply(Mul, plain.Variable(np.ones(2)), 3.0).call is None
    x = Tensor([1.0], requires_grad=True)
    with no_grad():
        assert not on_the_plain_engine(lambda: x * 2).requires_grad
