"""Ranks that are threads of this process: `World` with an engine that needs no MPI, and logs the operations."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minigrad.parallel import World

TIMEOUT = 30  # seconds that a rank waits for the others


class Hub:
    """Where the ranks meet: for the n-th operation of each kind, the values that the ranks contribute."""

    def __init__(self, size):
        self.size, self.condition, self.values, self.failed = size, threading.Condition(), {}, False

    def put(self, key, rank, value):
        with self.condition:
            self.values.setdefault(key, {})[rank] = value
            self.condition.notify_all()

    def get(self, key):
        """The contributions of all ranks, in their order."""
        with self.condition:
            complete = lambda: len(self.values.get(key, ())) == self.size  # noqa: E731
            if not self.condition.wait_for(lambda: complete() or self.failed, TIMEOUT) or not complete():
                raise TimeoutError(f"{key}: only ranks {sorted(self.values.get(key, ()))} took part")
            return [self.values[key][rank] for rank in range(self.size)]

    def fail(self):
        """A rank has failed: no rank waits for it."""
        with self.condition:
            self.failed = True
            self.condition.notify_all()


class ThreadEngine:
    """The operations of an engine, on arrays of threads. `log` lists the operations of this rank."""

    def __init__(self, hub, rank):
        self.hub, self.rank, self.size, self.counts, self.log = hub, rank, hub.size, {}, []

    def start(self, operation, value, *logged):
        """Contribute to an operation; returns its key."""
        self.log.append((operation, *logged) if logged else operation)
        self.counts[operation] = self.counts.get(operation, 0) + 1
        key = operation, self.counts[operation]
        self.hub.put(key, self.rank, value)
        return key

    def exchange(self, operation, value):
        """The values of all ranks."""
        return self.hub.get(self.start(operation, value))

    def all_reduce(self, arrays, op):
        self.reduced(arrays, self.start("all_reduce", [x.copy() for x in arrays]), op)

    def start_all_reduce(self, arrays):
        return Work(self, arrays, self.start("start", [x.copy() for x in arrays], *(x.size for x in arrays)))

    def reduced(self, arrays, key, op="sum"):
        """Replace the arrays by their sum, mean, max or min over the ranks, in the order of ranks."""
        found = self.hub.get(key)
        assert len({tuple((x.shape, str(x.dtype)) for x in xs) for xs in found}) == 1, found
        function = {"max": np.maximum, "min": np.minimum}.get(op, np.add)
        for x, others in zip(arrays, zip(*found, strict=True), strict=True):
            total = combine(function, others)
            x[...] = total / self.size if op == "mean" else total

    def broadcast(self, arrays, root):
        found = self.exchange("broadcast", [x.copy() for x in arrays])
        for x, value in zip(arrays, found[root], strict=True):
            x[...] = value

    def reduce_scatter(self, x):
        found = self.exchange("reduce_scatter", x.copy())
        return combine(np.add, [other.reshape(self.size, -1)[self.rank] for other in found])

    def all_gather(self, x):
        return self.exchange("all_gather", x.copy())

    def all_gather_into(self, x, out):
        assert not np.shares_memory(x, out), "MPI does not allow this"
        out[...] = np.concatenate(self.exchange("all_gather_into", x.copy()))

    def barrier(self):
        self.exchange("barrier", None)


class Work:
    def __init__(self, engine, arrays, key):
        self.engine, self.arrays, self.key = engine, arrays, key

    def wait(self):
        self.engine.reduced(self.arrays, self.key)


def combine(function, arrays):
    total = arrays[0]
    for x in arrays[1:]:
        total = function(total, x)
    return total


def run_threads(size, work):
    """Call `work(world)` on every rank; returns the results in the order of ranks. An error of a rank is raised.

    `world.log` lists the operations of a rank: their names, for `start_all_reduce` ("start", sizes).
    """
    hub = Hub(size)

    def one(rank):
        engine = ThreadEngine(hub, rank)
        world = World(rank, size, rank, engine)
        world.log = engine.log
        try:
            return work(world)
        except BaseException:
            hub.fail()
            raise

    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(one, rank) for rank in range(size)]
        errors = [error for job in jobs if (error := job.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, TimeoutError)):
        raise error
    return [job.result() for job in jobs]
