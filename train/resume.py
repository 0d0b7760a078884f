"""L7: the state of a run in a file, `resume.npz` in its output folder, from which it goes on as if never interrupted.

It holds all that the next step depends on: weights and buffers, the optimiser's memory, the moving average, the scale
of the loss, the place in the schedule and in the order of the images, how much each random stream has drawn; and what
the run has shown so far. On the CPU the run that goes on is the run that was not interrupted, bit for bit.

The file is replaced all at once, so at any moment it is the old one or the new one. It comes first: what else an epoch
leaves in the folder follows from it, and is written again when the run goes on. At the end it shrinks to the record
that the run is finished.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from minigrad import Tensor, serialize
from minigrad.backend import to_device
from models.predict import one_line
from train import config, naming
from train.errors import InputError
from train.flags import parser
from train.log import Metrics
from train.loop import DivergedError, Trainer
from train.settings import COMMON, Settings

_VERSION = 1
# These may change (tests in other batches differ in the last bits of their loss). On the others depends what a run
# computes or leaves.
_FREE = {"data_dir", "download", "output", "resume", "validation_batch_size"}


# The command line -----------------------------------------------------------------------------------------------------


def find(given: dict[str, Any], newest: Path) -> Path | None:
    """The state that `--resume` means, None where a new run begins. `newest`: the folder looked at without --output."""
    asked = given.get("resume", COMMON["resume"])
    if asked == "none":
        return None
    if asked == "auto":
        folder = Path(given.get("output", newest))
        if (folder / naming.STATE).exists():
            return folder / naming.STATE
        if (folder / naming.TABLE).exists():
            raise InputError(f"--resume auto: {folder} holds the results of a run, but not its state, {naming.STATE}")
        return None
    path = Path(asked) / naming.STATE if Path(asked).is_dir() else Path(asked)
    if not path.exists():
        raise InputError(f"--resume {asked}: there is no file {path}")
    if "output" in given and Path(given["output"]).resolve() != path.parent.resolve():
        raise InputError(f"--resume {asked}: a run goes on in the folder of its state; leave --output out")
    return path


def settings_of(path: Path, given: dict[str, Any]) -> Settings:
    """Those of the run whose state this is. The flags `given` must agree with them."""
    stored = asdict(config.complete(path, _metadata(path)["settings"], parser()))
    for name, value in given.items():
        if name not in _FREE and value != stored[name]:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{path} is of a run with {flag} {stored[name]}, not {value}: leave the flag out to go on with it, "
                "or name another --output"
            )
    free = {name: value for name, value in given.items() if name in _FREE}
    free |= {"output": str(path.parent), "resume": str(path)}
    config.check_texts(free)
    return Settings(**{**stored, **free})


# The file -------------------------------------------------------------------------------------------------------------


def save(path: Path, trainer: Trainer, history: Sequence[Metrics]) -> None:
    """Write the state of a run that is between two steps."""
    arrays: dict[str, Any] = {
        f"{part}/{name}": x for part, owner in _parts(trainer).items() for name, x in owner.state_dict().items()
    }
    arrays["sums"] = trainer.step.sums.sums
    if trainer.order is not None:
        arrays["order"] = trainer.order
    numbers = {
        "position": trainer.position,
        "lr": trainer.lr,
        "seconds": trainer.seconds,
        "skipped": [trainer.step.skipped, trainer.step.images_skipped],
        "draws": [generator.draws for generator in trainer.step.generators],
        "data": _data(trainer),
    }
    _write(path, arrays, trainer.settings, history, {"finished": False, **numbers})


def finish(path: Path, settings: Settings, history: Sequence[Metrics]) -> None:
    """Leave, of the state of a run, that it is finished."""
    _write(path, {}, settings, history, {"finished": True})


def is_finished(path: Path) -> bool:
    """Whether nothing is left to do."""
    return _metadata(path).get("finished") is True


def load(path: Path, trainer: Trainer) -> list[Metrics]:
    """Bring a new trainer to the state of the file; returns what the run has shown so far.

    Raises:
        InputError: the file is damaged, or does not fit the trainer, which is then as it was.
    """
    metadata = _metadata(path)
    try:
        arrays, _ = serialize.load(path)
        _check_arrays(arrays, trainer)
        history = _history(metadata)
        _check_numbers(metadata, arrays, trainer, len(history))
    except ValueError as error:
        raise InputError(f"cannot go on with {path}: {one_line(error)}") from None
    for part, owner in _parts(trainer).items():
        owner.load_state_dict(_part(part, arrays))
    device = trainer.settings.device
    trainer.step.sums.sums[...] = to_device(arrays["sums"], device)
    trainer.order = to_device(arrays["order"], device) if "order" in arrays else None
    trainer.epoch, trainer.position = len(history), metadata["position"]
    trainer.lr, trainer.seconds = metadata["lr"], metadata["seconds"]
    trainer.step.skipped, trainer.step.images_skipped = metadata["skipped"]
    for generator, draws in zip(trainer.step.generators, metadata["draws"], strict=True):
        generator.draws = draws
    return history


def look_again(path: Path, trainer: Trainer) -> str:
    """What went wrong where only the loss was looked at, now and then: from the state of the file on, up to an epoch
    with a look at each step. Empty if it does not come again."""
    again = Trainer(trainer.model, trainer.dataset, replace(trainer.settings, graph=False))
    load(path, again)
    again.step.watched, again.stop = True, trainer.stop
    try:
        next(again.fit())
    except DivergedError as error:
        return str(error)
    return ""


def _write(
    path: Path, arrays: dict[str, Any], settings: Settings, history: Sequence[Metrics], more: dict[str, Any]
) -> None:
    shared = {"resume": _VERSION, "settings": asdict(settings), "history": [asdict(metrics) for metrics in history]}
    serialize.save(path, arrays, {**shared, **more})


def _parts(trainer: Trainer) -> dict[str, Any]:
    """What has a `state_dict`, by the name under which it is in the file."""
    parts = {
        "model": trainer.model,
        "optimizer": trainer.step.optimizer,
        "schedule": trainer.schedule,
        "scaler": trainer.step.scaler,
    }
    return parts if trainer.step.ema is None else {**parts, "ema": trainer.step.ema}


def _part(part: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of one part, by its own names."""
    return {name.removeprefix(f"{part}/"): x for name, x in arrays.items() if name.startswith(f"{part}/")}


def _data(trainer: Trainer) -> dict[str, Any]:
    """What tells whether the images are still the same: how many there are, and of which classes."""
    dataset = trainer.dataset
    return {"images": [len(dataset.train), len(dataset.test)], "classes": list(dataset.classes)}


# Checks: a file may be damaged, or of another run, or made to do harm -------------------------------------------------


def _metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = serialize.load_metadata(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot go on with {path}: {error}") from None
    state = isinstance(metadata, dict) and metadata.get("resume") == _VERSION
    if not (state and isinstance(metadata.get("settings"), dict)):
        trained = isinstance(metadata, dict) and "model" in metadata
        what = "a trained model" if trained else "something else"
        raise InputError(f"{path} is {what}, not the state of a run, which is in its folder as {naming.STATE}")
    return metadata


def _check_arrays(arrays: dict[str, np.ndarray], trainer: Trainer) -> None:
    """Names, shapes and dtypes."""
    expected = {"sums": trainer.step.sums.sums, "order": np.empty(len(trainer.dataset.train), np.int64)}
    optional = {"order"}  # there in the midst of an epoch
    for part, owner in _parts(trainer).items():
        for name, x in owner.state_dict().items():
            expected[f"{part}/{name}"] = x.data if isinstance(x, Tensor) else x
    optimizer = trainer.step.optimizer
    for g, group in enumerate(optimizer.param_groups):
        optional |= {f"optimizer/{g}.{name}" for name in ("has_state", "initial_lr")}  # a file of before has neither
        for i, parameter in enumerate(group["params"]):  # its memory begins with its first gradient
            own = {f"optimizer/{g}.{i}.{name}": name for name in optimizer.memory_of(group)}
            optional |= set() if any(name in arrays for name in own) else set(own)
            expected |= {key: np.asarray(0) if name == "step" else parameter.data for key, name in own.items()}
    for name in [*expected, *arrays]:
        if name in arrays and name in expected:
            found, wanted = ((x.shape, str(x.dtype)) for x in (arrays[name], expected[name]))
            if found != wanted:
                raise ValueError(f"{name} is {found[0]} {found[1]} in it, and {wanted[0]} {wanted[1]} in this run")
        elif name not in optional:
            raise ValueError(f"{name} is {'missing' if name in expected else 'no part of this run'}")
    for part, owner in _parts(trainer).items():
        if part in ("optimizer", "ema"):
            owner.read_state_dict(_part(part, arrays))


def _check_numbers(metadata: dict[str, Any], arrays: dict[str, np.ndarray], trainer: Trainer, epochs: int) -> None:
    """The place in the run, and the images."""
    if metadata.get("data") != _data(trainer):
        raise ValueError("the images or classes of the dataset are no longer those it was trained on")
    position = metadata.get("position")
    if type(position) is not int or not 0 <= position <= trainer.steps or epochs > trainer.settings.epochs:
        raise ValueError(f"it is at step {position!r} after {epochs} epochs, of {trainer.steps} steps each")
    if arrays["schedule/t"] != epochs * trainer.steps + position or ("order" in arrays) != (position > 0):
        raise ValueError("its schedule, its order of the images and its place in the run are not of the same step")
    if "order" in arrays and not (arrays["order"].min() >= 0 and arrays["order"].max() < len(arrays["order"])):
        raise ValueError("its order of the images has numbers of none")
    if not (0 < arrays["scaler/scale"] < inf and arrays["scaler/good_steps"] >= 0):
        raise ValueError("its scale of the loss is not above 0 and finite")
    for name, count in (("draws", len(trainer.step.generators)), ("skipped", 2)):
        numbers = metadata.get(name)
        if not isinstance(numbers, list) or [type(n) is int and 0 <= n < 2**63 for n in numbers] != [True] * count:
            raise ValueError(f"{name} is not {count} whole numbers in it")
    if not (_finite(metadata.get("lr")) and _finite(metadata.get("seconds"))):
        raise ValueError("its rate or its time is no number")


def _history(metadata: dict[str, Any]) -> list[Metrics]:
    rows, names = metadata.get("history"), set(get_type_hints(Metrics))
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == names for row in rows):
        raise ValueError("its table of epochs is damaged")
    if not all(type(value) in (int, float) for row in rows for value in row.values()):
        raise ValueError("its table of epochs has what is no number")
    if [row["epoch"] for row in rows] != [*range(1, len(rows) + 1)]:
        raise ValueError("its table of epochs lacks one")
    return [Metrics(**row) for row in rows]


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)
