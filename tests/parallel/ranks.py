"""Ranks that are threads of this process, with the operations of `minigrad.parallel.World` on NumPy arrays."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TIMEOUT = 30  # seconds: a rank that waits longer for the others raises BrokenBarrierError


class Ranks:
    """What the ranks share: a place for each rank's value."""

    def __init__(self, size):
        self.size = size
        self.values = [None] * size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)


class ThreadWorld:
    """The ranks, seen by one of them. `calls` lists the operations of this rank."""

    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.size = ranks, rank, ranks.size
        self.calls = []

    def exchange(self, operation, value):
        """The values of all ranks; they must call the same operation."""
        self.calls.append(operation)
        self.ranks.values[self.rank] = operation, value
        self.ranks.barrier.wait()
        values = list(self.ranks.values)
        self.ranks.barrier.wait()
        assert {name for name, _ in values} == {operation}
        return [value for _, value in values]

    def all_reduce(self, *arrays, op="sum"):
        assert op in ("sum", "mean", "max", "min")
        function = {"max": np.maximum, "min": np.minimum}.get(op, np.add)
        for x, others in zip(
            arrays, zip(*self.exchange("all_reduce", [x.copy() for x in arrays]), strict=True), strict=True
        ):
            total = others[0]
            for other in others[1:]:
                total = function(total, other)
            x[...] = total / self.size if op == "mean" else total

    def broadcast(self, *arrays, root=0):
        for x, value in zip(arrays, self.exchange("broadcast", [x.copy() for x in arrays])[root], strict=True):
            assert (x.shape, x.dtype) == (value.shape, value.dtype)
            x[...] = value

    def reduce_scatter(self, x):
        assert x.ndim == 1 and x.flags.c_contiguous
        blocks = [other.reshape(self.size, -1)[self.rank] for other in self.exchange("reduce_scatter", x.copy())]
        total = blocks[0]
        for block in blocks[1:]:
            total = total + block
        return total

    def all_gather_into(self, x, out):
        assert not np.shares_memory(x, out)  # MPI does not allow it
        assert x.ndim == out.ndim == 1 and x.dtype == out.dtype
        out[...] = np.concatenate(self.exchange("all_gather_into", x.copy()))

    def all_gather_objects(self, value):
        return [json.loads(text) for text in self.exchange("all_gather_objects", json.dumps(value))]


def run_ranks(size, work):
    """Call `work(world)` on every rank; returns the results in the order of ranks."""
    ranks = Ranks(size)

    def one(rank):
        try:
            return work(ThreadWorld(ranks, rank))
        except BaseException:
            ranks.barrier.abort()  # the other ranks do not wait
            raise

    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(one, rank) for rank in range(size)]
        errors = [error for job in jobs if (error := job.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        if errors:
            raise errors[0]
        return [job.result() for job in jobs]
