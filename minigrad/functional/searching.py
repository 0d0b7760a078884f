"""L4: searching and distances."""

from typing import Any, NamedTuple

from minigrad._tensor import Tensor
from minigrad.backend import array_module
from minigrad.backend.dtypes import upcast
from minigrad.methods import numpy_names, raw_array


class Extrema(NamedTuple):
    """The minimum and the maximum."""

    min: Tensor
    max: Tensor


@numpy_names
def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Extrema:
    """(`amin`, `amax`) over `dim`."""
    return Extrema(input.amin(dim, keepdim), input.amax(dim, keepdim))


def searchsorted(sorted_sequence: Tensor, input: Any, *, right: bool = False) -> Tensor:
    """The index at which each element of `input` keeps the 1-D sequence sorted; `right`: behind equal elements."""
    if sorted_sequence.ndim != 1:
        raise ValueError(f"searchsorted: the sequence must be 1-D here, got shape {sorted_sequence.shape}")
    xp = array_module(sorted_sequence.data)
    values = xp.asarray(input.data if isinstance(input, Tensor) else input)
    found = xp.searchsorted(sorted_sequence.data, values, side="right" if right else "left")
    return Tensor(xp.asarray(found))


def bucketize(input: Any, boundaries: Tensor, *, right: bool = False) -> Tensor:
    """The index of the interval of each element between sorted `boundaries`: `searchsorted(boundaries, input)`."""
    return searchsorted(boundaries, input, right=right)


def isin(elements: Tensor, test_elements: Tensor) -> Tensor:
    """True where an element equals one of `test_elements`, as bool."""
    array, tested = upcast([elements.data, raw_array(test_elements, "test_elements", "isin")])
    return Tensor(array_module(array).isin(array, tested))


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0) -> Tensor:
    """The `p`-norms of the differences of all rows: (.., N, D), (.., M, D) -> (.., N, M)."""
    return (x1.unsqueeze(-2) - x2.unsqueeze(-3)).norm(p, -1)
