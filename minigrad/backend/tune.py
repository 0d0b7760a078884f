"""L0: process-wide settings that speed up numerical computation on a CPU.

Importing minigrad changes no settings: call `tune_cpu()`, as `python -m train` does. Each setting is optional, and has
no effect on systems without the feature.

    threads      BLAS uses cores / `threads` threads. Without the limit, Python threads that compute shards of a batch
                 (`minigrad/parallel/threads.py`) and their BLAS threads would oversubscribe the cores. The environment
                 variables OMP_NUM_THREADS and OPENBLAS_NUM_THREADS take precedence. BLAS threads wait for each other
                 in a busy loop after each product: on a machine where other programs run, small products, as for a
                 batch of 1, can take ten times as long with two BLAS threads as with one. There, use one:
                 `tune_cpu(threads=os.cpu_count())`, or OPENBLAS_NUM_THREADS=1 before Python starts.
    allocator    glibc keeps freed memory. By default the memory of a large array is returned to the system at once, and
                 each page of the next array costs a page fault and the zeroing of the page.
    kernels      OpenBLAS uses its AVX-512 kernels on processors with AVX-512 for which it selects AVX2 by default:
                 AMD's Zen 4 and Zen 5. The OpenBLAS of NumPy 2.5 cannot switch kernels: there, set the environment
                 variable OPENBLAS_CORETYPE=SkylakeX before Python starts.
"""

import ctypes
import importlib
import os
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Tuning(NamedTuple):
    """The settings that `tune_cpu` changed: None or False for settings that did not apply or were not requested."""

    blas_threads: int | None
    allocator: bool
    kernels: str | None  # the name of OpenBLAS's kernels, if changed


def tune_cpu(threads: int = 1, *, allocator: bool = True, kernels: bool = True) -> Tuning:
    """Tune this process for numerical computation. No other thread may compute during the call.

    Args:
        threads: number of Python threads that will compute at the same time, as in `Shards(threads)`.
        allocator: keep freed memory for later arrays.
        kernels: use AVX-512 where OpenBLAS selects AVX2. The environment variable OPENBLAS_CORETYPE takes precedence.

    Returns:
        The settings that took effect.

    Raises:
        ValueError: threads is less than 1.
    """
    if threads < 1:
        raise ValueError(f"tune_cpu: threads must be at least 1, got {threads}")
    blas = _openblas()
    return Tuning(
        blas_threads=limit_blas(max(1, (os.cpu_count() or 1) // threads), blas),
        allocator=allocator and _keep_freed_memory(),
        kernels=_use_avx512(blas) if kernels else None,
    )


def limit_blas(threads: int, blas: ctypes.CDLL | None = None) -> int | None:
    """Let BLAS use this number of threads, unless the environment says how many. Returns the number, if it took effect.

    blas: from `_openblas`, if the caller has it.
    """
    blas = blas or _openblas()
    if {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} & set(os.environ):
        return None
    if blas is not None:
        _function(blas, "set_num_threads")(threads)
        return threads
    try:  # another BLAS, such as MKL or Accelerate
        importlib.import_module("threadpoolctl").threadpool_limits(threads, "blas")
    except ImportError:
        return None
    return threads


def _keep_freed_memory() -> bool:
    """mallopt(3): allocate large arrays on the heap too, never shrink the heap, and grow it in large steps."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST, _M_TOP_PAD: 64 << 20, _M_ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # malloc.h
_LARGEST = 2**31 - 1


def _use_avx512(blas: ctypes.CDLL | None) -> str | None:
    if blas is None or not hasattr(blas, "gotoblas_dynamic_init"):
        return None
    if "OPENBLAS_CORETYPE" in os.environ or not _processor_flags() >= _AVX512:
        return None
    return _switch_kernels(blas, "SkylakeX") if _kernels(blas) in ("Haswell", "Zen") else None


_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def _switch_kernels(blas: ctypes.CDLL, kind: str) -> str:
    """Make OpenBLAS select the kernels of this name. Returns the name of the selected kernels."""
    os.environ["OPENBLAS_CORETYPE"] = kind
    try:
        blas.gotoblas_dynamic_quit()
        blas.gotoblas_dynamic_init()
    finally:
        del os.environ["OPENBLAS_CORETYPE"]
    return _kernels(blas)


def _kernels(blas: ctypes.CDLL) -> str:
    name = _function(blas, "get_corename")
    name.restype = ctypes.c_char_p
    return str(name().decode())


def _openblas() -> ctypes.CDLL | None:
    """The OpenBLAS in NumPy's wheel, or None if there is none."""
    folder = Path(np.__file__).parent
    files = [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]
    return ctypes.CDLL(str(files[0])) if files else None


def _function(blas: ctypes.CDLL, name: str) -> "ctypes._NamedFuncPointer":
    """A function of OpenBLAS. NumPy's builds add a prefix and a suffix to the names."""
    found = (f"{prefix}openblas_{name}{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", ""))
    return next(getattr(blas, full) for full in found if hasattr(blas, full))


def _processor_flags() -> set[str]:
    """The CPU flags from /proc/cpuinfo; empty outside Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
