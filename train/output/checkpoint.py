"""L7: checkpoints: the weights of a model, with the metadata to rebuild the model and normalise its inputs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigrad import serialize
from minigrad.nn import Module
from models.weights.checkpoint import load
from train.config.settings import Settings
from train.data.dataset import Dataset
from train.output.log import Metrics

__all__ = ["load", "model_arguments", "save"]


def save(path: Path, model: Module, dataset: Dataset, settings: Settings, metrics: Metrics) -> None:
    """Write a checkpoint, `.npz` or `.safetensors` by the suffix of `path`. An existing file is replaced atomically."""
    metadata = {
        "epoch": metrics.epoch,
        "test_acc": metrics.test_acc,
        "classes": dataset.classes,
        "mean": dataset.mean,
        "std": dataset.std,
        "model": model_arguments(dataset, settings),
        "settings": asdict(settings),
    }
    serialize.save(path, model.state_dict(), metadata)


def model_arguments(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """The arguments of `models.create_model` for this run."""
    _, channels, height, _ = dataset.train.images.shape
    return {
        "name": settings.model,
        "num_classes": len(dataset.classes),
        "img_size": height,
        "in_chans": channels,
        "drop_path_rate": settings.drop_path,
    }
