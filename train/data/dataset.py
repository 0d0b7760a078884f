"""L7: a dataset in memory, the common type of all datasets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from minigrad.backend import Array, to_device, to_device_of
from models.images import normalize
from models.terminal import plural
from train.config.errors import InputError
from train.data.photos import Photos


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8, or of different sizes, and labels (N,) int64, from 0 to classes - 1."""

    images: Array | Photos
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images of a batch."""
        if isinstance(self.images, Photos):
            return 3, self.images.size, self.images.size
        _, C, H, W = self.images.shape
        return C, H, W

    def first(self, count: int | None) -> "Split":
        """The first `count` images; None means all of them."""
        return Split(self.images[:count], self.labels[:count])

    def to(self, device: str) -> "Split":
        """The split on `device`.

        Raises:
            InputError: the memory of the device is too small.
        """
        if isinstance(self.images, Photos):
            return Split(replace(self.images, device=device), to_device(self.labels, device))
        try:
            return Split(to_device(self.images, device), to_device(self.labels, device))
        except MemoryError:
            raise InputError(
                f"{plural(len(self), 'image')} of {self.images.nbytes / 2**30:.2f} GiB do not fit into the memory of "
                f"{device}: use fewer images with --train-num-samples and --val-num-samples"
            ) from None

    def take(self, index: Array) -> tuple[Array | Photos, Array]:
        """The images and labels (B,) at the indices (B,), int64 on the same device."""
        return self.images[index], self.labels[index]

    def arrays(self) -> list[Array]:
        """All values of the split, to compare two splits."""
        images = [self.images.pixels, self.images.shapes] if isinstance(self.images, Photos) else [self.images]
        return [*images, self.labels]


@dataclass(frozen=True)
class Dataset:
    """Training and test split, class names, and the statistics for normalisation. `bad_images`: why files were left
    out, with --skip-bad-images. `test_names`: with --val-split, a digest of the names of the test images."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of each channel (RGB) of the training images, with pixels in [0, 1]
    std: tuple[float, float, float]
    bad_images: tuple[str, ...] = ()
    test_names: str = ""

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
