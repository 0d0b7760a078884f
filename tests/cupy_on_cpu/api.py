"""The functions of CuPy 14.2, by the signatures in CuPy's wheel, and where CuPy's results differ from NumPy's.

A function missing here may exist in CuPy: its signature has not been checked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.backend.dtypes import is_half

FUNCTIONS = {  # with the names of their parameters other than arrays
    "absolute": "out dtype", "add": "out dtype", "divide": "out dtype", "exp": "out dtype", "log": "out dtype",
    "maximum": "out dtype", "minimum": "out dtype", "multiply": "out dtype", "sign": "out dtype", "sqrt": "out dtype",
    "subtract": "out dtype", "tanh": "out dtype", "copysign": "out dtype", "negative": "out dtype", "cos": "out dtype",
    "isfinite": "out dtype", "isinf": "out dtype", "isnan": "out dtype", "isneginf": "out", "clip": "a_min a_max out",
    "ceil": "out dtype", "expm1": "out dtype", "floor": "out dtype", "fmod": "out dtype", "log1p": "out dtype",
    "rint": "out dtype", "trunc": "out dtype", "isclose": "rtol atol equal_nan",
    "tan": "out dtype", "arcsin": "out dtype", "arccos": "out dtype", "arctan": "out dtype", "arctan2": "out dtype",
    "sinh": "out dtype", "cosh": "out dtype", "log2": "out dtype", "log10": "out dtype",
    "sin": "out dtype", "square": "out dtype", "power": "out dtype", "logaddexp": "out dtype",
    "matmul": "out dtype", "where": "", "allclose": "rtol atol equal_nan", "array_equal": "",
    "arange": "start stop step dtype", "empty": "shape dtype order", "zeros": "shape dtype order",
    "ones": "shape dtype order", "full": "shape fill_value dtype order", "empty_like": "dtype order shape",
    "zeros_like": "dtype order shape", "ones_like": "dtype order shape", "full_like": "fill_value dtype order shape",
    "tri": "N M k dtype", "eye": "N M k dtype order", "bincount": "weights minlength",
    "histogram": "bins range density", "isin": "assume_unique invert", "searchsorted": "side sorter",
    "unique": "return_index return_inverse return_counts axis equal_nan",
    "ascontiguousarray": "dtype", "broadcast_to": "shape", "concatenate": "axis out dtype casting", "stack": "axis out",
    "expand_dims": "axis", "flip": "axis", "moveaxis": "source destination", "pad": "pad_width mode constant_values",
    "roll": "shift axis", "resize": "new_shape", "take": "indices axis out", "shares_memory": "max_work",
    "take_along_axis": "indices axis", "argmax": "axis dtype out keepdims", "argsort": "axis kind",
}  # fmt: skip
METHODS = {
    "all": "axis out keepdims", "any": "axis out keepdims", "argmax": "axis out dtype keepdims",
    "argmin": "axis out dtype keepdims", "astype": "dtype order copy", "clip": "min max out",
    "copy": "order", "cumprod": "axis dtype out", "cumsum": "axis dtype out", "fill": "value", "flatten": "order",
    "max": "axis out keepdims", "mean": "axis dtype out keepdims", "min": "axis out keepdims", "nonzero": "",
    "prod": "axis dtype out keepdims", "ravel": "order", "repeat": "repeats axis", "reshape": "order copy",
    "round": "decimals out", "squeeze": "axis", "std": "axis dtype out ddof keepdims", "sum": "axis dtype out keepdims",
    "swapaxes": "axis1 axis2", "transpose": "", "var": "axis dtype ddof keepdims", "view": "dtype", "dot": "",
}  # fmt: skip
OPERATORS = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]

# NumPy's results have the memory order of the inputs; CuPy's have C order, except for a few functions.
GIVEN_ORDER = {
    "astype", "copy", "empty_like", "full", "full_like", "ones", "ones_like", "pad", "roll", "zeros", "zeros_like",
}  # fmt: skip
# CuPy has no bfloat16 loop for these functions. Some use the loop of another dtype, the others raise.
INSTEAD_OF_BFLOAT16 = {"clip": "float32", "round": "float32", "where": "float32", "std": "float64", "var": "float64"}
SUMS_IN_FLOAT32 = {"sum", "prod", "mean"}  # of 16-bit arrays: CuPy's accumulator is a float
NO_BFLOAT16 = {"argsort", "cumprod", "cumsum", "isin", "unique"}
NO_AXIS_OF_0D = {"all", "any", "argmax", "argmin", "cumprod", "cumsum", "max", "min", "prod", "repeat", "sum"}


def as_cupy(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """NumPy's function, with the memory order and dtype of CuPy's result."""

    def call(*inputs: Any, **options: Any) -> Any:
        bfloat16 = any(getattr(x, "dtype", None) == "bfloat16" for x in inputs)
        if bfloat16 and name in NO_BFLOAT16:
            raise NotImplementedError(f"cupy: {name}() takes no bfloat16")
        if name == "clip" and (bfloat16 or inputs[0].dtype == bool) and any(x is None for x in inputs[1:]):
            raise TypeError("Unsupported type <class 'NoneType'>")  # CuPy's message
        if bfloat16 and name in INSTEAD_OF_BFLOAT16:
            loop = INSTEAD_OF_BFLOAT16[name]
            inputs = tuple(x.astype(loop) if getattr(x, "dtype", None) == "bfloat16" else x for x in inputs)
        if name in SUMS_IN_FLOAT32 and is_half(inputs[0].dtype) and options.get("dtype") is None:
            return np.asarray(call(inputs[0].astype(np.float32), *inputs[1:], **options)).astype(inputs[0].dtype)
        if name == "where":
            _refuse_out_of_range(inputs)
        if name in NO_AXIS_OF_0D and inputs[0].ndim == 0 and options.get("axis") not in (None, ()):
            raise np.exceptions.AxisError(options["axis"], 0)
        result = function(*inputs, **options)
        if name in ("matmul", "dot"):
            result = result.astype(np.result_type(*inputs))  # ml_dtypes returns float32 for bfloat16
        if isinstance(result, bool):  # allclose, array_equal
            return np.asarray(result)
        if not isinstance(result, np.ndarray) or options.get("out") is not None:
            return result
        if any(isinstance(x, np.ndarray) and np.may_share_memory(result, x) for x in inputs):  # a view
            return result
        return result if name in GIVEN_ORDER else np.asarray(result, order="C")

    call.__name__, call.__self__ = name, getattr(function, "__self__", None)  # type: ignore[attr-defined]
    return function if function in (np.empty, np.empty_like) else call


def _refuse_out_of_range(inputs: Sequence[Any]) -> None:
    """Raise OverflowError, as CuPy does, for a Python integer out of range of the arrays' dtype."""
    kinds = [x.dtype for x in inputs if isinstance(x, np.ndarray) and x.dtype != bool]
    if kinds and all(kind.kind in "iu" for kind in kinds):
        held = np.iinfo(np.result_type(*kinds))
        for x in inputs:
            if isinstance(x, int) and not held.min <= x <= held.max:
                raise OverflowError(f"Python integer {x} out of bounds for {held.dtype}")
