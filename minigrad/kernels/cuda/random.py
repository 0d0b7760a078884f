"""L2: random numbers generated on the GPU, equal to those of the CPU bit for bit."""

from collections.abc import Sequence

import numpy as np

from minigrad.backend import Array, empty, random
from minigrad.kernels.cuda.launch import Kernel

UNIFORM, WORDS = Kernel("random.cu", "uniform"), Kernel("random.cu", "words")
THREADS, EACH = 256, 4  # threads of a block; elements of a thread


@random.on_device
def uniform(seed: int, draw: int, shape: Sequence[int], device: str, state: Array | None = None) -> Array:
    """Draw number `draw` of `Generator(seed)`: float32, uniform in [0, 1).

    Args:
        seed, draw: of the generator.
        shape, device: of the result.
        state: (2,) uint64 on the device: a seed that replaces `seed`, and an offset that is added to `draw`.
    """
    return _drawn(UNIFORM, empty(shape, np.float32, device), seed, draw, state)


@random.on_device
def words(seed: int, draw: int, shape: Sequence[int], device: str, state: Array | None = None) -> Array:
    """As `uniform`, but uint32 words of 32 random bits."""
    return _drawn(WORDS, empty(shape, np.uint32, device), seed, draw, state)


def _drawn(kernel: Kernel, y: Array, seed: int, draw: int, state: Array | None) -> Array:
    kernel(-(-y.size // (THREADS * EACH)), THREADS, y, np.int64(y.size), np.uint64(draw), np.uint64(seed), state)
    return y
