"""L7: which folder a run has where --output does not say. Light to import: `--help` comes before NumPy."""

from collections.abc import Iterator
from itertools import chain, count, takewhile
from pathlib import Path

STATE, TABLE = "resume.npz", "metrics.csv"
"""The files by which a folder with results is known: the state of the run, and its epochs."""


def unused(name: str) -> str:
    """`name`, or `name-2`, `name-3` ...: the first that holds no results."""
    return next(folder for folder in _numbered(name) if not is_taken(folder))


def newest(name: str) -> Path:
    """The last before that, or `name`."""
    taken = list(takewhile(is_taken, _numbered(name)))
    return Path(taken[-1] if taken else name)


def is_taken(folder: str) -> bool:
    """Whether it holds the results of a run."""
    return any((Path(folder) / name).exists() for name in (TABLE, STATE))


def _numbered(name: str) -> Iterator[str]:
    return chain([name], (f"{name}-{number}" for number in count(2)))
