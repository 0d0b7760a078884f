"""L1: dispatch: choose the implementation of an op, and the dtypes of its inputs.

An op's class contains only its mathematics. The rest is decided here, by the rules in `minigrad/ops/rules.py`:

    promotion        inputs of several dtypes are cast to one dtype, as PyTorch promotes types
    autocast         within `minigrad.autocast`, float32 inputs are cast to 16 bits, or 16-bit inputs to float32
    half precision   16-bit inputs of most ops are upcast to float32, and the output is cast back
    fast path        the first implementation that supports the inputs runs (`minigrad/backend/fast_paths.py`)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import mode
from minigrad.backend.dtypes import half_dtype, is_floating, upcast
from minigrad.backend.fast_paths import fast_path


@dataclass(frozen=True)
class Rule:
    """How `dispatch` prepares the inputs of an op.

    Args:
        promote: casts the inputs to one dtype; None: no type promotion.
        autocast: within `minigrad.autocast`, an integer n casts the first n inputs to 16 bits, "float32" casts 16-bit
            inputs to float32, and "follow" casts all inputs to 16 bits if one of them is 16-bit.
        half: the op's own code supports 16-bit arrays, so they are not upcast to float32 (but with a Python number
            they are: NumPy and CuPy give float32 for a bfloat16 array times a Python float).
    """

    promote: Callable[[Sequence[Any]], list[Any]] | None = None
    autocast: int | str = "follow"
    half: bool = False


RULES: dict[type[Function], Rule] = {}
DEFAULT = Rule()


def dispatch(
    function: type[Function], arrays: list[Any], edges: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Function, list[Any], np.dtype | None]:
    """The op to run, its prepared inputs, and the dtype of the first floating input, to which a float32 output is cast
    back (None: no cast)."""
    rule = RULES.get(function, DEFAULT)
    if mode.autocast is not None:
        arrays = mode.autocast.inputs(rule.autocast, edges, arrays)
    if rule.promote is not None:
        arrays = rule.promote(arrays)
    implementation = fast_path(function, *arrays, **options)
    half = rule.half and not any(isinstance(x, int | float) for x in arrays)
    if implementation is not None or half or half_dtype(arrays) is None:
        return (implementation or function)(), arrays, None
    cast_back = next(x.dtype for x in arrays if hasattr(x, "dtype") and is_floating(x.dtype))
    arrays = upcast(arrays)
    return (fast_path(function, *arrays, **options) or function)(), arrays, cast_back
