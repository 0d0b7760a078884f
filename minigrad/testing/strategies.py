"""L5: hypothesis strategies for arrays: shapes, axes, dtypes, values and memory layouts."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def shapes(
    min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 5
) -> "SearchStrategy[tuple[int, ...]]":
    """Shapes of arrays, including (), empty shapes and axes of size 1."""
    st = _hypothesis("strategies")
    return st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims).map(tuple)


def broadcastable_shapes(
    count: int, max_dims: int = 4, min_side: int = 0, max_side: int = 5
) -> "SearchStrategy[tuple[tuple[int, ...], ...]]":
    """Tuples of `count` shapes that broadcast together, in general with different numbers of axes."""
    drawn = _hypothesis("extra.numpy").mutually_broadcastable_shapes(
        num_shapes=count, max_dims=max_dims, min_side=min_side, max_side=max_side
    )
    return drawn.map(lambda broadcastable: broadcastable.input_shapes)


def dtypes() -> "SearchStrategy[type]":
    """The floating-point dtypes float64, float32 and float16."""
    return _hypothesis("strategies").sampled_from([np.float64, np.float32, np.float16])


def axes(ndim: int) -> "SearchStrategy[int | tuple[int, ...] | None]":
    """The argument `axis` of a reduction: None, an axis, or a tuple of distinct axes, also negative."""
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
    """Arrays of `shape`, a shape or a strategy for shapes, with values in [low, high), in various memory layouts.

    For speed, hypothesis draws a seed, not every value. With `gap`, values differ from one another and from 0 by at
    least `gap`, so that no step of `gradcheck` crosses a kink of max, relu or abs.
    """
    st = _hypothesis("strategies")
    given_shapes = st.just(shape) if isinstance(shape, tuple) else shape
    if np.dtype(dtype) == bool:
        low, high = 0, 2
    layouts = st.sampled_from([_contiguous, _transposed, _strided, _reversed])

    def array(drawn: tuple[tuple[int, ...], int, Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
        shape, seed, layout = drawn
        return np.asarray(layout(_values(shape, seed, np.dtype(dtype), low, high, gap)))  # also for shape (), an array

    return st.tuples(given_shapes, st.integers(0, 2**32 - 1), layouts).map(array)


def _values(shape: tuple[int, ...], seed: int, dtype: np.dtype, low: float, high: float, gap: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype.kind != "f":
        return random.integers(int(low), int(high), shape).astype(dtype)
    if not gap:
        return random.uniform(low, high, shape).astype(dtype)
    # Distinct multiples of 2·gap, except 0, each shifted by at most gap / 2.
    multiples = np.arange(np.ceil(low / (2 * gap) + 0.25), np.floor(high / (2 * gap) - 0.25) + 1)
    multiples, count = multiples[multiples != 0], int(np.prod(shape))
    if count > len(multiples):
        raise ValueError(f"arrays: {count} values with a gap of {gap} do not fit in the range from {low} to {high}")
    centers = 2 * gap * random.permutation(multiples)[:count]
    return (centers + random.uniform(-gap / 2, gap / 2, count)).reshape(shape).astype(dtype)


def _contiguous(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    """The same values in Fortran order: the first axis is contiguous."""
    return np.asarray(x, order="F")


def _strided(x: np.ndarray) -> np.ndarray:
    """The same values with gaps between them in memory."""
    spread = np.ones((*x.shape, 2), x.dtype)
    spread[..., 0] = x
    return spread[..., 0]


def _reversed(x: np.ndarray) -> np.ndarray:
    """The same values with negative strides along every axis."""
    return np.flip(np.flip(x).copy())


def _hypothesis(name: str) -> Any:
    try:
        return importlib.import_module(f"hypothesis.{name}")
    except ImportError as error:
        raise ImportError("the strategies of minigrad.testing need hypothesis: pip install hypothesis") from error
