"""L0: the state of capturing a training step as a CUDA graph (`minigrad/cuda_graph.py`).

During the capture nothing can be copied from the host, and a number computed on the host becomes a constant of the
graph. A kernel that needs values from the host, such as the learning rate, reads them from a table in device memory:
`Tables` lists the tables of a graph, and fills them before each launch of the graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from minigrad.backend.arrays import Array, cupy_module, empty


class Table(Protocol):
    """A table in device memory, such as `Table` in `minigrad/kernels/cuda/table.py`.

    `scalars` returns values that change with every step; None: the table is constant.
    """

    scalars: Callable[[], Any] | None

    def fill(self) -> None:
        """Copy the table for the next step from the host."""
        ...


class Tables:
    """The tables of one graph, allocated from a separate pool: the graph's pool reuses memory that is freed during the
    capture."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self.filled = False
        self.pool = cupy_module().cuda.MemoryPool()

    def allocate(self, table: Table, nbytes: int, device: str) -> Array:
        """Add a table. Returns its device memory, (nbytes / 8,) uint64."""
        self.tables.append(table)
        with cupy_module().cuda.using_allocator(self.pool.malloc):
            return empty((nbytes // 8,), np.uint64, device)

    def fill(self) -> None:
        """Fill the tables before a launch of the graph: all at first, later only tables with scalars."""
        for table in self.tables:
            if table.scalars is not None or not self.filled:
                table.fill()
        self.filled = True


_current: Tables | None = None


def current() -> Tables | None:
    """The tables of the graph that is being captured; None outside a capture."""
    return _current


def is_capturing() -> bool:
    """True while a step is captured."""
    return _current is not None


@contextmanager
def capturing(tables: Tables) -> Iterator[None]:
    """Within the block, `is_capturing` is True and `current` returns `tables`."""
    global _current
    _current = tables
    try:
        yield
    finally:
        _current = None
