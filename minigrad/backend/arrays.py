"""L0: NumPy or CuPy: the module of an array, copies between devices, type promotion.

Ops call functions of `xp = array_module(x)`, so that the same code runs on the CPU and on the GPU. If NumPy and CuPy
differ, or CuPy's function cannot be captured in a CUDA graph, ops call a function of this package: matrix products
(`gemm.py`), sums (`sums.py`), random numbers (`random.py`), and in this file `scatter_add`, `sliding_windows` and
additions that keep the memory layout (`plus`).
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from minigrad.backend import meta
from minigrad.backend.dtypes import FLOAT32, cast, is_floating, is_half, wrapped

Array: TypeAlias = Any
"""A `numpy.ndarray` or a `cupy.ndarray`; `Any`, as CuPy is optional and has no type annotations."""


def array_module(x: Array) -> ModuleType:
    """The module with functions for `x`: numpy, cupy, or `minigrad.backend.meta` for a meta array."""
    if isinstance(x, meta.MetaArray):
        return meta
    return np if isinstance(x, np.ndarray | np.generic) else cupy_module()


class Device(str):
    """The name of a device, "cpu", "cuda" or "cuda:0": a string with PyTorch's attributes."""

    __slots__ = ()

    def __new__(cls, name: str, index: int | None = None) -> "Device":
        self = super().__new__(cls, name if index is None else f"{name}:{index}")
        _gpu_number(self)  # raises a ValueError for other names
        return self

    @property
    def type(self) -> str:
        """The kind of device: "cpu" or "cuda"."""
        return self.partition(":")[0]

    @property
    def index(self) -> int | None:  # type: ignore[override]
        """The number after the colon, or None."""
        number = self.partition(":")[2]
        return int(number) if number else None


def device_of(x: Array) -> str:
    """The device of `x`: `"cpu"` or `"cuda:0"`."""
    return "cpu" if isinstance(x, np.ndarray | np.generic) else f"cuda:{x.device.id}"


def as_array(x: Any) -> Array:
    """`x` as an array: for a 0-d result, NumPy returns a scalar, not an array."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def plain(x: Any) -> Any:
    """`x`, with a subclass of np.ndarray (np.matrix, np.memmap, np.recarray) viewed as np.ndarray: subclasses redefine
    operators, as np.matrix does `*`.

    Raises:
        TypeError: `x` is or contains a masked array, whose mask would be lost.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "a masked array would lose its mask, and its masked values would be used: fill the array first, as in "
            "x.filled(0), and pass x.mask as a separate argument where a mask is supported"
        )
    if isinstance(x, list | tuple):
        for item in x:
            if isinstance(item, list | tuple | np.ndarray):
                plain(item)
        return x
    return np.asarray(x) if isinstance(x, np.ndarray) and not isinstance(x, meta.MetaArray) else x


def promote(xs: Sequence[Any]) -> list[Any]:
    """`xs` with all arrays cast to the dtype that PyTorch promotes to, so that float32 does not become float64.

    The highest category among the arrays, floating point > integer > bool, determines the dtype; within this category,
    0-d arrays count only if all its arrays are 0-d. Integers with a Python float become float32. Python numbers and
    None are returned unchanged.
    """
    arrays = [x for x in xs if hasattr(x, "dtype")]
    highest = [x for x in arrays if is_floating(x.dtype)]
    if not highest and any(isinstance(x, float) for x in xs):
        return [cast(x, FLOAT32) if hasattr(x, "dtype") else x for x in xs]
    highest = highest or [x for x in arrays if x.dtype.kind in "iu"]
    dtypes = {x.dtype for x in highest if x.ndim} or {x.dtype for x in highest}
    if not dtypes:
        return list(xs)
    if len(dtypes) > 1:  # NumPy cannot promote float16 with bfloat16; PyTorch promotes them to float32
        dtypes = {FLOAT32 if is_half(dtype) else dtype for dtype in dtypes}
    dtype = np.result_type(*dtypes)
    return [cast(x, dtype) if hasattr(x, "dtype") else x for x in xs]


def promote_and_wrap(xs: Sequence[Any]) -> list[Any]:
    """`promote`, for arithmetic: a Python integer out of range for an n-bit integer dtype wraps modulo 2ⁿ, as in
    PyTorch. NumPy and CuPy would raise an error."""
    xs = promote(xs)
    dtype = next((x.dtype for x in xs if hasattr(x, "dtype")), FLOAT32)
    return xs if dtype.kind not in "iu" else [wrapped(x, dtype) if isinstance(x, int) else x for x in xs]


def promote_to_float(xs: Sequence[Any]) -> list[Any]:
    """`promote`; if the arrays are only integers or bool, they become float32."""
    integers = "biu"
    return [x.astype(np.float32) if hasattr(x, "dtype") and x.dtype.kind in integers else x for x in promote(xs)]


def to_device(x: Array, device: str) -> Array:
    """`x` on `device` (`"cpu"`, `"cuda"` or `"cuda:0"`); no copy if `x` is already on `device`.

    Raises:
        ValueError: `device` is not one of these names.
        RuntimeError: `device` is a CUDA device, but CuPy or a GPU is missing, or a CUDA graph is being captured.
    """
    number = _gpu_number(device)
    if number is None:
        return x if isinstance(x, np.ndarray | np.generic) else x.get()
    cupy = cupy_module()
    require_gpu(cupy)
    if isinstance(x, np.ndarray | np.generic) and cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError(
            "a copy from the host during CUDA graph capture: a replay would read host memory that was freed; "
            "create the array before the capture, or on the device"
        )
    return cupy.asarray(x)


def to_device_of(array: np.ndarray, x: Array) -> Array:
    """A NumPy array, such as a table that an op computed on the CPU, on the device of x."""
    if isinstance(x, np.ndarray | meta.MetaArray):
        return array_module(x).asarray(array)
    return to_device(array, device_of(x))


def empty(shape: Sequence[int], dtype: Any, device: str) -> Array:
    """An uninitialized array on `device`."""
    number = _gpu_number(device)
    if number is None:
        return np.empty(shape, dtype)
    return cupy_module().empty(shape, dtype)


def _gpu_number(device: str) -> int | None:
    """The number of the GPU: 0 for "cuda" and "cuda:0"; None for "cpu". Other GPUs are not supported."""
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return None
    if kind != "cuda" or (number and not number.isdigit()):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:0", got {device!r}')
    if int(number or 0):
        raise ValueError(f'only one GPU is supported, "cuda" or "cuda:0", got {device!r}: set CUDA_VISIBLE_DEVICES')
    return 0


def cuda_is_available() -> bool:
    """True if CuPy is installed and finds a GPU, as `x.to("cuda")` requires."""
    try:
        require_gpu(cupy_module())
    except RuntimeError:
        return False
    return True


def scatter_add(target: Array, index: Any, source: Array) -> None:
    """`target[index] += source`, but if `index` contains duplicates, all their terms are added."""
    array_module(target).add.at(target, index, source)


def sliding_windows(x: Array, sizes: Sequence[int], axes: Sequence[int]) -> Array:
    """A view of all windows of these sizes along these axes: (.., A, ..) -> (.., A - size + 1, .., *sizes).

    NumPy's sliding_window_view takes three times as long as as_strided; CuPy's synchronizes with the GPU, so it cannot
    be captured in a CUDA graph.
    """
    tricks = array_module(x).lib.stride_tricks
    if isinstance(x, meta.MetaArray):
        return tricks.sliding_window_view(x, sizes, axis=axes)
    shape = list(x.shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] -= size - 1
    return tricks.as_strided(x, (*shape, *sizes), (*x.strides, *(x.strides[axis] for axis in axes)))


def plus(a: Array, b: Array) -> Array:
    """a + b, in the memory layout of a and b if both have the same layout, such as channels-last.

    NumPy's addition keeps the layout. CuPy's result is always C-contiguous, which kernels for channels-last images do
    not support.
    """
    if isinstance(a, np.ndarray) or not (hasattr(a, "flags") and hasattr(b, "flags")) or a.flags.c_contiguous:
        return a + b
    if (a.dtype, a.shape, a.strides) != (b.dtype, b.shape, b.strides):
        return a + b
    y = array_module(a).empty_like(a)
    order = sorted(range(a.ndim), key=lambda axis: -a.strides[axis])  # makes a, b and y C-contiguous
    array_module(a).add(a.transpose(order), b.transpose(order), out=y.transpose(order))
    return y


def cupy_module() -> ModuleType:
    """Import CuPy.

    Raises:
        RuntimeError: CuPy is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != "cupy":
            raise RuntimeError(
                f"a CUDA device needs CuPy, which is installed, but cannot be imported: {error}"
            ) from error
        raise RuntimeError(
            "a CUDA device needs CuPy, which is not installed: pip install 'cupy-cuda13x[ctk]' "
            "(or 'cupy-cuda12x[ctk]' for a CUDA 12 driver)"
        ) from error


def require_gpu(cupy: ModuleType) -> None:
    """Raise RuntimeError if CuPy finds no GPU."""
    if not cupy.cuda.is_available():
        raise RuntimeError(
            "CuPy is installed but finds no usable GPU: check `nvidia-smi` and the driver's CUDA version"
        )
