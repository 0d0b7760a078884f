"""L3: the data that users pass to Tensor and to ops, as arrays; error messages for data of a wrong type or shape."""

from typing import Any

import numpy as np

from minigrad.autograd.anomaly import describe
from minigrad.autograd.function import Function
from minigrad.backend import Array, device_of, plain, to_device
from minigrad.backend.dtypes import FLOAT32, as_dtype, cast
from minigrad.ops import checks

_DTYPES = {np.dtype(t) for t in (np.float16, np.float32, np.float64, bool, "u1", "i1", "i2", "i4", "i8")}


def to_array(data: Any, dtype: Any, device: str | None) -> Array:
    """The array of a new Tensor: `data` itself if it is an array of this dtype on this device.

    Args:
        data: a number, nested lists, or an array.
        dtype: None keeps an array's dtype and converts Python floats to float32.
        device: None keeps the device.
    """
    data = plain(data)
    if not hasattr(data, "dtype"):
        if dtype is not None:
            check_range(data, as_dtype(dtype), "Tensor")
        data = np.asarray(data)
        if data.dtype == np.float64 and dtype is None:
            data = data.astype(FLOAT32)
    elif not hasattr(data, "__array_interface__") and not hasattr(data, "__cuda_array_interface__"):
        raise TypeError(
            f"a Tensor holds a NumPy or CuPy array, got {type(data).__name__}; from_dlpack() converts other arrays"
        )
    if isinstance(data, np.generic):
        data = np.asarray(data)
    if dtype is not None:
        data = cast(data, as_dtype(dtype))
    if data.dtype not in _DTYPES and data.dtype.name != "bfloat16":
        raise TypeError(
            f"a Tensor holds float16, bfloat16, float32, float64, bool or integers, got {data.dtype}"
            + ("; do all nested lists have the same length?" if data.dtype == object else "")
            + ("; for bfloat16 from a .npz file, x.view(ml_dtypes.bfloat16)" if data.dtype == np.dtype("V2") else "")
        )
    return data if device is None else to_device(data, device)


def operand(x: Any, function: type[Function]) -> Any:
    """The input `x` of an op, where x is not a Tensor: as an array or a Python number."""
    if isinstance(x, np.generic):
        return x.item()  # a float64 scalar would promote float32 to float64
    if isinstance(x, int | float | np.ndarray) or hasattr(x, "__cuda_array_interface__"):
        return plain(x)
    raise TypeError(
        f"{function.__name__}: takes Tensors, arrays and real numbers, got {type(x).__name__}; convert with Tensor(...)"
    )


def check_range(data: Any, dtype: np.dtype, op: str) -> None:
    """Raise ValueError if a Python integer in `data` (a number or nested lists) is out of range for an integer `dtype`.

    NumPy's cast would return the integer modulo 2ⁿ.
    """
    array = np.asarray(data) if dtype.kind in "iu" else np.empty(0)
    if array.size and array.dtype.kind in "iu":
        for extreme in (array.min(), array.max()):
            checks.entry(extreme, dtype, op)


def explain(error: Exception, op: Function, arrays: list[Any]) -> None:
    """Add the inputs and the likely cause to an error that an op's forward raised."""
    devices = {device_of(x) for x in arrays if hasattr(x, "dtype")}
    if len(devices) > 1:
        error.add_note(f"the inputs are on different devices, {sorted(devices)}: move them with .to(device)")
    error.add_note(f"inputs of {op.op_name}: {describe(arrays)}")
    shapes = [x.shape for x in arrays if hasattr(x, "shape")]
    if "could not be broadcast together" in str(error) and not _broadcast(shapes):
        raise ValueError(
            f"{op.op_name.lower()}: shapes {' and '.join(map(str, shapes))} do not broadcast: aligned at the right, "
            "two sizes must be equal, or one of them 1"
        ) from error


def _broadcast(shapes: list[tuple[int, ...]]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True
