"""L7: what every dataset looks like once it is in memory, however it came there."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 with their labels (N,) int64, numbers from 0 to classes - 1."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "Split":
        """The first `count` images; None means all of them."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, the names of the classes, and the colour statistics for normalisation."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of the training images, one for each of red, green, blue; white is 1
    std: tuple[float, float, float]

    def first(self, train: int | None, test: int | None) -> "Dataset":
        """The same dataset cut down to its first images: for quick trials."""
        return replace(self, train=self.train.first(train), test=self.test.first(test))
