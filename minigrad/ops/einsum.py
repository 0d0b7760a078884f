"""L2: Einstein summation, lowered by hand to batched matrix products."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import prod
from string import ascii_letters
from typing import NamedTuple

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, gemm
from minigrad.backend.sums import sum_over


class Einsum(Function):
    """y[output labels] = Σ over the other labels of Π_k x_k[labels of operand k].

    A label names an index, and an axis of every operand that carries it: "bid,bjd->bij" is

        y[b,i,j] = Σ_d  q[b,i,d] · k[b,j,d].

    A label twice in one operand is a diagonal ("ii->i"); without "->" the output has the labels that occur once, in
    alphabetical order; "..." stands for the axes that are not named, aligned from the right. An axis of size 1
    broadcasts against other operands' axes of the same label. All of it as in `torch.einsum`.

    Gradient: y is linear in each operand. ∂x_k is ∂y summed against everything x_k was multiplied by, so it is an
    einsum too, of ∂y and the other operands, with the labels of x_k and those of y exchanged:

        ∂q[b,i,d] = Σ_j ∂y[b,i,j] · k[b,j,d]        "bij,bjd->bid"
        ∂k[b,j,d] = Σ_i ∂y[b,i,j] · q[b,i,d]        "bij,bid->bjd"

    A label of x_k that is in neither (it was summed out of x_k alone) tells entries apart that all had the same part
    in y: there ∂x_k is repeated. Off a diagonal that was taken, ∂x_k is 0.

    Shapes: any number of operands (..., any);  y has one axis for each output label.
    Saves:  the operands, each one only if the gradient of another is wanted.
    """

    def forward(self, *operands: Array, equation: str) -> Array:
        parsed = self.parsed = parse(equation, tuple(x.shape for x in operands))
        arrays = [distinct(x, *labels) for x, *labels in zip(operands, parsed.inputs, parsed.terms, strict=True)]
        wanted = self.needs_input_grad
        self.arrays = [x if any((*wanted[:k], *wanted[k + 1 :])) else None for k, x in enumerate(arrays)]
        return contract(arrays, parsed.terms, parsed.output)

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        grads: list[Array | None] = []
        for k, wanted in enumerate(self.needs_input_grad):
            if not wanted:
                grads.append(None)
                continue
            arrays, terms = [*self.arrays], [*self.parsed.terms]
            term, arrays[k], terms[k] = terms[k], grad_output, self.parsed.output
            reached = "".join(label for label in term if any(label in other for other in terms))
            grads.append(spread(contract(arrays, tuple(terms), reached), reached, self.parsed, k))
        return tuple(grads)


@dataclass(frozen=True)
class Equation:
    """An equation that fits its operands. One character is one label; the axes of "..." have become Greek letters.

    For "...ij,jj" with shapes (2, 5, 1), (3, 3): inputs ("αij", "jj"), terms ("αi", "j"), output "αi",
    sizes {α: 2, i: 5, j: 3}.
    """

    inputs: tuple[str, ...]  # for each operand, the label of every axis
    terms: tuple[str, ...]  # the same, each label once, and without axes of size 1 that broadcast: they name no index
    output: str
    sizes: dict[str, int]


@lru_cache(maxsize=1024)
def parse(equation: str, shapes: tuple[tuple[int, ...], ...]) -> Equation:
    """Read `equation` for operands of these shapes.

    Raises:
        ValueError: the equation is malformed, or the operands do not fit it.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    written = left.split(",")
    if len(written) != len(shapes):
        raise ValueError(
            f'einsum: "{equation}" describes {len(written)} operand(s), separated by ",": got {len(shapes)}'
        )
    for part in (*written, right):
        _check_characters(part, equation)

    unnamed = [len(shape) - len(part.replace("...", "")) for part, shape in zip(written, shapes, strict=True)]
    for k, (part, shape, extra) in enumerate(zip(written, shapes, unnamed, strict=True)):
        if extra < 0 or (extra > 0 and "..." not in part):
            hint = '; "..." stands for axes without a label' if extra > 0 else ""
            raise ValueError(
                f'einsum: "{part}" in "{equation}" names {len(shape) - extra} axes, '
                f"but operand {k} has {len(shape)}, shape {shape}{hint}"
            )
    # Ellipses align from the right: the shorter one gets the last of the Greek letters.
    greek = "".join(chr(ord("α") + i) for i in range(max(unnamed)))
    inputs = tuple(
        part.replace("...", greek[len(greek) - extra :]) for part, extra in zip(written, unnamed, strict=True)
    )
    sizes = _sizes(inputs, shapes, equation)

    if arrow:
        output = right.replace("...", greek)
    else:
        once = [label for label, count in Counter("".join(written)).items() if count == 1]
        output = greek + "".join(sorted(once))
    for label in output:
        if label not in sizes:
            raise ValueError(f'einsum: the output of "{equation}" has the label "{label}", which no operand has')
        if output.count(label) > 1:
            raise ValueError(
                f'einsum: the output of "{equation}" has the label "{label}" twice, which can name only one axis'
            )

    terms = tuple(
        "".join(dict.fromkeys(label for label, size in zip(labels, shape, strict=True) if size == sizes[label]))
        for labels, shape in zip(inputs, shapes, strict=True)
    )
    return Equation(inputs, terms, output, sizes)


def _check_characters(part: str, equation: str) -> None:
    if part.count("...") > 1:
        raise ValueError(f'einsum: "{part}" in "{equation}" has an ellipsis twice; one stands for all unnamed axes')
    for label in part.replace("...", ""):
        if label not in ascii_letters:
            raise ValueError(
                f'einsum: "{label}" in "{equation}" is not a label: a label is one letter, a-z or A-Z, and beside '
                'labels there are only "...", "," and one "->"'
            )


def _sizes(inputs: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], equation: str) -> dict[str, int]:
    """The size of every label: that of its axes, except those of size 1 in other operands, which broadcast."""
    sizes: dict[str, int] = {}
    for k, (labels, shape) in enumerate(zip(inputs, shapes, strict=True)):
        own: dict[str, int] = {}
        for label, size in zip(labels, shape, strict=True):
            if own.setdefault(label, size) != size:
                raise ValueError(
                    f'einsum: in "{equation}" the label "{label}" takes a diagonal of operand {k}, shape {shape}: '
                    f"its axes must have one size, got {own[label]} and {size}"
                )
        for label, size in own.items():
            known = sizes.get(label, 1)
            if known != size and known != 1 and size != 1:
                name = f'label "{label}"' if label in ascii_letters else '"..."'
                raise ValueError(
                    f'einsum: the {name} of "{equation}" has size {known} in one operand and {size} in operand {k}, '
                    f"shape {shape}; they must be the same, or one of them 1"
                )
            sizes[label] = size if known == 1 else known
    return sizes


def distinct(x: Array, labels: str, term: str) -> Array:
    """The view of `x` with one axis for each label of `term`: x_ii is an axis with the sum of both axes' strides.

    Labels that `term` lacks have size 1 in `x`; their axes go.
    """
    if labels == term:
        return x
    axes = list(zip(labels, x.shape, x.strides, strict=True))
    sizes = {label: size for label, size, _ in axes}
    strides = [sum(stride for label, _, stride in axes if label == wanted) for wanted in term]
    as_strided = array_module(x).lib.stride_tricks.as_strided
    return as_strided(x, [sizes[label] for label in term], strides)


def spread(grad: Array, reached: str, parsed: Equation, k: int) -> Array:
    """The gradient of operand `k`, from its entries `grad` along the labels `reached`."""
    labels, term, sizes = parsed.inputs[k], parsed.terms[k], parsed.sizes
    shape = tuple(sizes[label] if label in term else 1 for label in labels)
    xp = array_module(grad)
    if len(set(labels)) == len(labels):  # no diagonal was taken
        grad = grad.reshape([sizes[label] if label in reached else 1 for label in labels])
        return grad if grad.shape == shape else xp.broadcast_to(grad, shape)
    grad_x = xp.zeros(shape, grad.dtype)
    distinct(grad_x, labels, term)[...] = grad.reshape([sizes[label] if label in reached else 1 for label in term])
    return grad_x


def contract(arrays: list[Array], terms: tuple[str, ...], output: str) -> Array:
    """Σ over labels not in `output` of the product of `arrays`, two at a time. `terms` are their labels, none twice.

    "bihd,bjhd->bhij" is one batched matrix product: b and h, in both and in the output, are its batch; i is on the
    left only, j on the right only; d, in both and not in the output, is contracted:

        (B, I, H, D) -> (B, H, I, D),  (B, J, H, D) -> (B, H, D, J),  (B, H, I, D) @ (B, H, D, J) = (B, H, I, J).

    Batch axes stay apart, since merging them could need a copy; several left, right or contracted axes become one.
    """
    plan = make_plan(terms, output, tuple(x.shape for x in arrays))
    work = [
        sum_over(x, axes).astype(x.dtype, copy=False) if axes else x for x, axes in zip(arrays, plan.sums, strict=True)
    ]
    for pair in plan.pairs:
        b, a = pair.b.of(work.pop(pair.j)), pair.a.of(work[pair.i])
        work[pair.i] = (gemm(a, b) if pair.contracts else a * b).reshape(pair.shape)
    return work[0].transpose(plan.axes)


class View(NamedTuple):
    """An operand in another shape: its axes in another order, merged, and perhaps the last two exchanged."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    swap: bool

    def of(self, x: Array) -> Array:
        x = x.transpose(self.axes).reshape(self.shape)
        return x.swapaxes(-1, -2) if self.swap else x


class Pair(NamedTuple):
    """One step of a plan: operands i < j, seen in these shapes and multiplied, become operand i."""

    i: int
    j: int
    contracts: bool  # a matrix product; else a product of numbers, by broadcasting
    a: View  # (batch..., left, contracted)
    b: View  # (batch..., contracted, right)
    shape: tuple[int, ...]  # (batch..., left..., right...)


class Plan(NamedTuple):
    """How to contract: sums over labels that one operand alone has, then products of pairs, then a transposition."""

    sums: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...]
    axes: tuple[int, ...]


@lru_cache(maxsize=4096)
def make_plan(terms: tuple[str, ...], output: str, shapes: tuple[tuple[int, ...], ...]) -> Plan:
    """Choose the pairs greedily: always the two operands whose product takes the fewest multiplications.

    Of equals, the one with the smallest result. Neither is always best, but with two operands there is no choice, and
    with three or four the best order is rarely another.
    """
    sizes: dict[str, int] = {}
    sums, work = [], []
    for k, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        sizes.update(zip(term, shape, strict=True))
        elsewhere = output + "".join(terms[:k] + terms[k + 1 :])
        sums.append(tuple(axis for axis, label in enumerate(term) if label not in elsewhere))
        work.append("".join(label for label in term if label in elsewhere))

    def kept(i: int, j: int) -> str:
        """What is still needed once operands i and j have met."""
        return output + "".join(work[:i] + work[i + 1 : j] + work[j + 1 :])

    def cost(choice: tuple[int, int]) -> tuple[int, int]:
        i, j = choice
        both, needed = set(work[i] + work[j]), kept(i, j)
        return prod(sizes[label] for label in both), prod(sizes[label] for label in both if label in needed)

    pairs = []
    while len(work) > 1:
        i, j = min(combinations(range(len(work)), 2), key=cost)
        work[i], pair = _make_pair(i, j, work[i], work[j], kept(i, j), sizes)
        del work[j]
        pairs.append(pair)
    return Plan(tuple(sums), tuple(pairs), tuple(work[0].index(label) for label in output))


def _make_pair(i: int, j: int, a: str, b: str, kept: str, sizes: dict[str, int]) -> tuple[str, Pair]:
    """The step that multiplies operands with labels `a` and `b`, and the labels of its result."""

    def shape(labels: str) -> tuple[int, ...]:
        return tuple(sizes[label] for label in labels)

    def matrices(labels: str, rows: str, columns: str) -> View:
        # Where merging needs a copy, it moves whole runs if the last axis stays last. BLAS takes a transposed matrix
        # as it is, so the exchange is free.
        swap = labels[-1] in rows
        first, last = (columns, rows) if swap else (rows, columns)
        axes = tuple(labels.index(label) for label in batch + first + last)
        return View(axes, (*shape(batch), prod(shape(first)), prod(shape(last))), swap)

    def factor(labels: str) -> View:
        axes = tuple(labels.index(label) for label in result if label in labels)
        return View(axes, tuple(sizes[label] if label in labels else 1 for label in result), False)

    larger = a if prod(shape(a)) >= prod(shape(b)) else b  # rather reorder the smaller one
    contracted = "".join(label for label in larger if label in a and label in b and label not in kept)
    batch = "".join(sorted(set(a) & set(b) & set(kept), key=kept.index))
    left, right = "".join(label for label in a if label not in b), "".join(label for label in b if label not in a)
    result = batch + left + right
    if contracted:
        views = matrices(a, left, contracted), matrices(b, contracted, right)
    else:
        result = "".join(sorted(result, key=kept.index))
        views = factor(a), factor(b)
    return result, Pair(i, j, bool(contracted), *views, shape(result))
