"""L0: the part of a batch that this thread computes, when threads or processes share a batch.

Data parallelism must not change the result. So random numbers, for dropout and augmentation, are those that the images
of this part have in a draw for the whole batch (`Rows`, `Generator.rows`), and batch normalisation sums over the whole
batch (`batch_sum`).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from minigrad.backend.arrays import Array, array_module


@dataclass(frozen=True)
class Rows:
    """The images of a part: the index ranges [start, stop) in `ranges`, in order, of a batch of `count` images."""

    count: int
    ranges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    @property
    def index(self) -> np.ndarray:
        """The indices of the images in the batch, (len,) int64."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.ranges] or [np.arange(0)])

    @property
    def mirrored(self) -> bool:
        """True if part[::-1] pairs image i with image count - 1 - i of the batch, as mixup does."""
        return bool((self.index + self.index[::-1] == self.count - 1).all())

    def take(self, x: Array) -> Array:
        """These images of an array of the whole batch, (count, ...) -> (len, ...); one range is a view."""
        ranges = [x[start:stop] for start, stop in self.ranges]
        return ranges[0] if len(ranges) == 1 else array_module(x).concatenate(ranges or [x[:0]])

    def part(self, start: int, stop: int) -> "Rows":
        """The images `start` to `stop` - 1 of these images."""
        ranges, before = [], 0
        for first, end in self.ranges:
            low, high = first + max(start - before, 0), min(first + stop - before, end)
            if low < high:
                ranges.append((low, high))
            before += end - first
        return Rows(self.count, tuple(ranges))

    def elements(self, shape: Sequence[int], axis: int = 0) -> list[tuple[int, int]]:
        """The elements of a part's array in the array of the whole batch: ranges of indices of the flattened array.

        Args:
            shape: of the part's array, (A, k n, B) for n images; the array of the batch is (A, k count, B).
            axis: the image axis, with k entries for each image.

        Raises:
            ValueError: the axis does not exist, or has a size that is not a multiple of n.
        """
        n = len(self)
        k = shape[axis] // max(n, 1) if -len(shape) <= axis < len(shape) else -1
        if k < 0 or shape[axis] != k * n:
            raise ValueError(
                f"a random mask for {n} images, a part of a batch that threads or processes share: axis {axis} must be "
                f"that of the images, with a multiple of {n} entries, got shape {tuple(shape)}. Put the images first, "
                "or use one thread and one process"
            )
        axis %= len(shape)
        each = k * prod(shape[axis + 1 :])  # elements of an image in each of the A rows
        return [
            (each * (self.count * a + start), each * (self.count * a + stop))
            for a in range(prod(shape[:axis]))
            for start, stop in self.ranges
        ]


def split(count: int, parts: int, *, mirrored: bool = False) -> list[Rows]:
    """Divide the images 0 to `count` - 1 into contiguous parts, whose sizes differ by at most one.

    With `mirrored`, image i and image count - 1 - i, which mixup mixes, are in the same part, and part[::-1] still
    pairs them: a part has a range of the first half and the mirrored range of the second half. The image in the middle
    of an odd number belongs to the last part; sizes differ by at most two. A part may be empty.
    """
    divided = []
    for start, stop in pairwise(((count + 1) // 2 if mirrored else count) * i // parts for i in range(parts + 1)):
        ranges: tuple[tuple[int, int], ...] = ((start, stop),)
        if mirrored:
            ranges = (start, stop), (count - stop, count - start)
            if stop >= count - stop:  # the ranges meet in the middle
                ranges = ((start, count - start),)
        divided.append(Rows(count, ranges if start < stop else ()))
    return divided


class _Current(threading.local):
    sum: Callable[[Array], Array] | None = None
    updates = True


_current = _Current()


def current_sum() -> Callable[[Array], Array] | None:
    """The function of `sums_over_batch` in this thread; None if this thread has the whole batch."""
    return _current.sum


def batch_sum(x: Array) -> Array:
    """The sum of x over all parts of the batch, in a new array or x; x itself if this thread has the whole batch."""
    return x if _current.sum is None else _current.sum(x)


def updates_buffers() -> bool:
    """False if another thread, with another part of the batch, updates the buffers of the model: running statistics."""
    return _current.updates


@contextmanager
def sums_over_batch(function: Callable[[Array], Array], *, updates: bool = True) -> Iterator[None]:
    """Within the block, `function` is `batch_sum` of this thread. All parts must call it in the same order.

    For batches in several parts only: a part of one value per channel is then valid in batch normalisation. `updates`:
    the value of `updates_buffers`; True in exactly one thread of those that share a model.
    """
    previous = _current.sum, _current.updates
    _current.sum, _current.updates = function, updates
    try:
        yield
    finally:
        _current.sum, _current.updates = previous
