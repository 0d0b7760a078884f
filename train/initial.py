"""L7: training from pretrained weights: `--initial-checkpoint FILE`, or `--pretrained` from this package or the
Hugging Face Hub.

`models/weights/load.py` lists the file formats and parameter naming schemes. Images are normalised with the statistics
of the dataset of the run, not with statistics in the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import serialize
from models import load_weights
from models.model import ImageModel
from models.predict import one_line
from models.pretrained import load_into
from models.terminal import plural
from models.weights import checkpoint
from models.weights.load import Loaded, MisfitError
from models.weights.mismatch import first_of
from models.weights.table import origin
from train.config.errors import InputError


def load(file: str, model: ImageModel, name: str, classes: Sequence[str]) -> str:
    """Load a file, or the best checkpoint of a run's folder, into the new model `name`, on the CPU; returns a one-line
    summary.

    The head is not loaded if the number of classes or, for a checkpoint of this program, the class names differ.
    Position embeddings and relative position tables are resampled to the size of the images or windows.

    Raises:
        InputError: the file is missing or damaged, or its weights do not fit the model.
    """
    path = Path(file).expanduser()
    flag = f"--initial-checkpoint {path}"
    try:
        path = checkpoint.find(path)
        metadata = _metadata(path)
        if "resume" in metadata:
            raise InputError(f"{flag} is the state of a run; its models are the files best and last in the same folder")
        others = metadata.get("classes", list(classes)) != list(classes)
        loaded = load_weights(model, path, head=False if others else None, resize=True)
    except MisfitError as error:
        raise InputError(f"{flag} does not fit --model {name}: {error.in_one_line()}") from None
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{flag}: {one_line(error)}") from None
    return _summary(flag, str(path), model, loaded, classes, others)


def load_pretrained(name: str, model: ImageModel, classes: Sequence[str]) -> str:
    """Load the published or bundled weights of `name` into the new model, on the CPU; returns a one-line summary.

    The head is not loaded if the number of classes or, of bundled weights, the class names differ.

    Raises:
        InputError: there are no such weights, or they cannot be downloaded or used.
    """
    flag = f"--model {name} --pretrained"
    try:
        loaded, config = load_into(model, name, classes)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{flag}: {one_line(error)}") from None
    others = config.get("label_names", [*classes]) != [*classes]
    return _summary(flag, f"{origin(config)} (licence: {config['license']})", model, loaded, classes, others)


def _summary(flag: str, source: str, model: ImageModel, loaded: Loaded, classes: Sequence[str], others: bool) -> str:
    """The line about loaded weights; `others`: the file has other class names.

    Raises:
        InputError: a parameter has NaN or Inf.
    """
    for parameter, x in model.state_dict().items():
        if not np.isfinite(x.data).all():
            raise InputError(f"{flag}: {parameter} has NaN or Inf in {x.dtype}")
    parts = [f"weights  {source}"]
    if not loaded.head:
        there = "no head" if loaded.classes is None else plural(loaded.classes, "class")
        here = f"{len(classes)} others" if others and loaded.classes == len(classes) else f"{len(classes)}"
        parts.append(f"new head: {there} in the file, {here} in the data")
    if loaded.resized:
        parts.append(f"positions resampled ({first_of(loaded.resized)})")
    return "; ".join(parts)


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata in a file of this program; empty for other files."""
    if path.suffix.lower() not in (".npz", ".safetensors"):
        return {}
    metadata: Any = serialize.load_metadata(path)
    return metadata if isinstance(metadata, dict) else {}
