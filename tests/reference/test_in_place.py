"""In-place operators, requires_grad_, several Ellipses, negative padding: PyTorch's result, or also an error."""

import operator

import numpy as np
import pytest

import minigrad
from minigrad import Tensor

torch = pytest.importorskip("torch")

OPERATORS = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow
)  # fmt: skip
DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")


def minigrad_tensor(values, dtype, grad=False):
    return Tensor(np.array(values).astype(dtype), requires_grad=grad)


def torch_tensor(values, dtype, grad=False):
    return torch.tensor(np.array(values).astype(dtype), requires_grad=grad)


def result_or_error(library, tensor, program):
    """The values that the program returns, or "an error"."""
    try:
        return [None if x is None else np.asarray(x.detach().cpu().numpy(), np.float64).tolist()
                for x in program(library, tensor)]  # fmt: skip
    except (RuntimeError, TypeError, ValueError, IndexError):
        return "an error"


def assert_equals_pytorch(program):
    assert result_or_error(minigrad, minigrad_tensor, program) == result_or_error(torch, torch_tensor, program)


@pytest.mark.parametrize("in_place", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("left", DTYPES)
@pytest.mark.parametrize("right", [*DTYPES, "int", "float"])
def test_dtypes_of_in_place_operators(in_place, left, right):
    if in_place is operator.isub and right == "bool":
        pytest.skip("PyTorch refuses x - mask, in place or not")

    def program(library, tensor):
        x = tensor([1, 2], left)
        y = {"int": 2, "float": 0.5}.get(right)
        view = x[:1]
        in_place(x, tensor([1, 1], right) if y is None else y)
        return x, view

    assert_equals_pytorch(program)


def _write_then_backward(formula):
    def program(library, tensor):
        w, x = tensor([1, 2], "float32", True), tensor([3, 4], "float32")
        loss = formula(w, x).sum()
        with library.no_grad():
            w -= 1
        loss.backward()
        return w, w.grad

    return program


def _requires_grad_off_and_on(on):
    def program(library, tensor):
        p = tensor([1, 2], "float32", True)
        p.register_hook(lambda grad: grad * 3)
        first, second = (p * p).sum(), (p * 2).sum()
        p.sum().backward()
        p.requires_grad_(False)
        first.backward()
        p.requires_grad_(on)
        second.backward()
        return p.grad, p

    return program


def _total(library, tensor):
    total, x = tensor(0.0, "float32"), tensor([1, 2], "float32", True)
    for _ in range(3):
        total += (x * x).sum()
    total.backward()
    return total, x.grad


def _under_no_grad(library, tensor):
    x = tensor([1, 2], "float32", True)
    y = x * 2
    with library.no_grad():
        y += 1
    (y * y).sum().backward()
    return y, x.grad


PROGRAMS = {
    "w saved": _write_then_backward(lambda w, x: w * w), "w not saved": _write_then_backward(lambda w, x: w + x),
    "x saved": _write_then_backward(lambda w, x: w * x),
    "output saved": _write_then_backward(lambda w, x: w.sqrt()),
    "requires_grad off": _requires_grad_off_and_on(False), "requires_grad off and on": _requires_grad_off_and_on(True),
    "running total": _total, "under no_grad": _under_no_grad,
    "leaf": lambda _, tensor: [operator.iadd(tensor([1.0], "float32", True), 1)],
    "view of a leaf": lambda _, tensor: [operator.iadd(tensor([1.0], "float32", True)[0], 1)],
    "expanded": lambda _, tensor: [operator.iadd(tensor([1.0], "float32").expand(3), 1)],
    "larger right operand": lambda _, tensor: [operator.iadd(tensor([1.0], "float32"), tensor([1.0, 2.0], "float32"))],
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_in_place_programs_equal_pytorch(name):
    assert_equals_pytorch(PROGRAMS[name])


@pytest.mark.parametrize(
    "index",
    [(..., ...), (..., 0, ...), (0, ..., ...), (..., ..., 0), (..., ..., slice(1, None)), (..., [1], ...),
     (0, 0, 0, ..., ...), (0, 0, ..., 0, ...), (0, ..., 1, ..., 0), (..., ..., None), (..., None, ...)],
)  # fmt: skip
def test_indices_with_several_ellipses(index):
    def program(library, tensor):
        return [tensor(np.arange(24).reshape(2, 3, 4), "float32")[index]]

    assert_equals_pytorch(program)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_negative_padding_equals_pytorch(mode):
    """All pairs of widths. Mode circular is left out: PyTorch's values are wrong if more is padded than is left."""
    for before in range(-5, 6):
        for after in range(-5, 6):

            def program(library, tensor, widths=(before, after)):
                pad = minigrad.functional.pad if library is minigrad else torch.nn.functional.pad
                return [pad(tensor([[1, 2, 3, 4]], "float32"), widths, mode=mode)]

            assert_equals_pytorch(program)
