"""L7: what the files of a run record about the run."""

from dataclasses import dataclass
from typing import Any

from train.data.dataset import Dataset


@dataclass(frozen=True)
class RunInfo:
    """What the files of a run record about the run.

    Fields:
        settings: the settings, by name.
        model: the arguments of `models.create_model`.
        dataset: the files record class names, statistics and numbers of images of the dataset.
    """

    settings: dict[str, Any]
    model: dict[str, Any]
    dataset: Dataset
