"""L2: random numbers generated on the GPU, equal bit for bit to the CPU's."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from minigrad.backend import Array, empty
from minigrad.backend.fast_paths import fast_path_of
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import MAX_GRID, Kernel

UNIFORM, UNIFORM_OF_ROWS, WORDS = (Kernel("random.cu", name) for name in ("uniform", "uniform_of_rows", "words"))
THREADS, EACH = 256, 4  # threads of a block; elements of a thread
ZERO = np.int64(0)


def can_draw(generator: Generator, shape: Sequence[int], dtype: Any, device: str, *, axis: int | None = None) -> bool:
    """True for float32 on a GPU, for a whole batch or a part of at most two index ranges."""
    rows = None if axis is None else generator.rows
    fits = rows is None or (len(rows) > 0 and len(rows.ranges) <= 2 and prod(shape[:axis]) <= MAX_GRID[1])
    return bool(device != "cpu" and dtype == np.float32 and fits)


@fast_path_of(Generator.uniform, supports=can_draw)
def uniform(generator: Generator, shape: Sequence[int], dtype: Any, device: str, *, axis: int | None = None) -> Array:
    """Uniform random values in [0, 1), of this shape, float32, on the device."""
    y, rows = empty(shape, np.float32, device), generator.rows
    if rows is None or axis is None or len(rows) == rows.count:
        return _drawn(UNIFORM, y, generator)
    A, size = prod(shape[:axis]), prod(shape[axis:])
    part = rows_of(generator, len(rows), values=size // len(rows))
    UNIFORM_OF_ROWS((-(-size // (THREADS * EACH)), A), THREADS, y, np.int64(size), *part, *next_draws(generator, 1))
    return y


@fast_path_of(Generator.words, supports=lambda g, count, device: device != "cpu")
def words(generator: Generator, count: int, device: str) -> Array:
    """`count` random 32-bit words, (count,) uint32, on the device."""
    return _drawn(WORDS, empty((count,), np.uint32, device), generator)


def _drawn(kernel: Kernel, y: Array, generator: Generator) -> Array:
    """Fill y with the generator's next draw."""
    kernel(-(-y.size // (THREADS * EACH)), THREADS, y, np.int64(y.size), *next_draws(generator, 1))
    return y


def next_draws(generator: Generator, count: int) -> tuple[np.uint64, np.uint64, Array | None]:
    """The fields of `Draw` in philox.cuh for the next draw, of `count` draws that a kernel computes."""
    return np.uint64(generator.next_draw(count)), np.uint64(generator.seed), generator.captured


def has_rows(generator: Generator, N: int) -> bool:
    """True if `generator` draws for a whole batch, or for N images of a batch in at most two index ranges."""
    return generator.rows is None or (len(generator.rows) == N and len(generator.rows.ranges) <= 2)


def rows_of(generator: Generator, N: int, values: int = 1) -> tuple[np.int64, ...]:
    """The fields of `Rows` in rows.cuh, for the images that `generator` draws for, by default all N images of a batch.
    With `values`, the number of values of an image, the fields count values."""
    if generator.rows is None:
        return np.int64(values * N), ZERO, ZERO, ZERO
    (start, stop), *second = generator.rows.ranges
    split = stop - start
    offset = second[0][0] - split if second else start
    return tuple(np.int64(values * field) for field in (generator.rows.count, split, start, offset))
