"""L7: a run on several ranks: which rank prints, and what all ranks must agree on.

Every rank computes the same update from the same settings, data and code. A difference between two ranks would not
raise an error by itself: the parameters would drift apart in silence. So differences are searched for at the start, and
the parameters of all ranks are compared after each epoch.
"""

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from minigrad.backend import to_device
from minigrad.nn import Module
from minigrad.parallel.processes import World
from train.config.errors import InputError
from train.config.flags import option, show
from train.config.settings import Settings
from train.data.dataset import Dataset

_ROOT = Path(__file__).parents[1]


@contextmanager
def only_first_prints(world: World) -> Iterator[None]:
    """Within the block, ranks other than rank 0 print nothing. Exceptions pass."""
    with ExitStack() as stack:
        if world.rank:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def check_equal(world: World, settings: Settings, dataset: Dataset) -> None:
    """Compare settings, images, code and versions of all ranks.

    Raises:
        InputError: on every rank, with the first difference.
    """
    if world.size == 1:
        return
    own: dict[str, Any] = {option(name): show(value) for name, value in asdict(settings).items()}
    own |= {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "the code": _checksum(path.read_bytes() for path in _sources()),
        "the training images": _checksum(dataset.train.arrays()),
        "the test images": _checksum(dataset.test.arrays()),
        "the class names": list(dataset.classes),
    }
    first, *others = world.all_gather_objects(own)
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise InputError(
                    f"rank {rank} has another value than rank 0 for {name}: {other.get(name)} instead of {value}. All "
                    "ranks need the same command, files and versions"
                )


def check_parameters(world: World, model: Module, epoch: int) -> None:
    """Compare the parameters and buffers of all ranks after an epoch, bit for bit.

    Raises:
        InputError: on every rank, with the first rank that differs from rank 0.
    """
    if world.size == 1:
        return
    first, *others = world.all_gather_objects(_checksum(to_device(x.data, "cpu") for x in model.state_dict().values()))
    for rank, other in enumerate(others, 1):
        if other != first:
            raise InputError(
                f"after epoch {epoch}, the parameters of rank {rank} differ from those of rank 0, which must be equal "
                "bit for bit. Are the processors or libraries of the machines different?"
            )


def _sources() -> list[Path]:
    """The files of the program, in the same order on all machines."""
    packages = (_ROOT / name for name in ("minigrad", "models", "train"))
    return sorted(path for package in packages for end in ("py", "cu", "cuh") for path in package.rglob(f"*.{end}"))


def _checksum(contents: Iterable[bytes | np.ndarray]) -> int:
    """A checksum of bytes objects or arrays, one after another."""
    total = 0
    for content in contents:
        total = crc32(content if isinstance(content, bytes) else np.ascontiguousarray(content).data, total)
    return total
