"""L7: from images in memory to batches for a model: order, augmentation, normalisation. For NumPy and CuPy alike."""

from collections.abc import Iterator

import numpy as np

from minigrad.backend import Array, array_module, device_of, to_device
from minigrad.random import Generator
from train.dataset import Split

_SHIFT = 4  # pixels that a crop may be off centre, in each direction


def batches(
    split: Split, batch_size: int, device: str, order: np.ndarray | None = None
) -> Iterator[tuple[Array, Array]]:
    """Images (N, C, H, W) uint8 and labels (N,) on `device`, in `order` or as they come; the last may be fewer."""
    for start in range(0, len(split), batch_size):
        part = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
        yield to_device(split.images[part], device), to_device(split.labels[part], device)


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """uint8 from 0 to 255 -> float32, x ↦ (x/255 - mean) / std for each channel."""
    xp = array_module(images)
    mean_255, std_255 = (255 * xp.asarray(values, np.float32)[:, None, None] for values in (mean, std))  # (C, 1, 1)
    return (images - mean_255) / std_255


def augment(images: Array, generator: Generator) -> Array:
    """Each image flipped left to right or not, and moved by up to four pixels each way, black where nothing was."""
    xp = array_module(images)
    N, _, H, W = images.shape
    choices = generator.words(3 * N).reshape(3, N)
    flipped = to_device(choices[0] % 2 == 1, device_of(images))
    top, left = to_device(choices[1:] % (2 * _SHIFT + 1), device_of(images))
    images = xp.where(flipped[:, None, None, None], images[..., ::-1], images)
    padded = xp.pad(images, ((0, 0), (0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)))
    # (N, C, H+8, W+8) -> every crop (N, C, 9, 9, H, W) -> one for each image (N, C, H, W)
    crops = xp.lib.stride_tricks.sliding_window_view(padded, (H, W), axis=(2, 3))
    return crops[xp.arange(N), :, top, left]
