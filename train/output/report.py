"""L7: evaluate a checkpoint on the test images: `python -m train --eval FILE`."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from minigrad.backend import device_of
from models.predict import one_line
from models.terminal import printable, table
from models.weights import checkpoint
from train.config.errors import InputError
from train.data.dataset import Dataset
from train.evaluate import Evaluation, Predictions


def predictions(path: Path, dataset: Dataset, evaluation: Evaluation) -> Predictions:
    """The predictions of the model in a checkpoint for the test images, on the device of the dataset.

    Raises:
        InputError: the file is missing, damaged or no checkpoint, or its classes are not the dataset's.
    """
    try:
        model, metadata = checkpoint.load(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(one_line(error)) from None
    if tuple(metadata["classes"]) != dataset.classes:
        raise InputError(f"the model in {path} has other classes than {dataset.name}")
    dataset = replace(dataset, mean=tuple(metadata["mean"]), std=tuple(metadata["std"]))
    return evaluation.predictions(model.to(device_of(dataset.test.labels)), dataset)


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
