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

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Condition, Lock, Thread
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
        self.threads = [_Worker() for _ in range(threads)] if threads > 1 else []
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

        outcomes: list[tuple[Any, BaseException | None] | None] = [None] * len(shards)
        ended: SimpleQueue[int] = SimpleQueue()

        def run_shard(i: int) -> None:
            try:
                with sums_over_batch(partial(sums.add, i), updates=updates and i == 0):
                    outcomes[i] = _run(self.generators[i], work, *shards[i]), None
            except BaseException as error:
                outcomes[i] = None, error
            finally:
                sums.end()
                ended.put(i)

        try:
            for i, worker in enumerate(self.threads[: len(shards)]):
                worker.submit(partial(run_shard, i))
            while None in outcomes:
                _wait_for(ended)
        except BaseException:  # KeyboardInterrupt: no thread is left running
            sums.end()
            for worker in self.threads:
                worker.finish()
            raise
        errors = [outcome[1] for outcome in outcomes if outcome is not None and outcome[1] is not None]
        # The error that ended one thread, rather than the _EndedError of the threads that waited for this thread.
        for error in sorted(errors, key=lambda error: isinstance(error, _EndedError)):
            raise error
        return [outcome[0] for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """Stop the threads."""
        for worker in self.threads:
            worker.close()

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


class _Worker:
    """A thread that runs jobs, one after another.

    A KeyboardInterrupt may leave a lock of a Python class locked, as in concurrent.futures: the thread would wait for
    ever. `SimpleQueue` is in C.
    """

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = Thread(target=_work, args=(self.jobs,), daemon=True)
        self.thread.start()
        weakref.finalize(self, self.jobs.put, None)

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, after the jobs submitted before."""
        if not self.thread.is_alive():
            raise RuntimeError("Shards: the threads have ended: `run` is called after `close`")
        self.jobs.put(job)

    def finish(self) -> None:
        """Wait until all jobs have ended."""
        ended: SimpleQueue[None] = SimpleQueue()
        self.submit(partial(ended.put, None))
        while not _wait_for(ended):
            pass

    def close(self) -> None:
        """Finish all jobs, and end the thread."""
        self.jobs.put(None)
        self.thread.join()


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    """Run jobs until there is a None."""
    while (job := jobs.get()) is not None:
        job()
        del job  # and the arrays that it holds


def _wait_for(queue: SimpleQueue[Any]) -> bool:
    """Wait for an entry, at most a second; False if there is none. A signal that arrives just before a thread blocks is
    handled only when the thread is woken: otherwise Ctrl-C could be lost."""
    with suppress(Empty):
        queue.get(timeout=1)
        return True
    return False


class _EndedError(RuntimeError):
    """Another thread ended before a sum over all threads was complete."""


def _run(generator: Generator, work: Callable[..., Result], rows: Rows, *arrays: Any) -> Result:
    """Call `work` with this generator, which draws for the images `rows`."""
    with use_generator(generator), generator.drawing(rows):
        return work(*arrays)
