"""L1: data parallel in one process: a batch is cut into shards, and each goes forward and backward in its own thread.

NumPy lets go of Python's lock while it computes, so two threads keep two cores busy all the way, where threads inside
the BLAS library keep the second core busy in matrix products only. The parameters are shared, and the gradients of the
shards add up in them. Two shards give the same sum in either order, a + b = b + a, so a run repeats bit for bit; with
three or more, the last bits depend on which thread comes first.

In training, batch normalisation has the mean and variance of its own shard, not of the whole batch (as PyTorch's has
in DataParallel), and its running statistics move once for each shard, in the order in which these end: a model that has
it is better given whole batches.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from minigrad.backend.random import Generator, use_generator

Result = TypeVar("Result")


class Shards:
    """A pool of threads, each with a random stream of its own for dropout.

    Args:
        threads: into how many shards a batch is cut; 1 is the thread that there is.
        first_seed: of the streams; the i-th thread has seed first_seed + i.
    """

    def __init__(self, threads: int, first_seed: int = 0) -> None:
        if threads < 1:
            raise ValueError(f"Shards: needs at least one thread, got {threads}")
        self.generators = [Generator(first_seed + i) for i in range(threads)]
        self.pool = ThreadPoolExecutor(threads)

    def run(self, work: Callable[..., Result], *arrays: Any) -> list[Result]:
        """`work(*parts)` for every part of the arrays, cut along their first axis, all at the same time.

        Where there is one part only, it is worked on in the thread that asks: a CUDA graph is captured in one thread.
        """
        count, length = len(self.generators), len(arrays[0])
        if count == 1:
            return [_with_generator(self.generators[0], work, *arrays)] if length else []
        bounds = [length * i // count for i in range(count + 1)]
        jobs = [
            self.pool.submit(_with_generator, generator, work, *(array[start:end] for array in arrays))
            for generator, start, end in zip(self.generators, bounds[:-1], bounds[1:], strict=True)
            if start < end
        ]
        return [job.result() for job in jobs]

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()

    def __enter__(self) -> "Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_generator(generator: Generator, work: Callable[..., Result], *parts: Any) -> Result:
    with use_generator(generator):
        return work(*parts)
