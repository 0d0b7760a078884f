"""L0: settings of the process that numerical work on a CPU gains from.

Importing minigrad makes none of them, as they hold for everything in the process: call `tune_cpu()` to have them. The
command line does. Each can be left out, and does nothing where it does not apply.

    threads      BLAS gets the cores that `threads` Python threads leave it. Threads that work side by side on shards
                 of a batch (`minigrad/parallel.py`) and each start BLAS threads of their own would be in each
                 other's way. OMP_NUM_THREADS and OPENBLAS_NUM_THREADS, where somebody has set them, have precedence.
    allocator    glibc keeps memory that is freed. By default a large array's memory goes back to the system at once,
                 and the next array gets fresh pages, which the system fills with zeros one by one as they are touched.
    kernels      OpenBLAS uses its AVX-512 kernels on processors that have AVX-512 but on which it chooses those for
                 AVX2, as on AMD's Zen 4 and Zen 5. NumPy 2.5's OpenBLAS cannot change them any more: there only the
                 variable OPENBLAS_CORETYPE=SkylakeX, set before Python starts, chooses them.
"""

import ctypes
import importlib
import os
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Tuning(NamedTuple):
    """What `tune_cpu` brought about: None or False where it did not apply, or was not asked for."""

    blas_threads: int | None
    allocator: bool
    kernels: str | None  # the name of the kernels now in use, where they were changed


def tune_cpu(threads: int = 1, *, allocator: bool = True, kernels: bool = True) -> Tuning:
    """Set up this process for numerical work. No other thread may be computing meanwhile.

    Args:
        threads: how many Python threads will compute at the same time, as in `Shards(threads)`.
        allocator: keep freed memory for the arrays to come.
        kernels: use AVX-512 where OpenBLAS could but does not. The variable OPENBLAS_CORETYPE has precedence.

    Returns:
        What took effect.
    """
    if threads < 1:
        raise ValueError(f"tune_cpu: threads must be at least 1, got {threads}")
    blas = _openblas()
    return Tuning(
        blas_threads=_limit_blas(blas, max(1, (os.cpu_count() or 1) // threads)),
        allocator=allocator and _keep_freed_memory(),
        kernels=_use_avx512(blas) if kernels else None,
    )


def _limit_blas(blas: ctypes.CDLL | None, threads: int) -> int | None:
    if {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} & set(os.environ):
        return None
    if blas is not None:
        _function(blas, "set_num_threads")(threads)
        return threads
    try:  # MKL, Accelerate, and whatever else NumPy may be built on
        importlib.import_module("threadpoolctl").threadpool_limits(threads, "blas")
    except ImportError:
        return None
    return threads


def _keep_freed_memory() -> bool:
    """mallopt(3): take large arrays from the heap too, do not shrink it, and grow it in large steps."""
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
    """Let OpenBLAS choose its kernels again, and this time by name."""
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
    """The OpenBLAS that came with NumPy, if one did."""
    folder = Path(np.__file__).parent
    files = [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]
    return ctypes.CDLL(str(files[0])) if files else None


def _function(blas: ctypes.CDLL, name: str) -> "ctypes._NamedFuncPointer":
    """A function of OpenBLAS, whose names NumPy's builds give a prefix and a suffix."""
    found = (f"{prefix}openblas_{name}{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", ""))
    return next(getattr(blas, full) for full in found if hasattr(blas, full))


def _processor_flags() -> set[str]:
    """What the processor can do, as Linux tells; elsewhere nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
