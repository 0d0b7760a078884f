"""The part of CuPy that minigrad uses, on a machine without a GPU: NumPy arrays in a wrapper as strict as CuPy's.

`in_place_of_cupy()` makes `tensor.to("cuda")` work; every test with the fixture `device` runs on these arrays.

    api.py        the functions and arguments that CuPy has; others raise
    array.py      an array that raises on implicit conversion to, or operations with, NumPy arrays
    blas.py       cuBLAS and cublasLt
    capture.py    CUDA graphs; a copy to or from the host raises during capture
    test_rules.py a table of dtypes, memory order, views and errors of CuPy's results

Kernels are run by `tests/cuda/runner.py`. Not covered: speed, and errors of CuPy itself.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from minigrad.backend import cublas
from minigrad.backend.capture import current
from minigrad.backend.fast_paths import FAST_PATHS
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import Dim3, Kernel, use_device
from tests.cuda.runner import HAS_COMPILER, CpuDevice
from tests.cupy_on_cpu.api import FUNCTIONS
from tests.cupy_on_cpu.array import index_of, ndarray, strict, unwrap, wrap
from tests.cupy_on_cpu.blas import HostBlas, HostLt
from tests.cupy_on_cpu.capture import Stream, do, refuse_in_capture

__all__ = ["in_place_of_cupy", "wrap"]

SCATTERED = ("int32", "int64", "float16", "float32", "float64", "uint32", "uint64")


def asarray(x: Any, dtype: Any = None) -> ndarray:
    """Copy to the device: the only function that accepts NumPy arrays."""
    if isinstance(x, ndarray):
        return x if dtype is None or x.dtype == dtype else x.astype(dtype)
    x = np.asarray(x, dtype)
    if x.ndim:  # a scalar is an argument of a kernel
        refuse_in_capture("H2D transfers")
    return ndarray(x.copy("F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"))


def add_at(target: ndarray, index: Any, source: Any) -> None:
    if target.dtype.name not in SCATTERED:
        raise TypeError(f"cupy.add.at only supports {', '.join(SCATTERED)} as data type, got {target.dtype}")
    source = unwrap(source)
    if isinstance(source, int | float):
        source = np.asarray(source, target.dtype)  # OverflowError if it does not fit
    do(np.add.at, target._host, index_of(index), source)


def broadcast_to(host: np.ndarray, shape: Any) -> np.ndarray:
    """A view that can be written to; an axis of length 1 that stays keeps its stride."""
    view = np.broadcast_to(host, shape)
    new = view.ndim - host.ndim
    strides = [host.strides[i - new] if i >= new and host.shape[i - new] == n else 0 for i, n in enumerate(view.shape)]
    return np.lib.stride_tricks.as_strided(host, view.shape, strides)


_allocators: list[Any] = [None]


@contextmanager
def using_allocator(malloc: Any) -> Iterator[None]:
    """Sets the result of `get_allocator`; the memory is allocated by NumPy."""
    _allocators.append(malloc)
    try:
        yield
    finally:
        _allocators.pop()


class MemoryPool:
    """Its memory is allocated by NumPy, so `allocator` is not called."""

    def __init__(self, allocator: Any = None) -> None:
        self.malloc, self.frees = object(), 0

    def set_limit(self, size: int) -> None:
        """The memory of NumPy has no limit."""

    def free_all_blocks(self) -> None:
        refuse_in_capture("frees of memory that captured kernels may use")
        self.frees += 1


class CUDARuntimeError(RuntimeError):
    """The error of a function of the CUDA runtime, with its status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError({status})")
        self.status = status


class Kernels(CpuDevice):
    """Runs kernels, and records them during capture."""

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        tables = current()
        read = [t for t in tables.tables if any(t.memory is x for x in args)] if tables is not None else []
        for t in read:  # filled after the capture, but later operations need the kernel's results now
            t.memory._host[...] = t.rows.view(np.uint64)
        do(super().launch, kernel, grid, block, args, shared)
        for t in read:
            t.memory._host[...] = 0

    def owns(self, x: Any) -> bool:
        """False for arrays elsewhere, and without a compiler: then every op runs its reference implementation."""
        return HAS_COMPILER and super().owns(x)


def module() -> ModuleType:
    """The stand-in for `import cupy`."""
    cupy: Any = ModuleType("cupy")
    cupy.__version__, cupy.ndarray, cupy.asarray, cupy.inf = "14.2.0", ndarray, asarray, np.inf
    for name, parameters in FUNCTIONS.items():
        setattr(cupy, name, strict(broadcast_to if name == "broadcast_to" else getattr(np, name), parameters, name))
    cupy.add.at = add_at
    cupy.from_dlpack = lambda x: wrap(np.from_dlpack(x))
    tricks = np.lib.stride_tricks
    cupy.lib = SimpleNamespace(
        stride_tricks=SimpleNamespace(
            as_strided=strict(
                tricks.as_strided, "shape strides", "as_strided"
            ),  # (other CuPy functions on strides synchronize)
        )
    )
    cupy.cuda = SimpleNamespace(
        is_available=lambda: True, Stream=Stream, get_current_stream=Stream,
        Event=lambda **options: SimpleNamespace(record=lambda stream=None: None),
        MemoryPool=MemoryPool, using_allocator=using_allocator, get_allocator=lambda: _allocators[-1],
        runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
    )  # fmt: skip
    pool = MemoryPool()
    cupy.get_default_memory_pool = lambda: pool
    return cupy


@contextmanager
def in_place_of_cupy() -> Iterator[None]:
    """Within the block, this package replaces CuPy, `HostBlas` cuBLAS and `HostLt` cublasLt."""
    blas, lt = HostBlas(), HostLt()
    with (
        patch.dict(sys.modules, {"cupy": module()}),
        cublas.use_blas(blas),
        use_device(Kernels(array=ndarray)),
        patch("minigrad.cuda_graph.direct_blas", lambda device, stream: blas),
        patch("minigrad.backend.cublas_lt.shared", lambda: lt),
        patch.dict(FAST_PATHS, {} if HAS_COMPILER else {Generator.words: (), Generator.uniform: ()}),
    ):
        yield
