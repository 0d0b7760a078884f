"""L6: load a checkpoint of `python -m train` as a model and its metadata; `train/output/checkpoint.py` writes them."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from minigrad import serialize
from minigrad.nn import init
from models.model import ImageModel
from models.registry import create_model
from models.terminal import plural


def find(path: str | Path) -> Path:
    """The checkpoint file for a path: for the folder of a run, its best checkpoint; for any other path, the path.

    Raises:
        ValueError: the folder has no best checkpoint, or two.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = [file for name in BEST if (file := path / name).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the folder {path} has both {' and '.join(BEST)}: name the file")
    raise ValueError(
        f"the folder {path} has no {' or '.join(BEST)}, the best checkpoint of a run: name a checkpoint, or the output "
        "folder of a run that has completed an epoch"
    )


BEST = ("best.npz", "best.safetensors")


def load(path: str | Path) -> tuple[ImageModel, dict[str, Any]]:
    """The model of a checkpoint, or of the best checkpoint in the folder of a run: in evaluation mode, with the
    metadata: `classes`, the class names; `mean` and `std`, per channel of the training images scaled to [0, 1]; and
    further entries that `python -m train` writes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, is not a checkpoint of `python -m train`, or holds weights of another model.
        RuntimeError: the file is a `.safetensors` file, and safetensors is not installed.
    """
    path = find(path)
    arrays, metadata = serialize.load(path)
    try:
        arguments = _arguments(metadata)
        with init.meta_init():  # allocates nothing: a damaged file may state any size
            described = create_model(**arguments)
        _check_metadata(metadata, described)
    except (ValueError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of `python -m train`: {error}; load pretrained weights of other projects with "
            "models.load_weights(model, file)"
        ) from None
    expected = {name: (tensor.shape, tensor.dtype.kind) for name, tensor in described.state_dict().items()}
    found = {name: (array.shape, array.dtype.kind) for name, array in arrays.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            in_model, in_file = (
                f"{entry[0]} of kind {entry[1]!r}" if entry else "absent"
                for entry in (expected.get(name), found.get(name))
            )
            raise ValueError(
                f"{path} does not fit {arguments['name']}, the model in its metadata: {name!r} is {in_file} in the "
                f"file, {in_model} in the model"
            )
    model = create_model(**arguments)
    model.load_state_dict(arrays)
    model.eval()
    return model, metadata


def described_model(weights: str | Path | Mapping[str, Any]) -> ImageModel | None:
    """The model in the metadata of a checkpoint of `python -m train`, with shapes only (`meta_init`); None: the weights
    have no metadata of this kind."""
    try:
        with init.meta_init():
            return create_model(**serialize.load_metadata(weights)["model"])  # type: ignore[arg-type]
    except Exception:  # a dict, a file of another format, other metadata
        return None


def _arguments(metadata: Any) -> dict[str, Any]:
    """The arguments for `create_model`."""
    if not isinstance(metadata, dict) or not {"model", "classes", "mean", "std"} <= set(metadata):
        raise ValueError("its metadata lacks model, classes, mean or std")
    arguments = metadata["model"]
    if not isinstance(arguments, dict) or not isinstance(arguments.get("name"), str):
        raise ValueError("its metadata has no model name")
    return arguments


def _check_metadata(metadata: dict[str, Any], model: ImageModel) -> None:
    """Raise ValueError unless classes, mean and std fit the model."""
    classes = metadata["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not a list of names")
    if not classes or len(classes) != model.num_classes:
        names, outputs = plural(len(classes), "class name"), plural(model.num_classes, "class")
        raise ValueError(f"it has {names} for a model with {outputs}")
    for name, minimum in (("mean", float("-inf")), ("std", 0.0)):
        values = metadata[name]
        numeric = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numeric or len(values) != model.in_chans or not all(isfinite(v) and v > minimum for v in values):
            kind = "positive finite" if minimum == 0 else "finite"
            raise ValueError(f"its {name} must have a {kind} number for each of {plural(model.in_chans, 'channel')}")
