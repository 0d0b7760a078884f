"""Ranks that are threads of this process: `World` with an engine that needs no MPI."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minigrad.parallel import World

TIMEOUT = 30  # seconds: a rank that waits longer for the others raises BrokenBarrierError


class Shared:
    """What the ranks share: a place for each rank's value."""

    def __init__(self, size):
        self.size = size
        self.values = [None] * size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)


class ThreadEngine:
    """The operations of an engine, on arrays of threads. `calls` lists the operations of this rank."""

    def __init__(self, shared, rank):
        self.shared, self.rank, self.size, self.calls = shared, rank, shared.size, []

    def exchange(self, operation, value):
        """The values of all ranks, which must call the same operation."""
        self.calls.append(operation)
        self.shared.values[self.rank] = operation, value
        self.shared.barrier.wait()
        values = list(self.shared.values)
        self.shared.barrier.wait()
        assert {name for name, _ in values} == {operation}, values
        return [value for _, value in values]

    def all_reduce(self, arrays, op):
        function = {"max": np.maximum, "min": np.minimum}.get(op, np.add)
        found = self.exchange("all_reduce", [x.copy() for x in arrays])
        for x, others in zip(arrays, zip(*found, strict=True), strict=True):
            x[...] = _combine(function, others) / self.size if op == "mean" else _combine(function, others)

    def start_all_reduce(self, arrays):
        self.all_reduce(arrays, "sum")
        return self

    def wait(self):
        """The sums of `start_all_reduce` are complete."""

    def broadcast(self, arrays, root):
        found = self.exchange("broadcast", [x.copy() for x in arrays])
        for x, value in zip(arrays, found[root], strict=True):
            x[...] = value

    def reduce_scatter(self, x):
        found = self.exchange("reduce_scatter", x.copy())
        return _combine(np.add, [other.reshape(self.size, -1)[self.rank] for other in found])

    def all_gather(self, x):
        return self.exchange("all_gather", x.copy())

    def all_gather_into(self, x, out):
        assert not np.shares_memory(x, out), "MPI does not allow this"
        out[...] = np.concatenate(self.exchange("all_gather_into", x.copy()))

    def barrier(self):
        self.exchange("barrier", None)


def _combine(function, arrays):
    total = arrays[0]
    for x in arrays[1:]:
        total = function(total, x)
    return total


def run_ranks(size, work):
    """Call `work(world)` on every rank; returns the results in the order of ranks. An error of a rank is raised."""
    shared = Shared(size)

    def one(rank):
        try:
            return work(World(rank, size, rank, ThreadEngine(shared, rank)))
        except BaseException:
            shared.barrier.abort()  # the other ranks do not wait
            raise

    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(one, rank) for rank in range(size)]
        errors = [error for job in jobs if (error := job.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [job.result() for job in jobs]
