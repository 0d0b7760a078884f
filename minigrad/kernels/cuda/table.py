"""L2: arrays of many parameters for one launch: the table of table.cuh."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.backend import Array, cupy_module, device_of, empty, to_device
from minigrad.cublas import pointer
from minigrad.kernels.cuda.activation import without_gaps
from minigrad.kernels.cuda.launch import Kernel, on_gpu

THREADS, CHUNK = 256, 4096  # of a block: its threads, and its numbers of a row
ROW = np.dtype([("at", np.uint64, 4), ("count", np.int64), ("end", np.int64), ("numbers", np.float32, 8)])


class Table:
    """Arrays of many sizes, so many in each row, and their addresses in device memory.

        table = Table(averages, values)
        table.launch(EMA, np.float32(0.1))

    It takes one copy from the host, which waits for nothing. While a CUDA graph is captured nothing can be copied: the
    table is then filled afterwards (see `capturing`), and its numbers anew for every launch of the graph, so that what
    changes from step to step, such as a rate, does so there too.

    Args:
        *columns: the first array of every row, the second of every row, ...: up to four lists of one length.
        numbers: gives up to eight for each row, (rows, 8), or for all alike. It is called once for every step.
    """

    def __init__(self, *columns: Sequence[Array], numbers: Callable[[], Any] | None = None) -> None:
        self.rows = np.zeros(len(columns[0]), ROW)
        for place, arrays in enumerate(columns):
            self.rows["at"][:, place] = [pointer(x) for x in arrays]
        self.rows["count"] = [x.size for x in columns[0]]
        self.rows["end"] = np.cumsum(-(-self.rows["count"] // CHUNK))
        self.chunks, self.numbers = int(self.rows["end"][-1]) if len(self.rows) else 0, numbers
        if len(self.rows) and _captured is not None:
            self.memory = _captured.room(self, device_of(columns[0][0]))
            return
        if numbers is not None:
            self.rows["numbers"] = numbers()
        self.memory = to_device(self.rows.view(np.uint64), device_of(columns[0][0]) if self.chunks else "cpu")

    def fill(self) -> None:
        """Before a launch of the graph that it is of: the numbers of the next step."""
        if self.numbers is not None:
            self.rows["numbers"] = self.numbers()
        self.memory.set(self.rows.view(np.uint64))

    def launch(self, kernel: Kernel, *args: Any) -> None:
        """A block for each chunk; `args` follow the table and the number of its rows."""
        if self.chunks:
            kernel(self.chunks, THREADS, self.memory, np.int32(len(self.rows)), *args)


def takes(*arrays: Array) -> bool:
    """Whether they can be one row: float32 on the GPU, as many numbers in each, in the same order and without gaps."""
    x, *others = arrays
    return all(on_gpu(a) and a.dtype == np.float32 and a.size == x.size for a in arrays) and (
        all(a.flags.c_contiguous for a in arrays) if others else without_gaps(x)
    )


def takes_each(arrays: Sequence[Array]) -> bool:
    """Whether each can be a row that is written to: it must not be there twice, as blocks do not wait for another."""
    return all(takes(x) for x in arrays) and len({pointer(x) for x in arrays if x.size}) == sum(
        x.size > 0 for x in arrays
    )


class Tables:
    """The tables of a graph. They are in memory of their own, as what the graph frees is another's memory in it."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self.filled = False
        self.pool = cupy_module().cuda.MemoryPool()

    def room(self, table: Table, device: str) -> Array:
        """Device memory for a table."""
        self.tables.append(table)
        with cupy_module().cuda.using_allocator(self.pool.malloc):
            return empty((table.rows.nbytes // 8,), np.uint64, device)

    def fill(self) -> None:
        """Before each launch of the graph: all of them the first time, then those whose numbers change."""
        for table in self.tables:
            if table.numbers is not None or not self.filled:
                table.fill()
        self.filled = True


_captured: Tables | None = None


def is_capturing() -> bool:
    """Whether a step is captured now: what it computes on the host will stay as it is."""
    return _captured is not None


@contextmanager
def capturing(tables: Tables) -> Iterator[None]:
    """Within the block, new tables are these, to be filled afterwards."""
    global _captured
    _captured = tables
    try:
        yield
    finally:
        _captured = None
