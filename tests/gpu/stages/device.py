"""The GPU of this process: its errors, memory and clock."""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np


def cupy_or_stand_in(cpu: bool) -> AbstractContextManager[None]:
    """With --cpu, tests/cupy_on_cpu replaces CuPy within the block."""
    from tests.cupy_on_cpu import in_place_of_cupy

    return in_place_of_cupy() if cpu else nullcontext()


def synchronize() -> None:
    """Wait for the GPU, if CuPy is in use. Raises the errors of kernels that ran asynchronously."""
    if hasattr(sys.modules.get("cupy"), "__file__"):  # tests/cupy_on_cpu has none
        sys.modules["cupy"].cuda.Device().synchronize()


def alive() -> bool:
    """False if this process has lost the GPU: after an illegal address, every later call fails."""
    try:
        synchronize()
    except Exception:
        return False
    return True


def release() -> None:
    """Free unused memory."""
    gc.collect()
    if hasattr(sys.modules.get("cupy"), "__file__"):
        sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


def normal(*shape: int, offset: int = 0) -> Any:
    """Normal values on the GPU, in float32: 1,000,003 from NumPy, repeated, beginning at an index that depends on
    `offset`. NumPy would take a second for a large array."""
    import cupy

    values = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    return cupy.resize(cupy.asarray(np.roll(values, -7919 * offset)), shape)


def gpu_seconds(work: Callable[[], Any], rounds: int = 5, repeats: int = 10) -> float:
    """Median seconds of one call, by CUDA events. If the kernels are short, Python's overhead dominates."""
    import cupy

    work()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    times = []
    for _ in range(rounds):
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3 / repeats)
    return statistics.median(times)


def host_seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call that synchronizes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
