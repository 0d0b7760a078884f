"""L7: the state of a run, `resume.npz` in its output folder: a resumed run equals an uninterrupted run.

The file holds everything that the next step depends on: parameters and buffers, optimizer state, EMA, loss scale,
schedule, order of the images, counters of the random generators; and the metrics so far. On the CPU the results are
equal bit for bit.

The state is replaced atomically, before the other files of an epoch: on resume, `results.py` rewrites these files.
After the last epoch the file only records that the run is finished.
"""

from collections.abc import Sequence
from dataclasses import asdict
from math import inf, isfinite
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from minigrad import Tensor, serialize
from minigrad.backend import device_of, to_device
from minigrad.optim import Optimizer
from models.predict import one_line
from models.terminal import plural
from train.config.errors import InputError
from train.data.dataset import Dataset
from train.loop import DivergedError, Trainer
from train.output import naming
from train.output.info import RunInfo
from train.output.log import Metrics

_VERSION = 1


def save(path: Path, trainer: Trainer, info: RunInfo, history: Sequence[Metrics]) -> None:
    """Write the state of a run, between two steps. All ranks call this function, rank 0 writes."""
    arrays, metadata = state(trainer, info, history)
    if trainer.world.rank == 0:
        serialize.save(path, arrays, metadata)


def state(trainer: Trainer, info: RunInfo, history: Sequence[Metrics]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the metadata of the state. All ranks call this function: an optimizer may be divided."""
    step = trainer.step
    arrays: dict[str, Any] = {
        f"{part}/{name}": x for part, owner in _parts(trainer).items() for name, x in _state(owner).items()
    }
    arrays["sums"] = step.sums.sums
    if trainer.order is not None:
        arrays["order"] = trainer.order
    progress = {
        "position": trainer.position,
        "lr": trainer.lr,
        "seconds": trainer.seconds,
        "skipped": [step.skipped, step.images_skipped],
        "draws": step.draws,
        "data": _data(info.dataset),
    }
    return arrays, {**_metadata(info, history), "finished": False, **progress}


def finish(path: Path, info: RunInfo, history: Sequence[Metrics]) -> None:
    """Replace the state by the record that the run is finished."""
    serialize.save(path, {}, {**_metadata(info, history), "finished": True})


def is_finished(path: Path) -> bool:
    """True if the run has completed all its epochs, or was stopped by --patience."""
    return read_metadata(path).get("finished") is True


def completed(path: Path) -> int:
    """The number of completed epochs.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return len(_history(read_metadata(path)))
    except ValueError as error:
        raise InputError(f"cannot resume from {path}: {error}") from None


def load(path: Path, trainer: Trainer, info: RunInfo) -> list[Metrics]:
    """Load the state into a trainer; returns the metrics of the completed epochs.

    Raises:
        InputError: the file is damaged or does not fit the trainer. The trainer is unchanged.
    """
    metadata = read_metadata(path)
    try:
        arrays, _ = serialize.load(path)
        _check_arrays(arrays, trainer)
        history = _history(metadata)
        _check_progress(metadata, arrays, trainer, info.dataset, len(history))
    except ValueError as error:
        raise InputError(f"cannot resume from {path}: {one_line(error)}") from None
    for part, owner in _parts(trainer).items():
        owner.load_state_dict(_part(part, arrays))
    step, device = trainer.step, device_of(trainer.step.sums.sums)
    step.sums.sums[...] = to_device(arrays["sums"], device)
    trainer.order = to_device(arrays["order"], device) if "order" in arrays else None
    trainer.epoch, trainer.position = len(history), metadata["position"]
    trainer.lr, trainer.seconds = metadata["lr"], metadata["seconds"]
    step.skipped, step.images_skipped = metadata["skipped"]
    step.draws = tuple(metadata["draws"])
    return history


def repeat_with_checks(path: Path, trainer: Trainer, info: RunInfo) -> str:
    """The error message with the first op that made NaN or Inf, for a run without a check at each step.

    Loads the saved state and repeats up to one epoch with a check at each step, without a CUDA graph. The message
    is empty if no NaN or Inf occurs again.
    """
    load(path, trainer, info)
    trainer.step.graphed, trainer.step.checks_finite = None, True
    try:
        next(trainer.fit())
    except DivergedError as error:
        return str(error)
    return ""


def read_metadata(path: Path) -> dict[str, Any]:
    """Settings, table of epochs and progress in a state file.

    Raises:
        InputError: the file is missing, damaged or no state of a run.
    """
    try:
        metadata = serialize.load_metadata(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot resume from {path}: {error}") from None
    state = isinstance(metadata, dict) and metadata.get("resume") == _VERSION
    if not (state and isinstance(metadata.get("settings"), dict)):
        trained = isinstance(metadata, dict) and "model" in metadata
        kind = "a trained model" if trained else "something else"
        raise InputError(f"{path} is {kind}, not the state of a run: the state is {naming.STATE} in the same folder")
    return metadata


def _metadata(info: RunInfo, history: Sequence[Metrics]) -> dict[str, Any]:
    """The metadata of a state and of a finished run."""
    return {"resume": _VERSION, "settings": info.settings, "history": [asdict(metrics) for metrics in history]}


def _parts(trainer: Trainer) -> dict[str, Any]:
    """The objects with a `state_dict`, by the prefix of their arrays in the file."""
    parts = {
        "model": trainer.model,
        "optimizer": trainer.step.optimizer,
        "schedule": trainer.schedule,
        "scaler": trainer.step.scaler,
    }
    return parts if trainer.step.ema is None else {**parts, "ema": trainer.step.ema}


def _state(owner: Any) -> dict[str, Any]:
    """The arrays of one object by name."""
    state: dict[str, Any] = owner.flat_state_dict() if isinstance(owner, Optimizer) else owner.state_dict()
    return state


def _part(part: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of one part; names are without the prefix."""
    return {name.removeprefix(f"{part}/"): x for name, x in arrays.items() if name.startswith(f"{part}/")}


def _data(dataset: Dataset) -> dict[str, Any]:
    """Image counts, class names and the split of --val-split, to detect that the dataset has changed."""
    split = {"test_names": dataset.test_names} if dataset.test_names else {}
    return {"images": [len(dataset.train), len(dataset.test)], "classes": list(dataset.classes), **split}


# Checks: the file may be damaged, hostile or of another run -----------------------------------------------------------


def _check_arrays(arrays: dict[str, np.ndarray], trainer: Trainer) -> None:
    """Check names, shapes and dtypes of the arrays."""
    expected = {"sums": trainer.step.sums.sums, "order": np.empty(len(trainer.dataset.train), np.int64)}
    optional = {"order"}  # saved only within an epoch
    for part, owner in _parts(trainer).items():
        for name, x in _state(owner).items():
            expected[f"{part}/{name}"] = x.data if isinstance(x, Tensor) else x
    optimizer = trainer.step.optimizer
    for g, group in enumerate(optimizer.param_groups):
        optional |= {f"optimizer/{g}.{name}" for name in ("has_state", "initial_lr")}  # absent from older files
        for i, parameter in enumerate(group["params"]):  # a parameter has optimizer state from its first gradient on
            keys = {f"optimizer/{g}.{i}.{name}": name for name in optimizer.state_names(group)}
            optional |= set() if any(key in arrays for key in keys) else set(keys)
            expected |= {key: np.asarray(0) if name == "step" else parameter.data for key, name in keys.items()}
    for name in [*expected, *arrays]:
        if name in arrays and name in expected:
            found, wanted = ((x.shape, str(x.dtype)) for x in (arrays[name], expected[name]))
            if found != wanted:
                raise ValueError(f"{name} is {found[0]} {found[1]} in the file, {wanted[0]} {wanted[1]} in this run")
        elif name not in optional:
            raise ValueError(f"{name} is {'missing' if name in expected else 'no part of this run'}")
    for part, owner in _parts(trainer).items():
        if part in ("optimizer", "ema"):
            owner.read_state_dict(_part(part, arrays))


def _check_progress(
    metadata: dict[str, Any], arrays: dict[str, np.ndarray], trainer: Trainer, dataset: Dataset, epochs: int
) -> None:
    """Check the progress of the run, the counters and the dataset."""
    if metadata.get("data") != _data(dataset):
        raise ValueError("the images or classes of the dataset have changed since the state was saved")
    position = metadata.get("position")
    if type(position) is not int or not 0 <= position <= trainer.steps or epochs > trainer.epochs:
        done, each = plural(epochs, "epoch"), plural(trainer.steps, "step")
        raise ValueError(f"the state is at step {position!r} after {done}, of {each} each")
    if arrays["schedule/t"] != epochs * trainer.steps + position or ("order" in arrays) != (position > 0):
        raise ValueError("schedule, order of the images and progress are not of the same step")
    if "order" in arrays and not (arrays["order"].min() >= 0 and arrays["order"].max() < len(arrays["order"])):
        raise ValueError("the order of the images has indices out of range")
    if not (0 < arrays["scaler/scale"] < inf and arrays["scaler/good_steps"] >= 0):
        raise ValueError("the loss scale is not above 0 and finite")
    if isinstance(metadata.get("draws"), list) and len(metadata["draws"]) > 2:
        raise ValueError("an earlier version of this program saved the state, with random numbers of each thread")
    for name, count in (("draws", 2), ("skipped", 2)):
        counts = metadata.get(name)
        if not isinstance(counts, list) or [type(n) is int and 0 <= n < 2**63 for n in counts] != [True] * count:
            raise ValueError(f"{name} must be {count} whole numbers")
    if not (_finite(metadata.get("lr")) and _finite(metadata.get("seconds"))):
        raise ValueError("the learning rate or the time is not a finite number")


def _history(metadata: dict[str, Any]) -> list[Metrics]:
    rows, names = metadata.get("history"), set(get_type_hints(Metrics))
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == names for row in rows):
        raise ValueError("the table of epochs is damaged")
    if not all(type(value) in (int, float) for row in rows for value in row.values()):
        raise ValueError("the table of epochs has an entry that is not a number")
    if [row["epoch"] for row in rows] != [*range(1, len(rows) + 1)]:
        raise ValueError("the table of epochs lacks an epoch")
    return [Metrics(**row) for row in rows]


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)
