"""L7: a dataset in memory, the common type of all datasets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from minigrad.backend import Array, to_device, to_device_of
from models.images import normalize
from train.config.errors import InputError
from train.output.log import plural


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64, from 0 to classes - 1."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "Split":
        """The first `count` images; None means all of them."""
        return Split(self.images[:count], self.labels[:count])

    def to(self, device: str) -> "Split":
        """The split on `device`.

        Raises:
            InputError: the memory of the device is too small.
        """
        try:
            return Split(to_device(self.images, device), to_device(self.labels, device))
        except MemoryError:
            raise InputError(
                f"{plural(len(self), 'image')} of {self.images.nbytes / 2**30:.2f} GiB do not fit into the memory of "
                f"{device}: use fewer images with --train-num-samples and --val-num-samples"
            ) from None

    def take(self, index: Array) -> tuple[Array, Array]:
        """The images (B, C, H, W) and labels (B,) at the indices (B,), int64 on the same device."""
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class Dataset:
    """Training and test split, class names, and the statistics for normalisation."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of each channel (RGB) of the training images, with pixels in [0, 1]
    std: tuple[float, float, float]

    def to(self, device: str) -> "Dataset":
        """The dataset with both splits on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def normalizer(self) -> Callable[[Array], Array]:
        """The normalisation (B, C, H, W) uint8 -> float32; mean and std are on the device of the images."""
        mean, std = (to_device_of(np.asarray(x, np.float32), self.train.labels) for x in (self.mean, self.std))
        return partial(normalize, mean=mean, std=std)

    def first(self, train: int | None, test: int | None) -> "Dataset":
        """The dataset with only its first `train` and `test` images; None means all."""
        return replace(self, train=self.train.first(train), test=self.test.first(test))
