"""L7: data parallel in one process: a batch is cut into shards, and each goes forward and backward in its own thread.

NumPy lets go of Python's lock while it computes, so two threads keep two cores busy all the way, where threads inside
the BLAS library keep the second core busy in matrix products only. The parameters are shared, and the gradients of the
shards add up in them. Two shards give the same sum in either order, a + b = b + a, so a run repeats bit for bit; with
three or more, the last bits depend on which thread comes first. Batch normalisation would see its shard alone, so a
model that has it is given whole batches.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")


def limit_blas(threads: int) -> None:
    """Share the cores out between `threads` and BLAS. Heard only before NumPy is first imported.

    Whoever has set one of these variables knows better, and is left alone.
    """
    cores = os.cpu_count() or 1
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, cores // threads)))


class Shards:
    """A pool of threads, each with a random stream of its own for dropout."""

    def __init__(self, threads: int, first_seed: int) -> None:
        from minigrad.random import Generator  # here, so that `limit_blas` can be imported before NumPy

        self.generators = [Generator(first_seed + i) for i in range(threads)]
        self.pool = ThreadPoolExecutor(threads)

    def run(self, work: Callable[..., Result], *arrays: Any) -> list[Result]:
        """`work(*parts)` for every part of the arrays, cut along their first axis, all at the same time."""
        count, length = len(self.generators), len(arrays[0])
        bounds = [length * i // count for i in range(count + 1)]
        jobs = [
            self.pool.submit(_with_generator, generator, work, *(array[start:end] for array in arrays))
            for generator, start, end in zip(self.generators, bounds[:-1], bounds[1:], strict=True)
            if start < end
        ]
        return [job.result() for job in jobs]

    def __enter__(self) -> "Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown()


def _with_generator(generator: Any, work: Callable[..., Result], *parts: Any) -> Result:
    from minigrad.random import use_generator

    with use_generator(generator):
        return work(*parts)
