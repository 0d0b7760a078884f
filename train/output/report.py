"""L7: evaluate a checkpoint on the test images: `python -m train --eval FILE`."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import serialize, tune_cpu
from minigrad.parallel.threads import Shards
from models.predict import one_line, printable
from models.terminal import table
from train.config import file as config
from train.config.errors import InputError
from train.config.flags import parser
from train.config.settings import BY_DATASET, COMMON, Settings
from train.data import datasets
from train.data.dataset import Dataset
from train.evaluate import Evaluation, Predictions
from train.output import checkpoint
from train.output.log import plural

_EVAL_FLAGS = {
    *("eval", "dataset", "data_dir", "download", "val_num_samples", "validation_batch_size"),
    *("device", "threads", "amp", "amp_dtype", "tf32", "tune_cpu"),
}
"""Settings that may be given with --eval."""


def predictions(path: Path, dataset: Dataset, settings: Settings) -> Predictions:
    """The predictions of the model in a checkpoint for the test images.

    Raises:
        InputError: the file is missing, damaged or no checkpoint, or its classes are not the dataset's.
    """
    try:
        model, metadata = checkpoint.load(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(one_line(error)) from None
    if tuple(metadata["classes"]) != dataset.classes:
        raise InputError(f"the model in {path} has other classes than {dataset.name}")
    dataset = replace(dataset, mean=tuple(metadata["mean"]), std=tuple(metadata["std"])).to(settings.device)
    with Shards(settings.threads) as shards:
        return Evaluation(model.to(settings.device), dataset, settings, shards).predictions()


def settings_of(path: Path, given: dict[str, Any], flags: dict[str, Any]) -> Settings:
    """The settings stored in the checkpoint, overridden by `given`; `flags` is the subset given as flags.

    Raises:
        InputError: a flag has no effect on an evaluation, or the file is no checkpoint of this program.
    """
    if refused := sorted(set(flags) - _EVAL_FLAGS):
        flag = f"--{refused[0].replace('_', '-')}"
        raise InputError(f"{flag} has no effect with --eval, which evaluates the stored model: leave it out")
    try:
        metadata = serialize.load_metadata(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--eval {path}: {one_line(error)}") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("settings"), dict):
        raise InputError(f"--eval {path} is no checkpoint of this program, such as best.npz in a run's folder")
    stored = metadata["settings"]
    # The defaults stand for settings that an earlier version of this program did not have.
    defaults = {**COMMON, **BY_DATASET.get(str(stored.get("dataset")), {}), "output": ""}
    stored = {name: value for name, value in stored.items() if name in {field.name for field in fields(Settings)}}
    overrides = {name: value for name, value in given.items() if name in _EVAL_FLAGS}
    fixed = {"graph": False, "eval": str(path), "resume": "none"}
    return config.complete(path, {**defaults, **stored, **overrides, **fixed}, parser())


def text(found: Predictions) -> str:
    """Loss and accuracy; and for each class recall, precision and the most frequent wrong prediction."""
    lines = [["class", "images", "recall", "precision", "most confused with"]]
    for i, name in enumerate(found.classes):
        row, images, predicted = found.confusion[i], found.confusion[i].sum(), found.confusion[:, i].sum()
        others = np.where(np.arange(len(row)) == i, 0, row)
        wrong = f"{printable(found.classes[others.argmax()])} ({others.max()})" if others.any() else ""
        lines.append([printable(name), f"{images}", _percent(row[i], images), _percent(row[i], predicted), wrong])
    return f"loss {found.loss:.4f} acc {found.acc:.2%}\n\n{table(lines, left=[0, 4])}"


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "-"


def run(settings: Settings) -> None:
    """Evaluate the checkpoint and print the report."""
    if settings.tune_cpu:
        tune_cpu(settings.threads)
    dataset, path = datasets.load(replace(settings, train_num_samples=1)), Path(settings.eval)
    found = predictions(path, dataset, settings)
    print(f"model    {settings.model}, {path}")
    images, classes = plural(len(dataset.test), "test image"), plural(len(dataset.classes), "class")
    print(f"data     {dataset.name}: {images}, {classes}")
    print(f"test     {text(found)}", flush=True)
