"""L5: draw arrays to check ops with: strategies for the library hypothesis, for shapes, values and memory layouts."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def shapes(
    min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 5
) -> "SearchStrategy[tuple[int, ...]]":
    """Shapes of arrays: scalars, empty ones and sides of 1 included."""
    st = _hypothesis("strategies")
    return st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims).map(tuple)


def broadcastable_shapes(
    count: int, max_dims: int = 4, min_side: int = 0, max_side: int = 5
) -> "SearchStrategy[tuple[tuple[int, ...], ...]]":
    """`count` shapes that broadcast with one another, each of its own length."""
    drawn = _hypothesis("extra.numpy").mutually_broadcastable_shapes(
        num_shapes=count, max_dims=max_dims, min_side=min_side, max_side=max_side
    )
    return drawn.map(lambda broadcastable: broadcastable.input_shapes)


def dtypes() -> "SearchStrategy[type]":
    """The floating dtypes: float64, float32, float16."""
    return _hypothesis("strategies").sampled_from([np.float64, np.float32, np.float16])


def axes(ndim: int) -> "SearchStrategy[int | tuple[int, ...] | None]":
    """What a reduction takes as its axes: None, one, or several distinct ones, counted from either end."""
    st = _hypothesis("strategies")
    if ndim == 0:
        return st.sampled_from([None, ()])
    one = st.integers(-ndim, ndim - 1)
    several = st.lists(one, min_size=1, max_size=ndim, unique_by=lambda axis: axis % ndim).map(tuple)
    return st.none() | one | several


def arrays(
    shape: "tuple[int, ...] | SearchStrategy[tuple[int, ...]]",
    *,
    dtype: Any = np.float64,
    low: float = -2.0,
    high: float = 2.0,
    gap: float = 0.0,
) -> "SearchStrategy[np.ndarray]":
    """Arrays of `shape` (or of drawn shapes) with values from `low` up to `high`, in various memory layouts.

    The values come from a drawn seed and not one by one, so that drawing is fast. With `gap`, any two values differ
    by at least `gap`, and each is that far from 0: then no step of `gradcheck` crosses a kink of max, relu or abs.
    """
    st = _hypothesis("strategies")
    given_shapes = st.just(shape) if isinstance(shape, tuple) else shape
    if np.dtype(dtype) == bool:
        low, high = 0, 2
    layouts = st.sampled_from([_contiguous, _transposed, _strided, _reversed])

    def array(drawn: tuple[tuple[int, ...], int, Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
        shape, seed, lay_out = drawn
        return np.asarray(lay_out(_values(shape, seed, np.dtype(dtype), low, high, gap)))  # of shape () too an array

    return st.tuples(given_shapes, st.integers(0, 2**32 - 1), layouts).map(array)


def _values(shape: tuple[int, ...], seed: int, dtype: np.dtype, low: float, high: float, gap: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype.kind != "f":
        return random.integers(int(low), int(high), shape).astype(dtype)
    if not gap:
        return random.uniform(low, high, shape).astype(dtype)
    # Slots 2·gap apart, 0 left out; a value strays from the middle of its slot by up to gap / 2.
    slots = np.arange(np.ceil(low / (2 * gap) + 0.25), np.floor(high / (2 * gap) - 0.25) + 1)
    slots, count = slots[slots != 0], int(np.prod(shape))
    if count > len(slots):
        raise ValueError(f"arrays: {count} values a gap of {gap} apart do not fit from {low} to {high}")
    middles = 2 * gap * random.permutation(slots)[:count]
    return (middles + random.uniform(-gap / 2, gap / 2, count)).reshape(shape).astype(dtype)


def _contiguous(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    """The same values with the first axis running fastest in memory."""
    return np.asarray(x, order="F")


def _strided(x: np.ndarray) -> np.ndarray:
    """The same values with other numbers between them in memory."""
    spread = np.ones((*x.shape, 2), x.dtype)
    spread[..., 0] = x
    return spread[..., 0]


def _reversed(x: np.ndarray) -> np.ndarray:
    """The same values with every axis running backward in memory."""
    return np.flip(np.flip(x).copy())


def _hypothesis(name: str) -> Any:
    try:
        return importlib.import_module(f"hypothesis.{name}")
    except ImportError as error:
        raise ImportError("minigrad.testing draws with hypothesis: pip install hypothesis") from error
