"""L1: data parallelism in one process: a batch is split into shards; each thread runs forward and backward on one.

BLAS threads use several cores in matrix products only. Python threads use several cores in every op, as NumPy releases
the GIL while computing. The threads share the parameters, and add the gradients of their shards into the same `grad`.
With two shards, results are reproducible bit for bit, as a + b = b + a; with three or more, rounding depends on the
order in which threads finish.

In training, batch normalisation uses the mean and variance of each shard, as in PyTorch's DataParallel, and updates its
running statistics once per shard, in the order in which threads finish. Prefer one thread for models with BatchNorm.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from minigrad.backend.random import Generator, use_generator

Result = TypeVar("Result")


class Shards:
    """A pool of threads, each with its own random generator for dropout.

    Args:
        threads: number of shards per batch; 1 runs in the calling thread.
        first_seed: thread i has a generator with seed first_seed + i.
    """

    def __init__(self, threads: int, first_seed: int = 0) -> None:
        if threads < 1:
            raise ValueError(f"Shards: threads must be at least 1, got {threads}")
        self.generators = [Generator(first_seed + i) for i in range(threads)]
        self.pool = ThreadPoolExecutor(threads)

    def run(self, work: Callable[..., Result], *arrays: Any) -> list[Result]:
        """Call `work(*shards)` for every shard of the arrays, split along axis 0, in parallel; return all results.

        With one thread, `work` runs in the calling thread, as the capture of a CUDA graph requires.
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
        """Stop the threads."""
        self.pool.shutdown()

    def __enter__(self) -> "Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_generator(generator: Generator, work: Callable[..., Result], *shards: Any) -> Result:
    with use_generator(generator):
        return work(*shards)
