"""L7: evaluate a checkpoint on the test images: `python -m train --eval FILE`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from minigrad.backend import device_of, to_device
from models.predict import one_line
from models.terminal import printable, table
from models.weights import checkpoint
from train.config.errors import InputError
from train.data.dataset import Dataset
from train.evaluate import Evaluation, Predictions


def predictions(path: Path, dataset: Dataset, evaluation: Evaluation) -> Predictions:
    """The predictions of the model in a checkpoint for the test images, on the device of the dataset.

    Classes are compared by name. The dataset may have fewer than the model.

    Raises:
        InputError: the file is missing, damaged or no checkpoint, or lacks a class of the dataset.
    """
    try:
        model, metadata = checkpoint.load(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(one_line(error)) from None
    known = list(metadata["classes"])
    if unknown := [name for name in dataset.classes if name not in known]:
        raise InputError(
            f"the model in {path} has no class {_names(unknown)}, of {dataset.name}; its classes are {_names(known)}"
        )
    device = device_of(dataset.test.labels)
    labels = to_device(np.array([known.index(name) for name in dataset.classes]), device)[dataset.test.labels]
    dataset = replace(
        dataset,
        test=replace(dataset.test, labels=labels),
        classes=tuple(known),
        mean=tuple(metadata["mean"]),
        std=tuple(metadata["std"]),
    )
    return evaluation.predictions(model.to(device_of(dataset.test.labels)), dataset)


def _names(names: Sequence[str]) -> str:
    """At most ten names, and the number of the others."""
    others = f" and {len(names) - 10:,} others" if len(names) > 10 else ""
    return f"{', '.join(map(printable, names[:10]))}{others}"


def text(found: Predictions) -> str:
    """The report: loss, accuracy, and for each class recall, precision and the most frequent wrong prediction."""
    lines = [["class", "images", "recall", "precision", "most confused with"]]
    for i, name in enumerate(found.classes):
        row, images, predicted = found.confusion[i], found.confusion[i].sum(), found.confusion[:, i].sum()
        others = np.where(np.arange(len(row)) == i, 0, row)
        wrong = f"{printable(found.classes[others.argmax()])} ({others.max()})" if others.any() else ""
        lines.append([printable(name), f"{images}", _percent(row[i], images), _percent(row[i], predicted), wrong])
    return f"loss {found.loss:.4f} acc {found.acc:.2%}\n\n{table(lines, left=[0, 4])}"


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "-"
