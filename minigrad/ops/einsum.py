"""L2: Einstein summation, as a sequence of batched matrix products."""

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

    Each letter is a label, the name of an index. An equation gives one label to each axis: "bid,bjd->bij" is

        y[b,i,j] = Σ_d  q[b,i,d] · k[b,j,d].

    As in `torch.einsum`: a label that is repeated in one operand selects a diagonal ("ii->i"); without "->" the output
    has the labels that occur once, in alphabetical order; "..." stands for the axes without a label, aligned from the
    right; an axis of size 1 broadcasts against axes of the same label in other operands.

    Gradient: y is linear in each operand, so ∂x_k is an einsum of ∂y and the other operands, with the labels of x_k
    and the labels of y exchanged:

        ∂q[b,i,d] = Σ_j ∂y[b,i,j] · k[b,j,d]        "bij,bjd->bid"
        ∂k[b,j,d] = Σ_i ∂y[b,i,j] · q[b,i,d]        "bij,bid->bjd"

    If a label of x_k occurs neither in y nor in another operand, y depends on x_k only by the sum along this axis, so
    ∂x_k is constant along this axis. If a diagonal of x_k was selected, ∂x_k is 0 off the diagonal.

    Shapes: any number of operands (..., any);  y has one axis for each output label.
    Saves:  the operands, each only if the gradient of another operand is wanted.
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
            shared = "".join(label for label in term if any(label in other for other in terms))
            grads.append(spread(contract(arrays, tuple(terms), shared), shared, self.parsed, k))
        return tuple(grads)


@dataclass(frozen=True)
class Equation:
    """A parsed equation, checked against its operands. One character is one label; axes of "..." have Greek letters.

    For "...ij,jj" with shapes (2, 5, 1), (3, 3): inputs ("αij", "jj"), terms ("αi", "j"), output "αi",
    sizes {α: 2, i: 5, j: 3}.
    """

    inputs: tuple[str, ...]  # for each operand, the labels of its axes
    terms: tuple[str, ...]  # `inputs` without repeated labels, and without labels of axes of size 1 that broadcast
    output: str
    sizes: dict[str, int]


@lru_cache(maxsize=1024)
def parse(equation: str, shapes: tuple[tuple[int, ...], ...]) -> Equation:
    """Parse `equation` for operands of these shapes.

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
    # Ellipses align from the right: a shorter one gets the last of the Greek letters.
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
                f'einsum: "{label}" in "{equation}" is not a label: a label is one letter, a-z or A-Z; the other '
                'characters are "...", "," and one "->"'
            )


def _sizes(inputs: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], equation: str) -> dict[str, int]:
    """The size of each label; axes of size 1 broadcast to this size."""
    sizes: dict[str, int] = {}
    for k, (labels, shape) in enumerate(zip(inputs, shapes, strict=True)):
        own: dict[str, int] = {}
        for label, size in zip(labels, shape, strict=True):
            if own.setdefault(label, size) != size:
                raise ValueError(
                    f'einsum: in "{equation}" the label "{label}" selects a diagonal of operand {k}, shape {shape}: '
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
    """A view of `x` with one axis for each label of `term`.

    The axis of a repeated label is a diagonal, whose stride is the sum of the strides. Labels that are not in `term`
    have size 1 in `x`, and their axes are dropped.
    """
    if labels == term:
        return x
    axes = list(zip(labels, x.shape, x.strides, strict=True))
    sizes = {label: size for label, size, _ in axes}
    strides = [sum(stride for label, _, stride in axes if label == wanted) for wanted in term]
    as_strided = array_module(x).lib.stride_tricks.as_strided
    return as_strided(x, [sizes[label] for label in term], strides)


def spread(grad: Array, shared: str, parsed: Equation, k: int) -> Array:
    """The gradient of operand `k`, from `grad`, which has an axis for each label of `shared`.

    `shared` has the labels of operand k that y or another operand also has. Along other axes, the gradient is repeated.
    """
    labels, term, sizes = parsed.inputs[k], parsed.terms[k], parsed.sizes
    shape = tuple(sizes[label] if label in term else 1 for label in labels)
    xp = array_module(grad)
    if len(set(labels)) == len(labels):  # no diagonal was selected
        grad = grad.reshape([sizes[label] if label in shared else 1 for label in labels])
        return grad if grad.shape == shape else xp.broadcast_to(grad, shape)
    grad_x = xp.zeros(shape, grad.dtype)
    distinct(grad_x, labels, term)[...] = grad.reshape([sizes[label] if label in shared else 1 for label in term])
    return grad_x


def contract(arrays: list[Array], terms: tuple[str, ...], output: str) -> Array:
    """The product of `arrays`, two at a time, summed over the labels that are not in `output`.

    `terms` are the labels of each array, without repetition.

    "bihd,bjhd->bhij" is one batched matrix product: b and h, in both and in the output, are batch axes; i is in
    the left operand only, j in the right only; d, in both and not in the output, is contracted:

        (B, I, H, D) -> (B, H, I, D),  (B, J, H, D) -> (B, H, D, J),  (B, H, I, D) @ (B, H, D, J) = (B, H, I, J).

    Batch axes are not merged, which could need a copy; several left, right or contracted axes are merged into one.
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
    """How to view an operand for a product: permute its axes, reshape, and if `swap` exchange the last two axes."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    swap: bool

    def of(self, x: Array) -> Array:
        x = x.transpose(self.axes).reshape(self.shape)
        return x.swapaxes(-1, -2) if self.swap else x


class Pair(NamedTuple):
    """One step of a plan: the product of operands i < j, viewed as `a` and `b`. The product replaces operand i."""

    i: int
    j: int
    contracts: bool  # a matrix product; else an elementwise product, by broadcasting
    a: View  # (batch..., left, contracted)
    b: View  # (batch..., contracted, right)
    shape: tuple[int, ...]  # (batch..., left..., right...)


class Plan(NamedTuple):
    """The steps of a contraction: sums within each operand, then products of pairs, then a permutation."""

    sums: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...]
    axes: tuple[int, ...]


@lru_cache(maxsize=4096)
def make_plan(terms: tuple[str, ...], output: str, shapes: tuple[tuple[int, ...], ...]) -> Plan:
    """Choose pairs greedily: the two operands whose product needs the fewest multiplications, then the smallest result.

    This is not always the optimal order. Two operands have only one order; for three or four, greedy is rarely worse.
    """
    sizes: dict[str, int] = {}
    sums, work = [], []
    for k, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        sizes.update(zip(term, shape, strict=True))
        elsewhere = output + "".join(terms[:k] + terms[k + 1 :])
        sums.append(tuple(axis for axis, label in enumerate(term) if label not in elsewhere))
        work.append("".join(label for label in term if label in elsewhere))

    def needed_after(i: int, j: int) -> str:
        """The labels of the output and of all operands but i and j."""
        return output + "".join(work[:i] + work[i + 1 : j] + work[j + 1 :])

    def cost(candidate: tuple[int, int]) -> tuple[int, int]:
        i, j = candidate
        both, needed = set(work[i] + work[j]), needed_after(i, j)
        return prod(sizes[label] for label in both), prod(sizes[label] for label in both if label in needed)

    pairs = []
    while len(work) > 1:
        i, j = min(combinations(range(len(work)), 2), key=cost)
        work[i], pair = _make_pair(i, j, work[i], work[j], needed_after(i, j), sizes)
        del work[j]
        pairs.append(pair)
    return Plan(tuple(sums), tuple(pairs), tuple(work[0].index(label) for label in output))


def _make_pair(i: int, j: int, a: str, b: str, needed: str, sizes: dict[str, int]) -> tuple[str, Pair]:
    """The labels of the product of operands with labels `a` and `b`, and the step that computes this product."""

    def shape(labels: str) -> tuple[int, ...]:
        return tuple(sizes[label] for label in labels)

    larger = a if prod(shape(a)) >= prod(shape(b)) else b  # keeps its order of labels; only the smaller is reordered
    contracted = "".join(label for label in larger if label in a and label in b and label not in needed)
    batch = "".join(sorted(set(a) & set(b) & set(needed), key=needed.index))
    left, right = "".join(label for label in a if label not in b), "".join(label for label in b if label not in a)

    def matrices(labels: str, rows: str, columns: str) -> View:
        """(batch..., rows, columns), where several rows or columns are merged."""
        # If merging axes needs a copy, the copy is in contiguous runs if the last axis stays last. The swap is free:
        # BLAS accepts transposed matrices.
        swap = labels[-1] in rows
        first, last = (columns, rows) if swap else (rows, columns)
        axes = tuple(labels.index(label) for label in batch + first + last)
        return View(axes, (*shape(batch), prod(shape(first)), prod(shape(last))), swap)

    def factor(labels: str, result: str) -> View:
        """A view with the axes of the result, of size 1 for labels that this operand lacks."""
        axes = tuple(labels.index(label) for label in result if label in labels)
        return View(axes, tuple(sizes[label] if label in labels else 1 for label in result), False)

    if contracted:
        result = batch + left + right
        views = matrices(a, left, contracted), matrices(b, contracted, right)
    else:
        result = "".join(sorted(batch + left + right, key=needed.index))
        views = factor(a, result), factor(b, result)
    return result, Pair(i, j, bool(contracted), *views, shape(result))
