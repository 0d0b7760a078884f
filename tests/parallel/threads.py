"""A World whose ranks are threads of this process: faster than MPI, and with a log of the operations."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TIMEOUT = 20  # seconds that a rank waits for the others


class Hub:
    """Where the ranks meet: for the n-th operation of each kind, the values that they contribute."""

    def __init__(self, size):
        self.size, self.condition, self.values = size, threading.Condition(), {}

    def put(self, key, rank, value):
        with self.condition:
            self.values.setdefault(key, {})[rank] = value
            self.condition.notify_all()

    def get(self, key):
        """The contributions of all ranks, in their order."""
        with self.condition:
            if not self.condition.wait_for(lambda: len(self.values.get(key, ())) == self.size, TIMEOUT):
                raise TimeoutError(f"{key}: only ranks {sorted(self.values.get(key, ()))} took part")
            return [self.values[key][rank] for rank in range(self.size)]


class Work:
    def __init__(self, world, key, arrays):
        self.world, self.key, self.arrays = world, key, arrays

    def wait(self):
        for x, total in zip(self.arrays, self.world.totals(self.key, "sum"), strict=True):
            x[...] = total


class ThreadWorld:
    """The interface of `minigrad.parallel.World` that gradients need."""

    def __init__(self, hub, rank):
        self.hub, self.rank, self.size, self.local_rank = hub, rank, hub.size, rank
        self.counts, self.log = {}, []

    def key(self, kind):
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return kind, self.counts[kind]

    def exchange(self, kind, value):
        key = self.key(kind)
        self.hub.put(key, self.rank, value)
        return self.hub.get(key)

    def totals(self, key, op):
        found = self.hub.get(key)
        assert len({tuple((x.shape, str(x.dtype)) for x in arrays) for arrays in found}) == 1, found
        columns = [np.stack(column) for column in zip(*found, strict=True)]
        reduce = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}[op]
        return [reduce(column, axis=0).astype(column.dtype) for column in columns]

    def all_reduce(self, *arrays, op="sum"):
        key = self.key("all_reduce")
        self.log.append("all_reduce")
        self.hub.put(key, self.rank, [x.copy() for x in arrays])
        for x, total in zip(arrays, self.totals(key, op), strict=True):
            x[...] = total

    def start_all_reduce(self, *arrays):
        key = self.key("start")
        self.log.append(("start", *(x.size for x in arrays)))
        self.hub.put(key, self.rank, [x.copy() for x in arrays])
        return Work(self, key, arrays)

    def broadcast(self, *arrays, root=0):
        found = self.exchange("broadcast", [x.copy() for x in arrays])
        for x, value in zip(arrays, found[root], strict=True):
            x[...] = value

    def all_gather_objects(self, value):
        return self.exchange("objects", value)


def run(size, work):
    """The results of `work(world)` of each rank. Raises the exception of the lowest rank that failed."""
    hub = Hub(size)
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(work, ThreadWorld(hub, rank)) for rank in range(size)]
        return [job.result() for job in jobs]
