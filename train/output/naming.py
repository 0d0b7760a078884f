"""L7: the default output folder of a run. Imports no NumPy: `--help` is immediate."""

from collections.abc import Iterator
from itertools import chain, count, takewhile
from pathlib import Path

STATE, TABLE = "resume.npz", "metrics.csv"
"""The state file of a run and the table of its epochs. A folder with either file holds results."""

BAD_IMAGES = "bad_images.txt"
"""The files that --skip-bad-images left out, a line each: path and reason."""


def unused(name: str) -> str:
    """The first of `name`, `name-2`, `name-3` ... that holds no results."""
    return next(folder for folder in _numbered(name) if not is_taken(folder))


def newest(name: str) -> Path:
    """The last of the consecutive folders `name`, `name-2`, ... that hold results, else `name`."""
    taken = list(takewhile(is_taken, _numbered(name)))
    return Path(taken[-1] if taken else name)


def is_taken(folder: str) -> bool:
    """True if the folder holds the results of a run."""
    return any((Path(folder) / name).exists() for name in (TABLE, STATE))


def _numbered(name: str) -> Iterator[str]:
    return chain([name], (f"{name}-{number}" for number in count(2)))
