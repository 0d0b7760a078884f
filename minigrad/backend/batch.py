"""L0: the part of a batch that this thread computes, when threads or processes share a batch.

Data parallelism must not change the result: two ops need to know about the whole batch. Dropout draws the masks of the
images of this part, as if the whole batch were drawn (`Rows`, `Generator.rows`), and batch normalisation sums over the
whole batch (`batch_sum`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minigrad.backend.arrays import Array


@dataclass(frozen=True)
class Rows:
    """The images of a part: the index ranges [start, stop) in `ranges`, in a batch of `count` images."""

    count: int
    ranges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    @property
    def index(self) -> np.ndarray:
        """The indices of the images in the batch, (len,) int64."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.ranges] or [np.arange(0)])

    def part(self, start: int, stop: int) -> "Rows":
        """The images `start` to `stop` - 1 of these images."""
        ranges, before = [], 0
        for first, end in self.ranges:
            low, high = first + max(start - before, 0), min(first + stop - before, end)
            if low < high:
                ranges.append((low, high))
            before += end - first
        return Rows(self.count, tuple(ranges))


def split(count: int, parts: int, *, mirrored: bool = False) -> list[Rows]:
    """Divide the images 0 to `count` - 1 into contiguous parts, whose sizes differ by at most one.

    With `mirrored`, image i and image count - 1 - i, which mixup mixes, are in the same part, and part[::-1] still
    pairs them: a part has a range of the first half and the mirrored range of the second half. The image in the middle
    of an odd number belongs to the last part; sizes differ by at most two. A part may be empty.
    """
    if not mirrored:
        bounds = [count * i // parts for i in range(parts + 1)]
        return [Rows(count, ((s, e),) if s < e else ()) for s, e in pairwise(bounds)]
    parts_of_half = split((count + 1) // 2, parts)
    # Ranges that meet in the middle are one range: the middle image of an odd number is not repeated.
    return [
        Rows(
            count,
            tuple(
                bound
                for s, e in half.ranges
                for bound in (((s, count - s),) if e >= count - e else ((s, e), (count - e, count - s)))
            ),
        )
        for half in parts_of_half
    ]


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
