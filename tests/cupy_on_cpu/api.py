"""The functions of CuPy 14.2, by the signatures in CuPy's wheel, and where CuPy's results differ from NumPy's.

A function missing here may exist in CuPy: its signature has not been checked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FUNCTIONS = {  # with the names of their parameters other than arrays
    "absolute": "out dtype", "add": "out dtype", "divide": "out dtype", "exp": "out dtype", "log": "out dtype",
    "maximum": "out dtype", "minimum": "out dtype", "multiply": "out dtype", "sign": "out dtype", "sqrt": "out dtype",
    "subtract": "out dtype", "tanh": "out dtype", "copysign": "out dtype", "negative": "out dtype", "cos": "out dtype",
    "isfinite": "out dtype", "isinf": "out dtype", "isnan": "out dtype", "isneginf": "out", "clip": "a_min a_max out",
    "sin": "out dtype", "square": "out dtype", "power": "out dtype", "logaddexp": "out dtype",
    "matmul": "out dtype", "where": "", "allclose": "rtol atol equal_nan", "array_equal": "",
    "arange": "start stop step dtype", "empty": "shape dtype order", "zeros": "shape dtype order",
    "ones": "shape dtype order", "full": "shape fill_value dtype order", "empty_like": "dtype order shape",
    "zeros_like": "dtype order shape", "ones_like": "dtype order shape", "full_like": "fill_value dtype order shape",
    "tri": "N M k dtype",
    "ascontiguousarray": "dtype", "broadcast_to": "shape", "concatenate": "axis out dtype casting", "stack": "axis out",
    "expand_dims": "axis", "flip": "axis", "moveaxis": "source destination", "pad": "pad_width mode constant_values",
    "roll": "shift axis", "resize": "new_shape", "take": "indices axis out", "shares_memory": "max_work",
    "take_along_axis": "indices axis", "argmax": "axis dtype out keepdims", "argsort": "axis kind",
}  # fmt: skip
METHODS = {
    "all": "axis out keepdims", "any": "axis out keepdims", "argmax": "axis out dtype keepdims",
    "argmin": "axis out dtype keepdims", "astype": "dtype order casting subok copy", "clip": "min max out",
    "copy": "order", "cumprod": "axis dtype out", "cumsum": "axis dtype out", "fill": "value", "flatten": "order",
    "max": "axis out keepdims", "mean": "axis dtype out keepdims", "min": "axis out keepdims", "nonzero": "",
    "prod": "axis dtype out keepdims", "ravel": "order", "repeat": "repeats axis", "reshape": "order copy",
    "round": "decimals out", "squeeze": "axis", "std": "axis dtype out ddof keepdims", "sum": "axis dtype out keepdims",
    "swapaxes": "axis1 axis2", "transpose": "", "var": "axis dtype out ddof keepdims", "view": "dtype", "dot": "",
}  # fmt: skip
OPERATORS = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]

# NumPy's results have the memory order of the inputs; CuPy's have C order, except for a few functions.
AS_THE_INPUT = {"astype", "empty_like", "full_like", "ones_like", "roll", "zeros_like"}
TO_FLOAT32 = {"clip", "round", "where"}  # CuPy has no bfloat16 loop for these, and uses the float32 loop
NO_BFLOAT16 = {"argsort", "cumprod", "cumsum"}


def as_cupy(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """NumPy's function, with the memory order and dtype of CuPy's result."""

    def call(*inputs: Any, **options: Any) -> Any:
        bfloat16 = [x for x in inputs if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16"]
        if bfloat16 and name in NO_BFLOAT16:
            raise TypeError(f"cupy: {name}() takes no bfloat16")
        if name in COMPARISONS or name == "where":
            _refuse_out_of_range(inputs)
        result = function(*inputs, **options)
        if not isinstance(result, np.ndarray) or result.base is not None or options.get("out") is not None:
            return result
        if bfloat16 and name in TO_FLOAT32:
            result = result.astype(np.float32)
        return result if name in AS_THE_INPUT else np.asarray(result, order="C")

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
