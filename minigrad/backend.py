"""L0: NumPy or CuPy. Which module an array belongs to, the moves between devices, and the gates.

Everything above this file writes `xp = array_module(x)` and then plain array code, so that one text runs on the CPU
and on the GPU. Two kinds of work must not be called on `xp` directly but through the gates here, because the two
libraries differ there (or a captured CUDA step needs another path): matrix products (`gemm`) and scattered sums
(`scatter_add`). Random numbers have a gate of their own, `minigrad/random.py`.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from minigrad import meta

Array: TypeAlias = Any
"""A `numpy.ndarray` or a `cupy.ndarray`. CuPy is optional and untyped, so the alias cannot say more."""


def array_module(x: Array) -> ModuleType:
    """The module whose functions take `x`: numpy or cupy, or for an array without numbers `minigrad.meta`."""
    if isinstance(x, meta.MetaArray):
        return meta
    return np if isinstance(x, np.ndarray | np.generic) else cupy_module()


def device_of(x: Array) -> str:
    """Where `x` lives: `"cpu"` or `"cuda:N"`."""
    return "cpu" if isinstance(x, np.ndarray | np.generic) else f"cuda:{x.device.id}"


def whole(x: Any) -> Array:
    """`x` as an array: NumPy makes a scalar of every result that has no axes."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def promote(xs: Sequence[Any]) -> list[Any]:
    """The arrays among `xs` in the one dtype that PyTorch computes in, so that float32 does not become float64.

    Beside a floating-point array, integers take its dtype, and so does a floating-point array without axes; beside a
    Python float alone, integers become float32. Python numbers and None are passed on.
    """
    dtypes = [(x.dtype, x.ndim) for x in xs if hasattr(x, "dtype")]
    floats = [dtype for dtype, ndim in dtypes if dtype.kind == "f" and ndim]
    floats = floats or [dtype for dtype, _ in dtypes if dtype.kind == "f"]
    if not floats and not any(isinstance(x, float) for x in xs):
        return list(xs)
    dtype = np.result_type(*floats) if floats else np.dtype(np.float32)
    return [x.astype(dtype, copy=False) if hasattr(x, "dtype") else x for x in xs]


def promote_to_float(xs: Sequence[Any]) -> list[Any]:
    """The same, and where there are only integers, they become float32."""
    integers = "biu"
    return [x.astype(np.float32) if hasattr(x, "dtype") and x.dtype.kind in integers else x for x in promote(xs)]


def to_device(x: Array, device: str) -> Array:
    """`x` on `device` (`"cpu"`, `"cuda"`, `"cuda:N"`); the same array when it is there already.

    Raises:
        ValueError: `device` is not one of these names.
        RuntimeError: a CUDA device is asked for, and CuPy or the GPU is missing.
    """
    number = _gpu_number(device)
    if number is None:
        return x if isinstance(x, np.ndarray | np.generic) else x.get()
    cupy = cupy_module()
    require_gpu(cupy)
    with cupy.cuda.Device(number):
        return cupy.asarray(x)


def empty(shape: Sequence[int], dtype: Any, device: str) -> Array:
    """An array on `device` whose numbers are whatever was there."""
    number = _gpu_number(device)
    if number is None:
        return np.empty(shape, dtype)
    cupy = cupy_module()
    with cupy.cuda.Device(number):
        return cupy.empty(shape, dtype)


def _gpu_number(device: str) -> int | None:
    """N of "cuda:N", 0 of "cuda", None of "cpu"."""
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return None
    if kind != "cuda" or (number and not number.isdigit()):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:N", got {device!r}')
    return int(number or 0)


def cuda_is_available() -> bool:
    """Whether `.to("cuda")` can work here: CuPy is installed and it sees a GPU."""
    try:
        require_gpu(cupy_module())
    except RuntimeError:
        return False
    return True


def gemm(a: Array, b: Array) -> Array:
    """The one gate for matrix products: `a @ b` over the last two axes, broadcasting the others."""
    if isinstance(a, np.ndarray):
        return np.matmul(a, b)
    if isinstance(a, meta.MetaArray) or a.dtype.kind in "biu":
        return array_module(a).matmul(a, b)
    return importlib.import_module("minigrad.cublas").matmul(a, b)


def scatter_add(target: Array, index: Any, source: Array) -> None:
    """`target[index] += source`, where an entry of `target` that is named several times receives every share."""
    if isinstance(target, np.ndarray):
        np.add.at(target, index, source)
    else:
        importlib.import_module("cupyx").scatter_add(target, index, source)


def cupy_module() -> ModuleType:
    """CuPy.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "a CUDA device needs CuPy, which is not installed: pip install 'minigrad[cuda13]' "
            "(or 'minigrad[cuda12]' for a CUDA 12 driver)"
        ) from error


def require_gpu(cupy: ModuleType) -> None:
    """Raises a RuntimeError where CuPy is installed but finds no GPU."""
    if not cupy.cuda.is_available():
        raise RuntimeError(
            "CuPy is installed but finds no usable GPU: check `nvidia-smi` and the driver's CUDA version"
        )
