"""L0: dtypes, bfloat16 among them, and casts.

float16 and bfloat16 ("half precision", 16 bits) are storage types: they halve the memory, and arithmetic is in float32.
NumPy has no bfloat16, the upper half of a float32; the package ml_dtypes adds it.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.backend.fast_paths import fast_path

HALF = ("float16", "bfloat16")
FLOAT32 = np.dtype(np.float32)


def as_dtype(dtype: Any) -> np.dtype:
    """A dtype from whatever names one: `np.float32`, `"float16"`, `"bfloat16"`.

    Raises:
        TypeError: it names none.
        RuntimeError: bfloat16 is asked for, and ml_dtypes is not installed.
    """
    if not (isinstance(dtype, str) and dtype == "bfloat16"):
        return np.dtype(dtype)
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError as error:
        raise RuntimeError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from error


def is_floating(dtype: np.dtype) -> bool:
    """Whether this dtype is floating-point: `dtype.kind` alone does not tell for bfloat16."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16")


def is_half(dtype: np.dtype) -> bool:
    """Whether this is float16 or bfloat16."""
    return dtype.itemsize == 2 and is_floating(dtype)


def is_held(value: float, dtype: np.dtype) -> bool:
    """Whether a Python number is within the range of this integer type."""
    held = np.iinfo(dtype)
    return bool(held.min <= value <= held.max)


def wrapped(value: int, dtype: np.dtype) -> int:
    """The integer of this n-bit integer type that equals `value` modulo 2ⁿ."""
    least, count = np.iinfo(dtype).min, 1 << (8 * dtype.itemsize)
    return (value - least) % count + least


def half_dtype(xs: Sequence[Any]) -> np.dtype | None:
    """The dtype of the first 16-bit floating-point array; None if there is none."""
    return next((x.dtype for x in xs if hasattr(x, "dtype") and is_half(x.dtype)), None)


def cast(x: Any, dtype: np.dtype) -> Any:
    """x in another dtype, rounded to the nearest value, ±∞ beyond the largest; x itself if it has this dtype."""
    if x.dtype == dtype:
        return x
    faster = fast_path(cast, x, dtype)
    if faster is not None:
        return faster(x, dtype)
    if not is_half(dtype):
        return x.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype)


def cast_all(xs: Sequence[Any], dtype: np.dtype) -> list[Any]:
    """`cast(x, dtype)` of each, on a GPU in few launches."""
    faster = fast_path(cast_all, xs, dtype)
    return [cast(x, dtype) for x in xs] if faster is None else faster(xs, dtype)


def upcast(xs: Sequence[Any]) -> list[Any]:
    """xs with 16-bit floating-point arrays upcast to float32."""
    return [cast(x, FLOAT32) if hasattr(x, "dtype") and is_half(x.dtype) else x for x in xs]
