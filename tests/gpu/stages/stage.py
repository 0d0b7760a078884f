"""A stage of `python -m tests.gpu`: independent parts, which yield rows of results."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Row = dict[str, Any]  # what, value, unit, ...; `wrong` if a check failed
Options = argparse.Namespace
Parts = dict[str, Callable[[], Iterator[Row]]]


class Stage(NamedTuple):
    parts: Callable[[Options], Parts]  # most important first
    seconds: int  # time limit of the stage, including the start of its processes
    part_seconds: int  # time limit of each part
    without_gpu: bool


def failed(what: str, error: BaseException | str) -> Row:
    """The row of a part that failed. The row is not `wrong` if a package is not installed or an op is not supported."""
    row: Row = {"what": what, "value": "failed"}
    message = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    row["error"] = " ".join(message.split())[-600:]
    if not isinstance(error, ImportError) and type(error).__name__ != "UnsupportedError":
        row["wrong"] = True
    return row
