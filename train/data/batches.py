"""L7: the order of the images in an epoch, and its batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from minigrad.backend import Array
from minigrad.backend.random import Generator


@dataclass(frozen=True)
class Sampler:
    """Samples the order of the training images in each epoch.

    Fields:
        count: the number of training images, and of indices in an epoch.
        device: of the indices.
        generator: random numbers.
        repeats: with repeated augmentation, how often each sampled image is in an epoch.
    """

    count: int
    device: str
    generator: Generator
    repeats: int = 1

    def sample(self) -> Array:
        """The indices of an epoch, (count,) int64: a random permutation; with R `repeats`, of 1/R of the images."""
        return repeated(self.generator.permutation(self.count, self.device), self.repeats)


def repeated(order: Array, repeats: int) -> Array:
    """Repeated augmentation: the first ⌈len / `repeats`⌉ indices of `order`, each `repeats` times, cut to len.

    Several augmentations of an image in one batch make the gradient less noisy. An epoch has as many steps, on fewer
    images (Hoffer et al. 2019, arXiv:1901.09335; Berman et al. 2019, arXiv:1902.05509).

    Raises:
        ValueError: `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    return order[: ceil(len(order) / repeats)].repeat(repeats)[: len(order)]


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """The slices of `count` images in batches; the last batch may be smaller."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))
