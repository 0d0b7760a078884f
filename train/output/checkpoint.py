"""L7: checkpoints: the weights of a model, with the metadata to rebuild the model and normalise its inputs."""

from pathlib import Path

from minigrad import serialize
from minigrad.nn import Module
from train.output.info import RunInfo
from train.output.log import Metrics


def save(path: Path, model: Module, info: RunInfo, metrics: Metrics) -> None:
    """Write a checkpoint, `.npz` or `.safetensors` by the suffix of `path`. An existing file is replaced atomically."""
    metadata = {
        "epoch": metrics.epoch,
        "test_acc": metrics.test_acc,
        "classes": info.dataset.classes,
        "mean": info.dataset.mean,
        "std": info.dataset.std,
        "test_names": info.dataset.test_names,
        "model": info.model,
        "settings": info.settings,
    }
    serialize.save(path, model.state_dict(), metadata)
