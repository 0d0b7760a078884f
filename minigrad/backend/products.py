"""L0: NumPy's matrix product, and a measurement of the time spent in it.

Matrix products set the least time of a step on a CPU. All products of `gemm` and of the CPU fast paths call
`products.matmul`, which is `np.matmul` itself: only within `timed` does a call cost more.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

matmul: Callable[..., Any] = np.matmul


@contextmanager
def timed() -> Iterator[list[float]]:
    """Within the block, the CPU seconds of each matrix product, of all threads, are appended to the list.

    with products.timed() as seconds:
        model(x)
    print(sum(seconds))
    """
    global matmul
    seconds: list[float] = []

    def timed_matmul(*arrays: Any, **options: Any) -> Any:
        start = time.thread_time()
        y = np.matmul(*arrays, **options)
        seconds.append(time.thread_time() - start)
        return y

    before, matmul = matmul, timed_matmul
    try:
        yield seconds
    finally:
        matmul = before
