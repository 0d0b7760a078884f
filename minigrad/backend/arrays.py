"""L0: NumPy or CuPy: the module of an array, copies between devices, type promotion.

Ops write `xp = array_module(x)` and then plain array code, so that one text runs on the CPU and on the GPU. Where the
two libraries differ, or where CuPy's function cannot be captured in a CUDA graph, ops call a function of this package:
matrix products (`gemm.py`), sums (`sums.py`), random numbers (`random.py`), and here scattered sums (`scatter_add`),
views of all windows (`sliding_windows`) and additions that keep the memory order (`plus`).
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from minigrad.backend import meta
from minigrad.backend.dtypes import FLOAT32, cast, is_floating, is_half, wrapped

Array: TypeAlias = Any
"""A `numpy.ndarray` or a `cupy.ndarray`. CuPy is optional and untyped, so the alias cannot say more."""


def array_module(x: Array) -> ModuleType:
    """The module whose functions take `x`: numpy or cupy, or `minigrad.backend.meta` for a meta array."""
    if isinstance(x, meta.MetaArray):
        return meta
    return np if isinstance(x, np.ndarray | np.generic) else cupy_module()


def device_of(x: Array) -> str:
    """Where `x` lives: `"cpu"` or `"cuda:0"`."""
    return "cpu" if isinstance(x, np.ndarray | np.generic) else f"cuda:{x.device.id}"


def as_array(x: Any) -> Array:
    """`x` as an array: NumPy returns a scalar, not an array, for a 0-d result."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def plain(x: Any) -> Any:
    """`x`, a subclass of NumPy's array as a plain array on the same memory: np.matrix, whose * is a matrix product,
    np.memmap, np.recarray. Any other x is returned unchanged.

    Raises:
        TypeError: it is a masked array, or a list that holds one: the mask would be lost.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "a masked array would lose its mask, and its hidden values would count: fill it first, as with "
            "x.filled(0), and pass x.mask where a mask is wanted"
        )
    if isinstance(x, list | tuple):
        for part in x:
            if isinstance(part, list | tuple | np.ndarray):
                plain(part)
        return x
    return np.asarray(x) if isinstance(x, np.ndarray) and not isinstance(x, meta.MetaArray) else x


def promote(xs: Sequence[Any]) -> list[Any]:
    """The arrays among `xs` in the one dtype that PyTorch computes in, so that float32 does not become float64.

    Floating-point arrays decide, else those of integers, else booleans; the others take their dtype. Among those that
    decide, one with axes comes before one without. Beside a Python float, integers become float32. Python numbers and
    None are passed on.
    """
    arrays = [x for x in xs if hasattr(x, "dtype")]
    deciding = [x for x in arrays if is_floating(x.dtype)]
    if not deciding and any(isinstance(x, float) for x in xs):
        return [cast(x, FLOAT32) if hasattr(x, "dtype") else x for x in xs]
    deciding = deciding or [x for x in arrays if x.dtype.kind in "iu"]
    dtypes = {x.dtype for x in deciding if x.ndim} or {x.dtype for x in deciding}
    if not dtypes:
        return list(xs)
    if len(dtypes) > 1:  # NumPy has no common type of float16 and bfloat16: it is float32
        dtypes = {FLOAT32 if is_half(dtype) else dtype for dtype in dtypes}
    dtype = np.result_type(*dtypes)
    return [cast(x, dtype) if hasattr(x, "dtype") else x for x in xs]


def promote_and_wrap(xs: Sequence[Any]) -> list[Any]:
    """The same, for arithmetic: a Python integer beyond the range of an n-bit integer dtype is taken modulo 2ⁿ, as the
    result is, and as in PyTorch. NumPy and CuPy refuse it."""
    xs = promote(xs)
    dtype = next((x.dtype for x in xs if hasattr(x, "dtype")), FLOAT32)
    return xs if dtype.kind not in "iu" else [wrapped(x, dtype) if isinstance(x, int) else x for x in xs]


def promote_to_float(xs: Sequence[Any]) -> list[Any]:
    """The same, and where there are only integers, they become float32."""
    integers = "biu"
    return [x.astype(np.float32) if hasattr(x, "dtype") and x.dtype.kind in integers else x for x in promote(xs)]


def to_device(x: Array, device: str) -> Array:
    """`x` on `device` (`"cpu"`, `"cuda"` or `"cuda:0"`); the same array when it is there already.

    Raises:
        ValueError: `device` is not one of these names.
        RuntimeError: a CUDA device is asked for, and CuPy or the GPU is missing.
    """
    number = _gpu_number(device)
    if number is None:
        return x if isinstance(x, np.ndarray | np.generic) else x.get()
    cupy = cupy_module()
    require_gpu(cupy)
    if isinstance(x, np.ndarray | np.generic) and cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError(
            "a copy from the host while a CUDA graph is captured: it would be of memory that is long gone at a replay; "
            "make the array before, or keep it on the device"
        )
    return cupy.asarray(x)


def beside(x: Array, host: np.ndarray) -> Array:
    """`host` where x is, such as a table that an op has computed on the CPU."""
    if isinstance(x, np.ndarray | meta.MetaArray):
        return array_module(x).asarray(host)
    return to_device(host, device_of(x))


def empty(shape: Sequence[int], dtype: Any, device: str) -> Array:
    """An uninitialized array on `device`."""
    number = _gpu_number(device)
    if number is None:
        return np.empty(shape, dtype)
    return cupy_module().empty(shape, dtype)


def _gpu_number(device: str) -> int | None:
    """0 for "cuda" and "cuda:0", None for "cpu"; there is no more than one GPU at work."""
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return None
    if kind != "cuda" or (number and not number.isdigit()):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:0", got {device!r}')
    if int(number or 0):
        raise ValueError(f'one GPU is used, "cuda" or "cuda:0", got {device!r}: CUDA_VISIBLE_DEVICES chooses it')
    return 0


def cuda_is_available() -> bool:
    """Whether `.to("cuda")` can work here: CuPy is installed and it sees a GPU."""
    try:
        require_gpu(cupy_module())
    except RuntimeError:
        return False
    return True


def scatter_add(target: Array, index: Any, source: Array) -> None:
    """`target[index] += source`, where an entry of `target` that is named several times receives every share."""
    if isinstance(target, np.ndarray):
        np.add.at(target, index, source)
    else:
        importlib.import_module("cupyx").scatter_add(target, index, source)


def sliding_windows(x: Array, sizes: Sequence[int], axes: Sequence[int]) -> Array:
    """All windows of these sizes along these axes, as a view: (.., A, ..) -> (.., A - size + 1, .., *sizes).

    CuPy's own function copies the sizes to the GPU and reads them back: it waits, and cannot be captured in a graph.
    """
    tricks = array_module(x).lib.stride_tricks
    if isinstance(x, np.ndarray | meta.MetaArray):
        return tricks.sliding_window_view(x, sizes, axis=axes)
    shape = list(x.shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] -= size - 1
    return tricks.as_strided(x, (*shape, *sizes), (*x.strides, *(x.strides[axis] for axis in axes)))


def plus(a: Array, b: Array) -> Array:
    """a + b, in memory as both are if they are alike, such as images that are channels-last.

    NumPy does so itself. What CuPy adds is in the order of C, whatever the inputs: kernels for channels-last images
    would no longer take it.
    """
    if isinstance(a, np.ndarray) or not (hasattr(a, "flags") and hasattr(b, "flags")) or a.flags.c_contiguous:
        return a + b
    if (a.dtype, a.shape, a.strides) != (b.dtype, b.shape, b.strides):
        return a + b
    y = array_module(a).empty_like(a)
    order = sorted(range(a.ndim), key=lambda axis: -a.strides[axis])  # seen so, all three are in the order of C
    array_module(a).add(a.transpose(order), b.transpose(order), out=y.transpose(order))
    return y


def cupy_module() -> ModuleType:
    """CuPy.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "a CUDA device needs CuPy, which is not installed: pip install 'cupy-cuda13x[ctk]' "
            "(or 'cupy-cuda12x[ctk]' for a CUDA 12 driver)"
        ) from error


def require_gpu(cupy: ModuleType) -> None:
    """Raises a RuntimeError where CuPy is installed but finds no GPU."""
    if not cupy.cuda.is_available():
        raise RuntimeError(
            "CuPy is installed but finds no usable GPU: check `nvidia-smi` and the driver's CUDA version"
        )
