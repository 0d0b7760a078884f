"""L7: training from pretrained weights: `--initial-checkpoint FILE`.

`models/weights/load.py` lists the file formats and parameter naming schemes. Images are normalised with the statistics
of the dataset of the run, not with statistics in the file.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import serialize
from models import load_weights
from models.model import ImageModel
from models.predict import one_line
from models.weights.load import MisfitError
from train.config.errors import InputError
from train.output.log import plural


def load(file: str, model: ImageModel, name: str, classes: Sequence[str]) -> str:
    """Load a file into the new model `name`, on the CPU; returns a one-line summary.

    The head is not loaded if the number of classes or, for a checkpoint of this program, the class names differ.
    Position embeddings and relative position tables are resampled to the size of the images or windows.

    Raises:
        InputError: the file is missing or damaged, or its weights do not fit the model.
    """
    path = Path(file).expanduser()
    flag = f"--initial-checkpoint {path}"
    try:
        metadata = _metadata(path)
        if "resume" in metadata:
            raise InputError(f"{flag} is the state of a run; its models are the files best and last in the same folder")
        others = metadata.get("classes", list(classes)) != list(classes)
        loaded = load_weights(model, path, head=False if others else None, resize=True)
    except MisfitError as error:
        raise InputError(f"{flag} does not fit --model {name}: {_in_one_line(error)}") from None
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{flag}: {one_line(error)}") from None
    for parameter, x in model.state_dict().items():
        if not np.isfinite(x.data).all():
            raise InputError(f"{flag}: {parameter} has NaN or Inf in {x.dtype}")
    parts = [f"weights  {path}"]
    if not loaded.head:
        there = "no head" if loaded.classes is None else plural(loaded.classes, "class")
        here = f"{len(classes)} others" if others and loaded.classes == len(classes) else f"{len(classes)}"
        parts.append(f"new head: {there} in the file, {here} in the data")
    if loaded.resized:
        parts.append(f"positions resampled ({_first_of(loaded.resized)})")
    return "; ".join(parts)


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata in a file of this program; empty for other files."""
    if path.suffix.lower() not in (".npz", ".safetensors"):
        return {}
    metadata: Any = serialize.load_metadata(path)
    return metadata if isinstance(metadata, dict) else {}


def _in_one_line(error: MisfitError) -> str:
    """The number of mismatched parameters, the first of them, and the likely fix."""
    kinds: dict[str, list[str]] = {}
    for kind, theirs, ours, there, here in error.misfits:
        shapes = "" if there is None or here is None else f", {there} in the file and {here} in the model"
        kinds.setdefault(kind, []).append(f"{ours if theirs == '-' else theirs}{shapes}")
    counts = ", ".join(f"{len(names)} {kind} ({_first_of(names)})" for kind, names in kinds.items())
    positions = all(ours.endswith(("pos_embed", "bias_table")) for _, _, ours, _, _ in error.misfits)
    if error.lookalike:
        return f"{counts}; its weights look like those of --model {error.lookalike}"
    if positions:
        return f"{counts}; positions are resampled from a square grid or window only"
    return f"{counts}; the file must have the same architecture, patch size and window size"


def _first_of(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first}, ..." if others else first
