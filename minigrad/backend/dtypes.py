"""L0: dtypes, including bfloat16, and casts.

float16 and bfloat16 ("half precision", 16 bits) are storage types: arrays take half the memory, but arithmetic is in
float32. NumPy has no bfloat16 (the upper 16 bits of a float32), which the package ml_dtypes adds.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.backend.fast_paths import fast_path

HALF = ("float16", "bfloat16")
FLOAT32 = np.dtype(np.float32)


def as_dtype(dtype: Any) -> np.dtype:
    """The NumPy dtype for `dtype`, such as `np.float32`, `"float16"` or `"bfloat16"`.

    Raises:
        TypeError: `dtype` is not a dtype.
        RuntimeError: `dtype` is bfloat16, and ml_dtypes is not installed.
    """
    if not (isinstance(dtype, str) and dtype == "bfloat16"):
        return np.dtype(dtype)
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError as error:
        raise RuntimeError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from error


def finfo(dtype: Any) -> Any:
    """The limits of a floating-point dtype, as `np.finfo`: min, max, eps, tiny, ..."""
    dtype = as_dtype(dtype)
    return importlib.import_module("ml_dtypes").finfo(dtype) if dtype.kind == "V" else np.finfo(dtype)


def is_floating(dtype: np.dtype) -> bool:
    """True for floating-point dtypes, including bfloat16, whose `kind` is "V"."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16")


def is_half(dtype: np.dtype) -> bool:
    """True for float16 and bfloat16."""
    return dtype.itemsize == 2 and is_floating(dtype)


def is_held(value: float, dtype: np.dtype) -> bool:
    """True if a Python number is in the range of an integer dtype."""
    info = np.iinfo(dtype)
    return bool(info.min <= value <= info.max)


def wrapped(value: int, dtype: np.dtype) -> int:
    """The integer in the range of this n-bit integer dtype that equals `value` modulo 2ⁿ."""
    minimum, count = np.iinfo(dtype).min, 1 << (8 * dtype.itemsize)
    return (value - minimum) % count + minimum


def half_dtype(xs: Sequence[Any]) -> np.dtype | None:
    """The dtype of the first float16 or bfloat16 array in xs, or None."""
    return next((x.dtype for x in xs if hasattr(x, "dtype") and is_half(x.dtype)), None)


def cast(x: Any, dtype: np.dtype) -> Any:
    """x cast to `dtype`. Floats round to nearest, ±∞ on overflow; integers truncate. No copy if x has this
    dtype."""
    if x.dtype == dtype:
        return x
    fast = fast_path(cast, x, dtype)
    if fast is not None:
        return fast(x, dtype)
    if not is_half(dtype):
        return x.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype)


def cast_all(xs: Sequence[Any], dtype: np.dtype) -> list[Any]:
    """`cast(x, dtype)` for each x; on a GPU, in few kernel launches."""
    fast = fast_path(cast_all, xs, dtype)
    return [cast(x, dtype) for x in xs] if fast is None else fast(xs, dtype)


def upcast(xs: Sequence[Any]) -> list[Any]:
    """xs with float16 and bfloat16 arrays cast to float32."""
    return [cast(x, FLOAT32) if hasattr(x, "dtype") and is_half(x.dtype) else x for x in xs]
