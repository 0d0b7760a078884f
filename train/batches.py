"""L7: from images in memory to batches for a model: order, augmentation, normalisation. For NumPy and CuPy alike.

Nothing here waits for a GPU or copies to it, so that it can be a part of a captured step.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from minigrad.backend import Array, array_module, device_of
from minigrad.random import Generator

_SHIFT = 4  # pixels that a crop may be off centre, in each direction


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """`count` images in batches, one after the other; the last may be smaller."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def normalize(images: Array, mean: Array | Sequence[float], std: Array | Sequence[float]) -> Array:
    """uint8 from 0 to 255 -> float32, x ↦ (x/255 - mean) / std for each channel."""
    xp = array_module(images)
    mean_255, std_255 = (255 * xp.asarray(values, np.float32)[:, None, None] for values in (mean, std))  # (C, 1, 1)
    return (images - mean_255) / std_255


def augment(images: Array, generator: Generator) -> Array:
    """Each image flipped left to right or not, and moved by up to four pixels each way, black where nothing was."""
    xp = array_module(images)
    N, _, H, W = images.shape
    choices = generator.words(3 * N, device_of(images)).reshape(3, N)
    flipped = choices[0] % 2 == 1
    top, left = choices[1:] % (2 * _SHIFT + 1)
    images = xp.where(flipped[:, None, None, None], images[..., ::-1], images)
    padded = xp.pad(images, ((0, 0), (0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)))
    # (N, C, H+8, W+8) -> every crop (N, C, 9, 9, H, W) -> one for each image (N, C, H, W)
    crops = xp.lib.stride_tricks.sliding_window_view(padded, (H, W), axis=(2, 3))
    return crops[xp.arange(N), :, top, left]
