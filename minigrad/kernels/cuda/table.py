"""L2: arrays of many parameters for one launch: the table of table.cuh."""

from collections.abc import Iterator, Sequence
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
    table is then filled afterwards, before the graph is launched (see `capturing`).

    Args:
        *columns: the first array of every row, the second of every row, ...: up to four lists of one length.
        numbers: up to eight for each row, (rows, 8), or 0.
    """

    def __init__(self, *columns: Sequence[Array], numbers: Any = 0) -> None:
        self.rows = np.zeros(len(columns[0]), ROW)
        for place, arrays in enumerate(columns):
            self.rows["at"][:, place] = [pointer(x) for x in arrays]
        self.rows["count"] = [x.size for x in columns[0]]
        self.rows["end"] = np.cumsum(-(-self.rows["count"] // CHUNK))
        self.rows["numbers"] = numbers
        self.chunks = int(self.rows["end"][-1]) if len(self.rows) else 0
        device = device_of(columns[0][0]) if self.chunks else "cpu"
        if self.chunks and _captured is not None:
            self.memory = _captured.room(self, device)
        else:
            self.memory = to_device(self.rows.view(np.uint64), device)

    def upload(self) -> None:
        """Fill the memory anew, that of a table of a graph."""
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
        self.pool = cupy_module().cuda.MemoryPool()

    def room(self, table: Table, device: str) -> Array:
        """Device memory for a table."""
        self.tables.append(table)
        with cupy_module().cuda.using_allocator(self.pool.malloc):
            return empty((table.rows.nbytes // 8,), np.uint64, device)

    def upload(self) -> None:
        """Fill all of them: once the capture is over, before the graph is launched."""
        for table in self.tables:
            table.upload()


_captured: Tables | None = None


@contextmanager
def capturing(tables: Tables) -> Iterator[None]:
    """Within the block, new tables are these, to be filled afterwards."""
    global _captured
    _captured = tables
    try:
        yield
    finally:
        _captured = None
