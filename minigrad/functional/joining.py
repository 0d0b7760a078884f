"""L4: joining, selection and sums of products."""

from collections.abc import Sequence
from typing import Any

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


def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """y = input where `condition` is True, else other, elementwise.

    Shapes: all three broadcast. `condition` is a Tensor of bool (else TypeError); `input` and `other` are Tensors or
    Python numbers.
    """
    return Tensor.apply(Where, condition, input, other)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Einstein summation: the product of `operands`, summed over the labels that are not in the output.

        einsum("bhid,bhjd->bhij", q, k)     y[b,h,i,j] = Σ_d q[b,h,i,d] · k[b,h,j,d]

    As in PyTorch, a label repeated in one operand selects a diagonal; "..." stands for the axes without a label;
    without "->", the output has the labels that occur once, in alphabetical order.
    """
    if not isinstance(equation, str) or not all(isinstance(x, Tensor) for x in operands):
        raise TypeError('einsum: needs an equation, then Tensors, as in einsum("ij,jk->ik", a, b)')
    return Tensor.apply(Einsum, *operands, equation=equation)
