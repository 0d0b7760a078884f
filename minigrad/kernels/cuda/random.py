"""L2: random numbers made on the GPU, the same as on the CPU."""

from collections.abc import Sequence

import numpy as np

from minigrad import random
from minigrad.backend import Array, empty
from minigrad.kernels.cuda.launch import Kernel

UNIFORM, WORDS = Kernel("random.cu", "uniform"), Kernel("random.cu", "words")
THREADS, EACH = 256, 4  # of a block; numbers that a thread makes


@random.on_device
def uniform(seed: int, draw: int, shape: Sequence[int], device: str, state: Array | None = None) -> Array:
    """What draw number `draw` of `Generator(seed)` is as float32, on the device.

    Args:
        seed, draw: of the generator.
        shape, device: of the array.
        state: (2,) uint64 on the device: a seed that is used instead, and what is added to `draw`.
    """
    return _drawn(UNIFORM, empty(shape, np.float32, device), seed, draw, state)


@random.on_device
def words(seed: int, draw: int, shape: Sequence[int], device: str, state: Array | None = None) -> Array:
    """The same as words of 32 random bits, uint32."""
    return _drawn(WORDS, empty(shape, np.uint32, device), seed, draw, state)


def _drawn(kernel: Kernel, y: Array, seed: int, draw: int, state: Array | None) -> Array:
    kernel(-(-y.size // (THREADS * EACH)), THREADS, y, np.int64(y.size), np.uint64(draw), np.uint64(seed), state)
    return y
