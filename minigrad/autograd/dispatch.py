"""L1: from the inputs of an op to the implementation that runs, and the dtypes that it computes in.

An op's class is mathematics. What else PyTorch users expect of an op is decided here, by rules that stand in one table
(`minigrad/ops/rules.py`):

    promotion   inputs of several dtypes are brought to one, as PyTorch's type promotion does
    autocast    within `minigrad.autocast`, float32 inputs are cast to 16 bits, or 16-bit inputs to float32
    16 bits     other ops than matrix products and copies compute in float32, and their output is cast back
    fast path   the first implementation that supports the inputs runs (`minigrad/backend/fast_paths.py`)
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
    """How the inputs of an op are prepared.

    Args:
        promote: maps the inputs to inputs of one dtype; None: the inputs stay unchanged.
        autocast: what `minigrad.autocast` does with them: a number, how many of the first inputs are cast to 16 bits;
            "float32", all 16-bit inputs are cast to float32; "follow", all are cast to 16 bits if one of them is.
        half: the op computes on 16-bit arrays itself.
    """

    promote: Callable[[Sequence[Any]], list[Any]] | None = None
    autocast: int | str = "follow"
    half: bool = False


RULES: dict[type[Function], Rule] = {}
DEFAULT = Rule()


def dispatch(
    function: type[Function], arrays: list[Any], edges: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Function, list[Any], np.dtype | None]:
    """The op that runs, its inputs, and the 16-bit dtype that its output is cast back to (None: it is not cast)."""
    rule = RULES.get(function, DEFAULT)
    if mode.autocast is not None:
        arrays = mode.autocast.inputs(rule.autocast, edges, arrays)
    if rule.promote is not None:
        arrays = rule.promote(arrays)
    implementation = fast_path(function, *arrays, **options)
    if implementation is not None or rule.half or half_dtype(arrays) is None:
        return (implementation or function)(), arrays, None
    cast_back = next(x.dtype for x in arrays if hasattr(x, "dtype") and is_floating(x.dtype))
    arrays = upcast(arrays)
    return (fast_path(function, *arrays, **options) or function)(), arrays, cast_back
