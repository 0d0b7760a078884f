"""L7: what every dataset looks like once it is in memory, however it came there."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from minigrad.backend import Array, beside, to_device
from models.images import normalize
from train.errors import InputError


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 with their labels (N,) int64, numbers from 0 to classes - 1."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "Split":
        """The first `count` images; None means all of them."""
        return Split(self.images[:count], self.labels[:count])

    def to(self, device: str) -> "Split":
        """All of it on `device`, to stay there.

        Raises:
            InputError: it does not fit.
        """
        try:
            return Split(to_device(self.images, device), to_device(self.labels, device))
        except MemoryError:
            raise InputError(
                f"the data stays on {device}, and {len(self):,} images of {self.images.nbytes / 2**30:.2f} GiB do not "
                "fit there: --train-num-samples and --val-num-samples take fewer"
            ) from None

    def take(self, index: Array) -> tuple[Array, Array]:
        """The images (B, C, H, W) and labels (B,) of these numbers, (B,) int64 on the same device."""
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, the names of the classes, and the colour statistics for normalisation."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of the training images, one for each of red, green, blue; white is 1
    std: tuple[float, float, float]

    def to(self, device: str) -> "Dataset":
        """The same with both splits on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def normalizer(self) -> Callable[[Array], Array]:
        """The function from images (B, C, H, W) uint8 to what a model takes; its constants are where the images are."""
        mean, std = (beside(self.train.labels, np.asarray(values, np.float32)) for values in (self.mean, self.std))
        return partial(normalize, mean=mean, std=std)

    def first(self, train: int | None, test: int | None) -> "Dataset":
        """The same dataset cut down to its first images: for quick trials."""
        return replace(self, train=self.train.first(train), test=self.test.first(test))
