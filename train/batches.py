"""L7: from images in memory to batches for a model: order and normalisation. For NumPy and CuPy alike.

Nothing here waits for a GPU or copies to it, so that it can be a part of a captured step.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from minigrad.backend import Array, array_module


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """`count` images in batches, one after the other; the last may be smaller."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def normalize(images: Array, mean: Array | Sequence[float], std: Array | Sequence[float]) -> Array:
    """uint8 from 0 to 255 -> float32, x ↦ (x/255 - mean) / std for each channel."""
    xp = array_module(images)
    mean_255, std_255 = (255 * xp.asarray(values, np.float32)[:, None, None] for values in (mean, std))  # (C, 1, 1)
    return (images - mean_255) / std_255
