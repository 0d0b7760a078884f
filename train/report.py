"""L7: a checkpoint on the test images: `python -m train --eval CHECKPOINT`."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import serialize, tune_cpu
from minigrad.parallel import Shards
from models.predict import one_line, printable
from models.table import table
from train import checkpoint, config, datasets
from train.dataset import Dataset
from train.errors import InputError
from train.evaluate import Answers, Evaluation
from train.flags import parser
from train.settings import BY_DATASET, COMMON, Settings

_HEARD = {
    *("eval", "dataset", "data_dir", "download", "val_num_samples", "validation_batch_size"),
    *("device", "threads", "amp", "amp_dtype", "tf32", "tune_cpu"),
}
"""Flags that --eval heeds."""


def answers(path: Path, dataset: Dataset, settings: Settings) -> Answers:
    """Those of the model in a checkpoint.

    Raises:
        InputError: there is none, or it is of other classes.
    """
    try:
        model, metadata = checkpoint.load(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(one_line(error)) from None
    if tuple(metadata["classes"]) != dataset.classes:
        raise InputError(f"{path} is of a model of other classes than those of {dataset.name}")
    dataset = replace(dataset, mean=tuple(metadata["mean"]), std=tuple(metadata["std"])).to(settings.device)
    with Shards(settings.threads) as shards:
        return Evaluation(model.to(settings.device), dataset, settings, shards).answers()


def settings_of(path: Path, given: dict[str, Any], said: dict[str, Any]) -> Settings:
    """Those of the run that left the checkpoint, but for what is `given`, of which the flags were `said`."""
    if unheard := sorted(set(said) - _HEARD):
        flag = f"--{unheard[0].replace('_', '-')}"
        raise InputError(f"--eval tests a model as its run left it: {flag} is of no use there, leave it out")
    try:
        metadata = serialize.load_metadata(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--eval {path}: {one_line(error)}") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("settings"), dict):
        raise InputError(f"--eval {path}: it is no checkpoint of this program, best or last in the folder of a run")
    kept = metadata["settings"]
    defaults = {**COMMON, **BY_DATASET.get(str(kept.get("dataset")), {}), "output": ""}  # where it is of earlier times
    kept = {name: value for name, value in kept.items() if name in {field.name for field in fields(Settings)}}
    heard = {name: value for name, value in given.items() if name in _HEARD}
    fixed = {"graph": False, "eval": str(path), "resume": "none"}
    return config.complete(path, {**defaults, **kept, **heard, **fixed}, parser())


def text(found: Answers) -> str:
    """Loss and accuracy, and a line for each class."""
    lines = [["class", "images", "found", "right if named", "most often taken for"]]
    for i, name in enumerate(found.classes):
        row, images, named = found.confusion[i], found.confusion[i].sum(), found.confusion[:, i].sum()
        others = np.where(np.arange(len(row)) == i, 0, row)
        taken = f"{printable(found.classes[others.argmax()])} ({others.max()})" if others.any() else ""
        lines.append([printable(name), f"{images}", _share(row[i], images), _share(row[i], named), taken])
    return f"loss {found.loss:.4f} acc {found.acc:.2%}\n\n{table(lines, left=[0, 4])}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def run(settings: Settings) -> None:
    """Print the report on the checkpoint."""
    if settings.tune_cpu:
        tune_cpu(settings.threads)
    dataset, path = datasets.load(replace(settings, train_num_samples=1)), Path(settings.eval)  # none is looked at
    found = answers(path, dataset, settings)
    print(f"model    {settings.model}, {path}")
    print(f"data     {dataset.name}: {len(dataset.test):,} test images, {len(dataset.classes)} classes")
    print(f"test     {text(found)}", flush=True)
