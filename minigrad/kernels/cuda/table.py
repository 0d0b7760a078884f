"""L2: the table of table.cuh, with which one launch processes the arrays of many parameters."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from minigrad.backend import Array, capture, device_of, to_device
from minigrad.backend.cublas import pointer
from minigrad.kernels.cuda.activation import without_gaps
from minigrad.kernels.cuda.launch import Kernel, on_gpu

T = TypeVar("T")

THREADS, CHUNK = 256, 4096  # of a block: threads, and elements of each array
ROW = np.dtype([("at", np.uint64, 4), ("count", np.int64), ("end", np.int64), ("scalars", np.float32, 8)])


class Table:
    """The addresses, sizes and scalars of many arrays, in device memory.

        table = Table(averages, values)
        table.launch(EMA, np.float32(0.1))

    The constructor makes one asynchronous copy from the host. During the capture of a CUDA graph nothing can be copied:
    the table is filled after the capture (backend/capture.py). Before every launch of the graph, the scalars are
    computed again, so that values such as the learning rate change from step to step.

    Args:
        *columns: up to four lists of one length: the first array of every row, the second of every row, ...
        scalars: returns (rows, up to 8) float32 values, or one value for all rows. Called once for every step.
    """

    def __init__(self, *columns: Sequence[Array], scalars: Callable[[], Any] | None = None) -> None:
        self.rows = np.zeros(len(columns[0]), ROW)
        self.words = self.rows.view(np.uint64)  # the same memory, in a dtype that CuPy has
        for place, arrays in enumerate(columns):
            self.rows["at"][:, place] = [pointer(x) for x in arrays]
        self.rows["count"] = [x.size for x in columns[0]]
        self.rows["end"] = np.cumsum(-(-self.rows["count"] // CHUNK))
        self.chunks, self.scalars = int(self.rows["end"][-1]) if len(self.rows) else 0, scalars
        if len(self.rows) and (tables := capture.current()) is not None:
            self.memory = tables.allocate(self, self.rows.nbytes, device_of(columns[0][0]))
            return
        if scalars is not None:
            self.rows["scalars"] = scalars()
        self.memory = to_device(self.words, device_of(columns[0][0]) if self.chunks else "cpu")

    def fill(self) -> None:
        """Write the table for the next launch of its graph, with the scalars of the next step."""
        if self.scalars is not None:
            self.rows["scalars"] = self.scalars()
        self.memory.set(self.words)

    def launch(self, kernel: Kernel, *args: Any) -> None:
        """Launch a block for each chunk. The arguments are the table, its number of rows, and `args`."""
        if self.chunks:
            kernel(self.chunks, THREADS, self.memory, np.int32(len(self.rows)), *args)


def fits(*arrays: Array) -> bool:
    """True if the arrays can be one row: float32, on the GPU, of one size, C-contiguous (a single array: dense)."""
    x, *others = arrays
    return all(on_gpu(a) and a.dtype == np.float32 and a.size == x.size for a in arrays) and (
        all(a.flags.c_contiguous for a in arrays) if others else without_gaps(x)
    )


def fits_each(arrays: Sequence[Array]) -> bool:
    """True if `arrays` is not empty, each fits a row, and none is listed twice (two blocks would race on it)."""
    if not (arrays and all(fits(x) for x in arrays)):
        return False
    return len({pointer(x) for x in arrays if x.size}) == sum(x.size > 0 for x in arrays)


def split(entries: Sequence[T], is_row: Callable[[T], bool]) -> tuple[list[T], list[T]]:
    """The entries for which `is_row` is True, and the other entries."""
    rows: list[T] = []
    others: list[T] = []
    for entry in entries:
        (rows if is_row(entry) else others).append(entry)
    return rows, others
