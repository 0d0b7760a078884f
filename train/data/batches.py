"""L7: slices of consecutive batches."""

from collections.abc import Iterator


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """The slices of `count` images in batches; the last batch may be smaller."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))
