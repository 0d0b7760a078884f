"""L4: joining, selection and sums of products."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.methods import numpy_names
from minigrad.ops.einsum import Einsum
from minigrad.ops.elementwise import Where
from minigrad.ops.shape import Cat


@numpy_names
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors along the existing axis `dim`.

    Shapes: equal except along `dim`, where the sizes are added; at least one axis. As in PyTorch, tensors of shape (0,)
    are left out if others have more axes.
    """
    if not all(hasattr(x, "shape") for x in tensors):
        raise TypeError(f"cat: needs a sequence of Tensors, got {[type(x).__name__ for x in tensors]}")
    if len({len(x.shape) for x in tensors}) > 1:
        tensors = [x for x in tensors if x.shape != (0,)]
    return Tensor.apply(Cat, *tensors, axis=dim)


@numpy_names
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors along a new axis; `dim` is its position in the result.

    Shapes: all equal, (...) -> (..., number of tensors, ...).
    """
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"stack: all tensors must have the same shape, got {[t.shape for t in tensors]}")
    return cat([t.unsqueeze(dim) for t in tensors], dim)


concat = concatenate = cat


def atleast_1d(input: Tensor) -> Tensor:
    """The tensor, with an axis of size 1 if 0-d."""
    return input if input.ndim else input.reshape(1)


def atleast_2d(input: Tensor) -> Tensor:
    """The tensor, with leading axes of size 1 for at least two axes: (N,) -> (1, N)."""
    return input if input.ndim > 1 else input.reshape(1, -1)


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along axis 1; of 1-D tensors, along axis 0."""
    rows = [atleast_1d(x) for x in tensors]
    return cat(rows, 0 if rows[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along axis 0; a 1-D tensor is a row."""
    return cat([atleast_2d(x) for x in tensors])


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along axis 1; a 1-D tensor is a column."""
    return cat([x if x.ndim > 1 else x.reshape(-1, 1) for x in tensors], 1)


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors expanded to their common shape, as views."""
    shape = np.broadcast_shapes(*(x.shape for x in tensors))
    return tuple(x.expand(shape) for x in tensors)


def block_diag(*tensors: Tensor) -> Tensor:
    """The matrix with the given matrices on its diagonal, (Nᵢ, Mᵢ), .. -> (Σ Nᵢ, Σ Mᵢ); a 1-D tensor is a row."""
    matrices = [atleast_2d(x) for x in tensors]
    left, right = 0, sum(x.shape[-1] for x in matrices)  # columns of zeros beside each matrix
    rows = []
    for x in matrices:
        n, m = x.shape
        right -= m
        rows.append(cat([x.new_zeros(n, left), x, x.new_zeros(n, right)], 1))
        left += m
    return cat(rows)


def cartesian_prod(*tensors: Tensor) -> Tensor:
    """All combinations of an element of each 1-D tensor, in order: (N₀,), .., (Nₖ₋₁,) -> (N₀ · .. · Nₖ₋₁, k)."""
    columns = [x.reshape(*(-1 if i == k else 1 for i in range(len(tensors)))) for k, x in enumerate(tensors)]
    return stack([x.reshape(-1) for x in broadcast_tensors(*columns)], -1) if len(tensors) > 1 else tensors[0]


def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """y = input where `condition` is True, else other, elementwise. `where(condition)`: the indices where it is True.

    Shapes: all three broadcast. `condition` is a Tensor of bool (else TypeError); `input` and `other` are Tensors or
    Python numbers.
    """
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)
    return Tensor.apply(Where, condition, input, other)


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """y = ln(exp x + exp other), elementwise, without overflow. Floating-point only."""
    return stack(broadcast_tensors(input, other)).logsumexp(0)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Einstein summation: the product of `operands`, summed over the labels that are not in the output.

        einsum("bhid,bhjd->bhij", q, k)     y[b,h,i,j] = Σ_d q[b,h,i,d] · k[b,h,j,d]

    As in PyTorch, a label repeated in one operand selects a diagonal; "..." stands for the axes without a label;
    without "->", the output has the labels that occur once, in alphabetical order.
    """
    if not isinstance(equation, str) or not all(isinstance(x, Tensor) for x in operands):
        raise TypeError('einsum: needs an equation, then Tensors, as in einsum("ij,jk->ik", a, b)')
    return Tensor.apply(Einsum, *operands, equation=equation)


def tensordot(a: Tensor, b: Tensor, dims: int | Sequence[Sequence[int]] = 2) -> Tensor:
    """The sum of products over axes of a and b: the last `dims` of a and the first of b, or two lists of axes."""
    if isinstance(dims, int):
        dims = range(a.ndim - dims, a.ndim), range(dims)
    of_a, of_b = ([dim % x.ndim for dim in axes] for axes, x in zip(dims, (a, b), strict=True))
    rest_a, rest_b = ([dim for dim in range(x.ndim) if dim not in axes] for x, axes in ((a, of_a), (b, of_b)))
    count = int(np.prod([a.shape[dim] for dim in of_a]))
    rows, columns = a.permute(*rest_a, *of_a).reshape(-1, count), b.permute(*of_b, *rest_b).reshape(count, -1)
    return (rows @ columns).reshape([a.shape[dim] for dim in rest_a] + [b.shape[dim] for dim in rest_b])


def inner(input: Tensor, other: Tensor) -> Tensor:
    """The sum of products over the last axis of both; for a 0-d tensor the product."""
    return tensordot(input, other, ([-1], [-1])) if input.ndim and other.ndim else input * other


def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product of two matrices: (N, M), (K, L) -> (N · K, M · L)."""
    (n, m), (k, length) = input.shape, other.shape
    return (input[:, None, :, None] * other[None, :, None, :]).reshape(n * k, m * length)
