"""L2: random numbers generated on the GPU, equal bit for bit to the CPU's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.backend import Array, empty
from minigrad.backend.fast_paths import fast_path_of
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import Kernel

UNIFORM, WORDS = Kernel("random.cu", "uniform"), Kernel("random.cu", "words")
THREADS, EACH = 256, 4  # threads of a block; elements of a thread


@fast_path_of(Generator.uniform, supports=lambda g, shape, dtype, device: device != "cpu" and dtype == np.float32)
def uniform(generator: Generator, shape: Sequence[int], dtype: Any, device: str) -> Array:
    """Uniform random values in [0, 1), of this shape, float32, on the device."""
    return _drawn(UNIFORM, empty(shape, np.float32, device), generator)


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
