"""Einsum: random equations, and an oracle that loops over all values of all labels."""

from collections import Counter
from itertools import product

import numpy as np
from hypothesis import strategies as st

import minigrad
from minigrad.testing import arrays
from tests.cases.case import Call, Case


def naive_einsum(*operands: np.ndarray, equation: str) -> np.ndarray:
    """y[output] = Σ over all values of all labels of Π_k x_k[labels of k], as loops."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    axes_of_operands = [_axis_names(part, x.ndim) for part, x in zip(parts, operands, strict=True)]
    sizes: dict = {}
    for axes, x in zip(axes_of_operands, operands, strict=True):
        for axis, size in zip(axes, x.shape, strict=True):
            sizes[axis] = size if sizes.get(axis, 1) == 1 else sizes[axis]
    ellipsis_axes = max(([axis for axis in axes if isinstance(axis, int)] for axes in axes_of_operands), key=len)
    if arrow:
        output = [
            axis for letter in right.replace("...", ".") for axis in (ellipsis_axes if letter == "." else [letter])
        ]
    else:
        count = Counter(left)
        output = ellipsis_axes + sorted(letter for letter in count if letter.isalpha() and count[letter] == 1)

    y = np.zeros([sizes[axis] for axis in output])
    for values in product(*(range(size) for size in sizes.values())):
        value_of = dict(zip(sizes, values, strict=True))
        factors = [
            x[tuple(value_of[axis] if size > 1 else 0 for axis, size in zip(axes, x.shape, strict=True))]
            for axes, x in zip(axes_of_operands, operands, strict=True)
        ]
        y[tuple(value_of[axis] for axis in output)] += np.prod(factors)
    return y


def _axis_names(part: str, ndim: int) -> list[str | int]:
    """The name of each axis: its letter, or for an axis in the ellipsis an integer, -1 for the last."""
    before, dots, after = part.partition("...")
    ellipsis_axes = range(-(ndim - len(before) - len(after)), 0) if dots else ()
    return [*before, *ellipsis_axes, *after]


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    """An equation and the shapes of its operands: repeated labels, ellipses, axes that broadcast, sums, spaces."""
    sizes = draw(st.fixed_dictionaries({label: st.sampled_from([2, 3, 1, 2, 3, 0]) for label in "jAib"}))
    ellipsis_sizes = draw(st.lists(st.integers(1, 3), max_size=2))
    parts, shapes = [], []
    for _ in range(draw(st.integers(1, 3))):
        labels = draw(st.lists(st.sampled_from(list(sizes)), max_size=3))
        size_1 = draw(st.sets(st.sampled_from(list(sizes)), max_size=1))
        shape = [1 if label in size_1 else sizes[label] for label in labels]
        if draw(st.booleans()):
            position = draw(st.integers(0, len(labels)))
            ellipsis_ndim = draw(st.integers(0, len(ellipsis_sizes)))
            labels[position:position] = ["..."]
            shape[position:position] = [
                draw(st.sampled_from([size, size, 1])) for size in ellipsis_sizes[len(ellipsis_sizes) - ellipsis_ndim :]
            ]
        parts.append("".join(labels))
        shapes.append(tuple(shape))
    equation = draw(st.sampled_from([",", " , "])).join(parts)
    if draw(st.booleans()):
        present = sorted({label for label in equation if label.isalpha()} | ({"..."} if "..." in equation else set()))
        output = draw(st.permutations(present))
        equation += "->" + "".join(output[: draw(st.integers(0, len(output)))])
    return equation, shapes


@st.composite
def einsum_calls(draw: st.DrawFn) -> Call:
    equation, shapes = draw(equations())
    return Call(tuple(draw(arrays(shape)) for shape in shapes), {"equation": equation})


CASES = [
    Case(
        name="einsum",
        run=lambda *operands, equation: minigrad.einsum(equation, *operands),
        calls=einsum_calls(),
        oracle=naive_einsum,
        torch=lambda torch, *operands, equation: torch.einsum(equation, *operands),
    )
]
