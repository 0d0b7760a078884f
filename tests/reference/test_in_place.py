"""In-place operators, requires_grad off and on, and Ellipses: what PyTorch does, or an error where it has one."""

import operator

import numpy as np
import pytest

import minigrad
from minigrad import Tensor

torch = pytest.importorskip("torch")

OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)
DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")


def ours(values, dtype, grad=False):
    return Tensor(np.array(values).astype(dtype), requires_grad=grad)


def theirs(values, dtype, grad=False):
    return torch.tensor(np.array(values).astype(dtype), requires_grad=grad)


def outcome(library, make, story):
    """The values that the story ends with, or that it ends with an error."""
    try:
        return [None if x is None else np.asarray(x.detach().cpu().numpy(), np.float64).tolist()
                for x in story(library, make)]  # fmt: skip
    except (RuntimeError, TypeError, ValueError, IndexError):
        return "an error"


@pytest.mark.parametrize("in_place", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("left", DTYPES)
@pytest.mark.parametrize("right", [*DTYPES, "int", "float"])
def test_dtypes(in_place, left, right):
    if in_place is operator.isub and right == "bool":
        pytest.skip("PyTorch refuses every x - mask, and not only in place")

    def story(library, make):
        x = make([1, 2], left)
        y = {"int": 2, "float": 0.5}.get(right)
        view = x[:1]
        in_place(x, make([1, 1], right) if y is None else y)
        return x, view

    assert outcome(minigrad, ours, story) == outcome(torch, theirs, story)


def _write_then_backward(formula):
    def story(library, make):
        w, x = make([1, 2], "float32", True), make([3, 4], "float32")
        loss = formula(w, x).sum()
        with library.no_grad():
            w -= 1
        loss.backward()
        return w, w.grad

    return story


def _off_and_on(on):
    def story(library, make):
        p = make([1, 2], "float32", True)
        p.register_hook(lambda grad: grad * 3)
        first, second = (p * p).sum(), (p * 2).sum()
        p.sum().backward()
        p.requires_grad_(False)
        first.backward()
        p.requires_grad_(on)
        second.backward()
        return p.grad, p

    return story


def _total(library, make):
    total, x = make(0.0, "float32"), make([1, 2], "float32", True)
    for _ in range(3):
        total += (x * x).sum()
    total.backward()
    return total, x.grad


def _under_no_grad(library, make):
    x = make([1, 2], "float32", True)
    y = x * 2
    with library.no_grad():
        y += 1
    (y * y).sum().backward()
    return y, x.grad


STORIES = {
    "saved": _write_then_backward(lambda w, x: w * w), "not saved": _write_then_backward(lambda w, x: w + x),
    "the other saved": _write_then_backward(lambda w, x: w * x),
    "output saved": _write_then_backward(lambda w, x: w.sqrt()),
    "off": _off_and_on(False), "off and on": _off_and_on(True), "total": _total, "under no_grad": _under_no_grad,
    "leaf": lambda _, make: [operator.iadd(make([1.0], "float32", True), 1)],
    "view of a leaf": lambda _, make: [operator.iadd(make([1.0], "float32", True)[0], 1)],
    "expanded": lambda _, make: [operator.iadd(make([1.0], "float32").expand(3), 1)],
    "larger": lambda _, make: [operator.iadd(make([1.0], "float32"), make([1.0, 2.0], "float32"))],
}  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_stories(name):
    assert outcome(minigrad, ours, STORIES[name]) == outcome(torch, theirs, STORIES[name])


@pytest.mark.parametrize(
    "index",
    [(..., ...), (..., 0, ...), (0, ..., ...), (..., ..., 0), (..., ..., slice(1, None)), (..., [1], ...),
     (0, 0, 0, ..., ...), (0, 0, ..., 0, ...), (0, ..., 1, ..., 0), (..., ..., None), (..., None, ...)],
)  # fmt: skip
def test_ellipses(index):
    def story(library, make):
        return [make(np.arange(24).reshape(2, 3, 4), "float32")[index]]

    assert outcome(minigrad, ours, story) == outcome(torch, theirs, story)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_negative_widths(mode):
    """All pairs of widths; circular has wrong values in PyTorch where what is left is shorter than what wraps."""
    for before in range(-5, 6):
        for after in range(-5, 6):

            def story(library, make, widths=(before, after)):
                pad = minigrad.functional.pad if library is minigrad else torch.nn.functional.pad
                return [pad(make([[1, 2, 3, 4]], "float32"), widths, mode=mode)]

            assert outcome(minigrad, ours, story) == outcome(torch, theirs, story), (before, after)
