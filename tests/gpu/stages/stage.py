"""A stage of `python -m tests.gpu`: independent parts, which yield rows of results."""

import argparse
import importlib.util
import json
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]  # what, value, unit, ...; `wrong` if a check failed
Options = argparse.Namespace  # cpu, data_dir, scratch, output, runs, deadline
Parts = dict[str, Callable[[], Iterator[Row]]]


class Stage(NamedTuple):
    parts: Callable[[Options], Parts]  # most important first
    seconds: float  # time limit of the stage, including the start of its processes
    part_seconds: float  # time limit of each part
    needs: tuple[str, ...] = ("cupy",)  # packages, programs, "CIFAR-10"
    without_gpu: bool = False  # runs with --cpu, too
    background: bool = False  # runs beside the stages after it
    waits: bool = False  # starts after the background stages have ended: it measures times, or needs their results


def failed(what: str, error: BaseException | str) -> Row:
    """The row of a part that failed. The row is not `wrong` if a package is not installed or an op is not supported."""
    row: Row = {"what": what, "value": "failed"}
    message = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    row["error"] = " ".join(message.split())[-600:]
    row["traceback"] = error if isinstance(error, str) else "".join(traceback.format_exception(error))
    if not isinstance(error, ImportError) and type(error).__name__ != "UnsupportedError":
        row["wrong"] = True
    return row


def parse(line: str) -> dict[str, Any]:
    """The JSON object in a line of a process; empty if the line is another message."""
    try:
        found = json.loads(line) if line.startswith("{") else {}
    except ValueError:
        return {}
    return found


def cifar10(options: Options) -> Path | None:
    """The folder that contains cifar-10-batches-py/, whose last file is batches.meta; None if there is none yet."""
    folders = (Path(folder) for folder in (options.data_dir, options.scratch))
    return next((folder for folder in folders if (folder / "cifar-10-batches-py" / "batches.meta").exists()), None)


def packed_cifar10(options: Options) -> Path:
    """The script that unpacks cifar10-jpeg.npz, which is beside it."""
    return Path(options.data_dir) / "unpack_cifar10.py"


def missing(needs: tuple[str, ...], options: Options) -> list[str]:
    """The entries of `needs` that this machine lacks. With --cpu, CuPy is replaced."""
    found = {
        "CIFAR-10": lambda: cifar10(options) or packed_cifar10(options).exists(),
        "ncu": lambda: shutil.which("ncu"),
        "cupy": lambda: options.cpu or importlib.util.find_spec("cupy"),
    }
    return [name for name in needs if not found.get(name, lambda name=name: importlib.util.find_spec(name))()]
