"""Stage `launches`: host time of one call, on arrays so small that the GPU's time is negligible."""

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.gpu.stages.stage import Options, Parts, Row


def parts(options: Options) -> Parts:
    return {name: partial(launch, name, prepare) for name, prepare in LAUNCHES.items()}


def launch(name: str, prepare: Callable[[Any], Callable[[], Any]], calls: int = 300) -> Iterator[Row]:
    import cupy

    call, times = prepare(cupy.zeros((8, 8), np.float32)), []
    for _ in range(5):
        call()
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        cupy.cuda.Device().synchronize()
        times.append((time.perf_counter() - start) / calls)
    yield {"what": name, "value": statistics.median(times) * 1e6, "unit": "us"}


def gemm_through_cupy(x: Any) -> Callable[[], Any]:
    from minigrad.backend import cublas

    return lambda: cublas.matmul(x, x)


def gemm_through_ctypes(x: Any) -> Callable[[], Any]:
    import cupy

    from minigrad.backend import cublas

    direct = cublas.CtypesBlas(cublas.load_library(), cupy.empty(cublas.WORKSPACE, np.uint8))
    direct.use_stream(cupy.cuda.get_current_stream().ptr)

    def call() -> None:
        with cublas.use_blas(direct):
            cublas.matmul(x, x)

    return call


def with_grad(op: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
    from minigrad import Tensor

    return partial(op, Tensor(x, requires_grad=True))


def gelu(t: Any) -> Any:
    from minigrad import functional as F

    return F.gelu(t)


LAUNCHES: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "cupy: x + x": lambda x: lambda: x + x,
    "cupy: empty": lambda x: partial(importlib.import_module("cupy").empty, (8, 8), np.float32),
    "gemm through CuPy": gemm_through_cupy,
    "gemm through ctypes": gemm_through_ctypes,
    "Tensor add": partial(with_grad, lambda t: t + t),
    "gelu, a kernel of minigrad": partial(with_grad, gelu),
}
