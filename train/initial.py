"""L7: training that begins with weights that others, or an earlier run, have trained: `--initial-checkpoint FILE`.

Which files there are, and in whose names the weights may be, `models/weights.py` says. Images are normalised by the
statistics of their own dataset, whatever those of the file were.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import serialize
from models import load_weights
from models.model import ImageModel
from models.predict import one_line
from models.weights import MisfitError
from train.errors import InputError
from train.settings import Settings


def load(model: ImageModel, classes: Sequence[str], settings: Settings) -> str:
    """Load the file into a new model on the CPU, for these classes; returns what to say of it.

    A head of another number of classes, or in a checkpoint of this program of classes by other names, is passed over.
    Position embeddings and tables of relative positions are resampled where images or windows have another size.

    Raises:
        InputError: there is no such file, it is damaged, or its weights do not fit the model.
    """
    path = Path(settings.initial_checkpoint).expanduser()
    flag = f"--initial-checkpoint {path}"
    try:
        metadata = _metadata(path)
        if "resume" in metadata:
            raise InputError(f"{flag} is the state of a run; the models it trained are best and last, beside it")
        others = metadata.get("classes", list(classes)) != list(classes)
        loaded = load_weights(model, path, head=False if others else None, resize=True)
    except MisfitError as error:
        raise InputError(f"{flag} does not fit --model {settings.model}: {_in_one_line(error)}") from None
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{flag}: {one_line(error)}") from None
    for name, x in model.state_dict().items():
        if not np.isfinite(x.data).all():
            raise InputError(f"{flag}: {name} has numbers that are not finite in {x.dtype}")
    said = [f"weights  {path}"]
    if not loaded.head:
        there = "none" if loaded.classes is None else f"{loaded.classes} classes"
        here = f"{len(classes)} others" if others and loaded.classes == len(classes) else f"{len(classes)}"
        said.append(f"the head begins anew: {there} there, {here} here")
    if loaded.resized:
        said.append(f"positions are resampled ({_some(loaded.resized)})")
    return "; ".join(said)


def _metadata(path: Path) -> dict[str, Any]:
    """What this program noted in a file of its own; of another's, nothing."""
    if path.suffix.lower() not in (".npz", ".safetensors"):
        return {}
    metadata: Any = serialize.load_metadata(path)
    return metadata if isinstance(metadata, dict) else {}


def _in_one_line(error: MisfitError) -> str:
    """How many parameters differ, the first of them, and the likely fix."""
    kinds: dict[str, list[str]] = {}
    for kind, theirs, ours, there, here in error.misfits:
        shapes = "" if there is None or here is None else f", {there} there and {here} here"
        kinds.setdefault(kind, []).append(f"{ours if theirs == '-' else theirs}{shapes}")
    counts = ", ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items())
    positions = all(ours.endswith(("pos_embed", "bias_table")) for _, _, ours, _, _ in error.misfits)
    if error.lookalike:
        return f"{counts}; its weights look like those of --model {error.lookalike}"
    if positions:
        return f"{counts}; positions are resampled from a square grid or window only"
    return f"{counts}; it must be of the same architecture, and the same size of patches and windows"


def _some(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first}, ..." if others else first
