"""Einsum: well-known equations, saved operands, the order of contractions, and error messages."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad.ops import einsum as module
from minigrad.ops.einsum import make_plan, parse
from tests.compare import randn


def einsum(equation, *arrays):
    return minigrad.einsum(equation, *map(Tensor, arrays)).numpy()


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ii->", [(4, 4)], np.trace),
        ("ii", [(4, 4)], np.trace),
        ("ii->i", [(4, 4)], np.diagonal),
        ("iij->ji", [(4, 4, 3)], lambda x: np.diagonal(x)),
        ("ij->ji", [(2, 3)], np.transpose),
        ("ba", [(2, 3)], np.transpose),
        ("ij->", [(2, 3)], np.sum),
        ("...->", [(2, 3)], np.sum),
        ("i,j->ij", [(3,), (4,)], np.outer),
        ("i,i", [(3,), (3,)], np.dot),
        ("ij,jk", [(2, 3), (3, 4)], np.matmul),
        ("b...ij,b...jk->b...ik", [(2, 5, 2, 3), (2, 1, 3, 4)], np.matmul),
        ("...i,...i->...", [(5, 2, 3), (2, 3)], lambda a, b: (a * b).sum(-1)),
        ("i...,...->...i", [(2, 3, 4), (4,)], lambda a, b: np.moveaxis(a * b, 0, -1)),
        ("ij,ij->ij", [(2, 3), (1, 3)], np.multiply),
        (",", [(), ()], np.multiply),
        ("ijk,ijl,kl", [(2, 3, 4), (2, 3, 5), (4, 5)], lambda a, b, c: np.sum((a.mT @ b).sum(0) * c)),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)], lambda q, k: q @ k.mT),
        ("bhij,bjhd->bihd", [(2, 3, 4, 6), (2, 6, 3, 5)], lambda p, v: np.moveaxis(p @ np.moveaxis(v, 1, 2), 1, 2)),
        ("nchw,oc->nohw", [(2, 3, 4, 5), (6, 3)], lambda x, w: np.moveaxis(np.moveaxis(x, 1, -1) @ w.T, -1, 1)),
        ("bi,oij,bj->bo", [(2, 3), (4, 3, 5), (2, 5)], lambda x, w, y: ((x @ w) * y).sum(-1).T),
    ],
)
def test_equations_equal_numpy_functions(equation, shapes, expected):
    arrays = [randn(*shape) for shape in shapes]
    np.testing.assert_allclose(einsum(equation, *arrays), expected(*arrays), rtol=1e-12, atol=1e-12)


def test_implicit_output_sorts_upper_case_labels_first():
    assert einsum("bA", randn(2, 3)).shape == (3, 2)


@pytest.mark.parametrize("equation", ["ij->", "ij,jk->ik", "ij,jk,i->"])
def test_integer_operands_keep_their_dtype(equation):
    arrays = [np.ones(shape, np.int32) for shape in ((2, 2), (2, 2), (2,))[: equation.count(",") + 1]]
    assert einsum(equation, *arrays).dtype == np.int32


def test_gradient_of_a_summed_label_is_broadcast():
    x = Tensor(randn(2, 3), requires_grad=True)
    minigrad.einsum("ij->i", x).backward(Tensor(np.array([1.0, 2.0])))
    np.testing.assert_array_equal(x.grad.numpy(), [[1, 1, 1], [2, 2, 2]])


def test_gradient_of_a_diagonal_is_a_diagonal_matrix():
    x = Tensor(randn(2, 2), requires_grad=True)
    minigrad.einsum("ii->i", x).backward(Tensor(np.array([1.0, 2.0])))
    np.testing.assert_array_equal(x.grad.numpy(), [[1, 0], [0, 2]])


def test_gradient_of_a_broadcast_operand_is_summed():
    a, b = Tensor(randn(2, 1), requires_grad=True), Tensor(randn(2, 3))
    minigrad.einsum("ij,ij->ij", a, b).backward(Tensor(np.ones((2, 3))))
    np.testing.assert_allclose(a.grad.numpy(), b.numpy().sum(1, keepdims=True), rtol=1e-12)


def test_only_operands_that_backward_needs_are_saved():
    a, b = Tensor(randn(2, 3), requires_grad=True), Tensor(randn(3, 4))
    saved = minigrad.einsum("ij,jk", a, b).grad_fn.arrays
    assert saved[0] is None
    assert np.shares_memory(saved[1], b.numpy())
    assert minigrad.einsum("ij->", a).grad_fn.arrays == [None]


def test_contractions_are_matrix_products(monkeypatch):
    shapes = []

    def gemm(a, b):
        shapes.append((a.shape, b.shape))
        return a @ b

    monkeypatch.setattr(module, "gemm", gemm)
    einsum("bihd,bjhd->bhij", randn(2, 4, 3, 5), randn(2, 6, 3, 5))
    einsum("nchw,oc->nohw", randn(2, 3, 4, 5), randn(6, 3))
    assert shapes == [((2, 3, 4, 5), (2, 3, 5, 6)), ((40, 3), (3, 6))]


def test_the_cheapest_pair_is_contracted_first():
    # (1000, 10) (10, 1000) (1000, 10): from the right, 200,000 multiplications instead of 20,000,000
    plan = make_plan(("ij", "jk", "kl"), "il", ((1000, 10), (10, 1000), (1000, 10)))
    assert [(pair.i, pair.j) for pair in plan.pairs] == [(1, 2), (0, 1)]


def test_the_equation_is_parsed_once():
    parse.cache_clear()
    for _ in range(3):
        einsum("ij,jk", randn(2, 3), randn(3, 4))
    assert parse.cache_info().misses == 1


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij,jk", [(2, 3)], r"describes 2 operand\(s\).*got 1"),
        ("ij", [(2, 3), (3, 4)], r"describes 1 operand\(s\).*got 2"),
        ("i1", [(2, 3)], '"1".*is not a label'),
        ("i.j", [(2, 3)], r'"\." .*is not a label'),
        ("i->i->i", [(2,)], 'one "->"'),
        ("i-j", [(2, 3)], '"-".*is not a label'),
        ("αi", [(2, 3)], '"α".*is not a label'),
        ("...i...", [(2, 3)], "an ellipsis twice"),
        ("...i->......i", [(2, 3)], "an ellipsis twice"),
        ("ij", [(2, 3, 4)], r'names 2 axes, but operand 0 has 3, shape \(2, 3, 4\); "\.\.\." stands for'),
        ("ij,jkl", [(2, 3), (3, 4)], "names 3 axes, but operand 1 has 2"),
        ("...ij", [(2,)], "names 2 axes, but operand 0 has 1"),
        ("ij->ik", [(2, 3)], 'has the label "k", which no operand has'),
        ("ij->ii", [(2, 3)], 'has the label "i" twice'),
        ("ij,jk", [(2, 3), (4, 5)], r'label "j".*size 3 in one operand and 4 in operand 1, shape \(4, 5\)'),
        ("...i,...i", [(2, 3), (4, 3)], r'the "\.\.\." .*size 2 in one operand and 4 in operand 1'),
        ("ii", [(2, 3)], r"selects a diagonal of operand 0, shape \(2, 3\).*got 2 and 3"),
        ("ii", [(3, 1)], r"selects a diagonal of operand 0, shape \(3, 1\).*got 3 and 1"),
        ("ii,i", [(1, 3), (3,)], "selects a diagonal of operand 0.*got 1 and 3"),
    ],
)
def test_error_messages(equation, shapes, message):
    with pytest.raises(ValueError, match=f"einsum: .*{message}"):
        einsum(equation, *(randn(*shape) for shape in shapes))
