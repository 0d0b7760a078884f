"""L5: why arrays cannot be loaded into the parameters and buffers of a module."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import Array
from minigrad.backend.dtypes import cast, is_floating


def misfits(
    own: Mapping[str, Tensor], arrays: Mapping[str, Array], strict: bool, optional: Collection[str]
) -> list[str]:
    """Why `arrays` cannot be loaded into the tensors `own`: a line for each name that does not fit.

    Args:
        strict: report missing and unexpected names, other than the `optional` names.
    """
    common = [name for name in own if name in arrays]
    found = [f"mismatch    {name}: {arrays[name].shape} in the file, {own[name].shape} here"
             for name in common if arrays[name].shape != own[name].shape]  # fmt: skip
    found += [f"unfit       {name}: {arrays[name].dtype} with values that {own[name].dtype} cannot hold"
              for name in common if not can_hold(own[name].dtype, arrays[name])]  # fmt: skip
    first: dict[int, str] = {}  # id of a tensor -> the first of its names
    for name in common:
        other = first.setdefault(id(own[name]), name)
        if other != name and not _equal(arrays[other], arrays[name]):
            found.append(f"differing   {other} and {name}: one parameter here, two values in the file")
    if strict:
        found += [f"missing     {name} {tensor.shape}" for name, tensor in own.items()
                  if id(tensor) not in first and name not in optional]  # fmt: skip
        found += [f"unexpected  {name} {arrays[name].shape}" for name in arrays
                  if name not in own and name not in optional]  # fmt: skip
    return found


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def can_hold(dtype: np.dtype, array: Any) -> bool:
    """True if `array` is real and fits into `dtype`: without overflow, and for an integer dtype exactly."""
    if not is_floating(array.dtype) and array.dtype.kind not in "biu":
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        result = cast(array, dtype)
    if result is array:
        return True
    return not bool((np.isinf(result) & ~np.isinf(array)).any() if is_floating(dtype) else (result != array).any())
