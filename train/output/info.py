"""L7: the settings, model and dataset recorded in the files of a run."""

from dataclasses import dataclass
from typing import Any

from train.data.dataset import Dataset


@dataclass(frozen=True)
class RunInfo:
    """The settings, model and dataset recorded in the files of a run.

    Fields:
        settings: the settings, by name.
        model: the arguments of `models.create_model`.
        dataset: the files record its class names, statistics and numbers of images.
    """

    settings: dict[str, Any]
    model: dict[str, Any]
    dataset: Dataset
