"""L6: a trained model from a file of `python -m train`; `train/output/checkpoint.py` has the other direction."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from minigrad import serialize
from minigrad.nn import init
from models.model import ImageModel
from models.registry import create_model


def load(path: str | Path) -> tuple[ImageModel, dict[str, Any]]:
    """The model, in evaluation mode, and the metadata: `classes`, their names; `mean` and `std` of the training images'
    channels, white being 1; and what else the training program noted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or was written by something else, or its weights are of another model.
        RuntimeError: it is a `.safetensors` file, and their library is not installed.
    """
    arrays, metadata = serialize.load(path)
    try:
        arguments = _arguments(metadata)
        with init.meta_init():  # without touching memory: the sizes are what a file says
            expected = create_model(**arguments)
        _check_statistics(metadata, expected)
    except (ValueError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{path} is no checkpoint of `python -m train`: {error}; weights that others have trained load with "
            "models.load_weights(model, file)"
        ) from None
    wanted = {name: (tensor.shape, tensor.dtype.kind) for name, tensor in expected.state_dict().items()}
    found = {name: (array.shape, array.dtype.kind) for name, array in arrays.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            here, there = (
                f"{entry[0]} of kind {entry[1]!r}" if entry else "none" for entry in (wanted.get(name), found.get(name))
            )
            raise ValueError(
                f"{path} does not hold the weights of {arguments['name']} that it names: {name!r} is {there} in the "
                f"file, {here} in the model"
            )
    model = create_model(**arguments)
    model.load_state_dict(arrays)
    model.eval()
    return model, metadata


def described_model(weights: str | Path | Mapping[str, Any]) -> ImageModel | None:
    """The model that the metadata of a checkpoint describes, without values (`meta_init`); None: for other weights."""
    try:
        with init.meta_init():
            return create_model(**serialize.load_metadata(weights)["model"])  # type: ignore[arg-type]
    except Exception:  # no metadata, or another project's
        return None


def _arguments(metadata: Any) -> dict[str, Any]:
    """What `create_model` takes."""
    if not isinstance(metadata, dict) or not {"model", "classes", "mean", "std"} <= set(metadata):
        raise ValueError("it does not say of which model it is, with which classes, mean and std")
    arguments = metadata["model"]
    if not isinstance(arguments, dict) or not isinstance(arguments.get("name"), str):
        raise ValueError("it gives no name of a model")
    return arguments


def _check_statistics(metadata: dict[str, Any], model: ImageModel) -> None:
    """Refuse classes, mean or std that do not fit the model."""
    classes = metadata["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if not classes or len(classes) != model.num_classes:
        raise ValueError(f"it names {len(classes)} classes for a model of {model.num_classes}")
    for name, least in (("mean", float("-inf")), ("std", 0.0)):
        values = metadata[name]
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != model.in_chans or not all(isfinite(v) and v > least for v in values):
            above = ", above 0," if least == 0 else ""
            raise ValueError(f"its {name} is not one finite number{above} for each of {model.in_chans} channels")
