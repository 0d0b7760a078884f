"""L1: data parallelism in one process: a batch is split into shards; each thread runs forward and backward on one.

BLAS threads use several cores in matrix products only. Python threads use several cores in every op, as NumPy releases
the GIL while computing. The threads share the parameters, and add the gradients of their shards into the same `grad`.

The number of threads does not change the result, except by rounding:

  * Dropout draws the mask of each image that one thread would draw: all threads have generators of the same state, and
    `Generator.rows` names the images of the shard.
  * Batch normalisation uses the mean and variance of the whole batch, and updates its running statistics once per
    batch: `batch_sum` adds arrays of all threads, in the order of the shards.

Sums over the batch and masks are reproducible bit for bit. Gradients are too with two shards, as a + b = b + a; with
three or more, the rounding of gradients depends on the order in which threads finish.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Condition, Lock
from types import TracebackType
from typing import Any, TypeVar

from minigrad.backend import Array
from minigrad.backend.batch import Rows, current_sum, split, sums_over_batch, updates_buffers
from minigrad.backend.random import Generator, use_generator

Result = TypeVar("Result")


class Shards:
    """Threads, each with a random generator for dropout. All generators have the same seed and counter.

    Args:
        threads: number of shards per batch; 1 runs in the calling thread.
        seed: the seed of the generators.
    """

    def __init__(self, threads: int, seed: int = 0) -> None:
        if threads < 1:
            raise ValueError(f"Shards: threads must be at least 1, got {threads}")
        self.generators = [Generator(seed) for _ in range(threads)]
        self.threads = [ThreadPoolExecutor(1) for _ in range(threads)]
        if threads > 1:  # started now: a KeyboardInterrupt while a thread starts can leave the thread blocked for ever
            wait([thread.submit(int) for thread in self.threads])
        self.running = Lock()  # threads of two batches would wait for each other

    def run(self, work: Callable[..., Result], *arrays: Any, rows: Rows | None = None) -> list[Result]:
        """Call `work(*shards)` for every shard of the arrays, split along axis 0, in parallel; return all results.

        A batch with fewer images than threads has a shard for each image. One shard runs in the calling thread, as the
        capture of a CUDA graph requires. With several shards, all threads must run the same ops in the same order.

        Args:
            work: runs forward and backward. An error in one thread is raised here, after all threads have ended.
            arrays: of equal length, a row for each image.
            rows: the images of the arrays in a batch that processes share; None: the arrays are the whole batch.
        """
        length = len(arrays[0])
        rows = split(length, 1)[0] if rows is None else rows
        bounds = [bound for part in split(length, len(self.generators)) for bound in part.ranges]
        shards = [(rows.part(start, stop), *(x[start:stop] for x in arrays)) for start, stop in bounds]
        try:
            if len(shards) > 1:
                with self.running:
                    return self._run_in_threads(work, shards)
            return [_run(self.generators[0], work, *shard) for shard in shards]
        finally:
            draws = max(generator.draws for generator in self.generators)
            for generator in self.generators:
                generator.draws = draws

    def _run_in_threads(self, work: Callable[..., Result], shards: list[tuple[Any, ...]]) -> list[Result]:
        sums = _Sums(len(shards), current_sum() or (lambda x: x))
        updates = updates_buffers()

        def run_shard(i: int) -> Result:
            try:
                with sums_over_batch(partial(sums.add, i), updates=updates and i == 0):
                    return _run(self.generators[i], work, *shards[i])
            finally:
                sums.end()

        jobs: list[Future[Result]] = []
        try:
            jobs += (thread.submit(run_shard, i) for i, thread in enumerate(self.threads[: len(shards)]))
            wait(jobs)
        finally:  # after KeyboardInterrupt too, no thread is left running
            sums.end()
            wait(jobs)
        failed = [job for job in jobs if job.exception() is not None]
        # The error that ended one thread, rather than the _EndedError of the threads that waited for this thread.
        for job in sorted(failed, key=lambda job: isinstance(job.exception(), _EndedError)):
            job.result()
        return [job.result() for job in jobs]

    def close(self) -> None:
        """Stop the threads."""
        for thread in self.threads:
            thread.shutdown()

    def __enter__(self) -> "Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Sums:
    """`batch_sum` of the threads of one batch. The last thread to arrive adds the arrays, in the order of the shards,
    so that the sum is the same bit for bit for any order of threads.

    Args:
        count: number of threads.
        outer: the sum over the processes, called once, with the sum over the threads.
    """

    def __init__(self, count: int, outer: Callable[[Array], Array]) -> None:
        self.count, self.outer = count, outer
        self.changed = Condition()
        self.arrays: dict[int, Array] = {}  # of the threads that wait for this sum
        self.number = 0  # of completed sums
        self.total: Array = None  # of the last completed sum; every thread reads it before the next is completed
        self.ended = False  # a thread has ended: no further sum will be complete

    def add(self, shard: int, x: Array) -> Array:
        """The sum of x over all threads, in a new array. Waits for the other threads.

        Raises:
            _EndedError: another thread has ended without calling `add`.
            RuntimeError: the threads add arrays of different shapes.
        """
        with self.changed:
            number = self.number
            self.arrays[shard] = x
            if len(self.arrays) == self.count and not self.ended:
                first, *others = (self.arrays.pop(i) for i in range(self.count))
                if any(x.shape != first.shape for x in others):
                    shapes = [first.shape, *(x.shape for x in others)]
                    raise RuntimeError(f"Shards: all threads must run the same ops in the same order: sums of {shapes}")
                self.total = self.outer(sum(others, first))
                self.number += 1
                self.changed.notify_all()
            else:
                self.changed.wait_for(lambda: self.number > number or self.ended)
                if self.number == number:
                    raise _EndedError(
                        "Shards: a thread waits in batch normalisation for a thread that has ended: all threads must "
                        "run the same ops in the same order, forward and backward"
                    )
            return self.total.copy()

    def end(self) -> None:
        """The calling thread adds no more arrays."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()


def wait(jobs: list[Future[Any]]) -> None:
    """Wait for the end of the jobs.

    A signal that arrives just before a thread blocks is handled only when the thread is woken, so wake it every second:
    otherwise Ctrl-C could be lost. concurrent.futures.wait may keep the locks of jobs after a KeyboardInterrupt.
    """
    for job in jobs:
        while not job.done():
            with suppress(TimeoutError):
                job.exception(timeout=1)


class _EndedError(RuntimeError):
    """Another thread ended before a sum over all threads was complete."""


def _run(generator: Generator, work: Callable[..., Result], rows: Rows, *arrays: Any) -> Result:
    """Call `work` with this generator, which draws for the images `rows`."""
    with use_generator(generator), generator.drawing(rows):
        return work(*arrays)
