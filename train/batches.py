"""L7: from images in memory to batches."""

from collections.abc import Iterator


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """`count` images in batches, one after the other; the last may be smaller."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))
