"""L6: what other libraries answered, recorded in a few kilobytes, so that models can be compared where no PyTorch is.

A golden names a model, its images and the library. Of each array it has a fingerprint: norm and sum, a few entries, and
the product with a fixed random array, which sees what is permuted or transposed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrad.nn import init
from models.compare import formula
from models.compare.differences import Comparison, compare
from models.compare.trace import trace
from models.model import ImageModel
from models.registry import create_model

FOLDER = Path(__file__).parent / "goldens"


class Fingerprint(NamedTuple):
    """Of an array: `probe` is the sum of its products with `stream("probe." + name)`, entries are evenly spaced."""

    shape: list[int]
    norm: float
    sum: float
    probe: float
    entries: list[float]


def fingerprint(name: str, x: np.ndarray, entries: int) -> Fingerprint:
    """Of the array x, which has this name."""
    flat = x.reshape(-1).astype(np.float64)
    probe = formula.stream(f"probe.{name}", flat.size)
    few = flat[:: max(flat.size // entries, 1)][:entries] if entries else flat[:0]
    return Fingerprint([*x.shape], float(np.linalg.norm(flat)), float(flat.sum()), float(flat @ probe), few.tolist())


def distance(name: str, ours: np.ndarray, theirs: Fingerprint) -> np.ndarray:
    """Differences between the fingerprint of an array and a recorded one, relative to the norm; of the entries,
    relative to the root of their mean square."""
    if [*ours.shape] != theirs.shape:
        return np.array([np.inf])
    mine = fingerprint(name, ours, len(theirs.entries))
    norm = theirs.norm or 1.0
    whole = np.subtract(mine[1:4], theirs[1:4]) / norm
    return abs(np.append(whole, np.subtract(mine.entries, theirs.entries) / norm * ours.size**0.5))


@dataclass(frozen=True)
class Golden:
    """A recorded run of a model with formula weights, in float64.

    Attributes:
        library: which ran it.
        version: of the library.
        model: the name of the model here.
        overrides: its arguments that differ from the named configuration.
        stream: the images are the stream of this name,
        shape: in this shape.
        loss: the sum of the logits' products with `stream("loss")`.
        outputs: of the blocks and of the layers between them, as (positions, channels); last the logits.
        gradients: of the loss, with respect to the same and to the images.
        parameters: the gradients of the parameters.
    """

    library: str
    version: str
    model: str
    overrides: dict[str, Any]
    stream: str
    shape: list[int]
    loss: float
    outputs: dict[str, Fingerprint]
    gradients: dict[str, Fingerprint]
    parameters: dict[str, Fingerprint]

    def images(self) -> np.ndarray:
        """The images (B, C, H, W)."""
        return formula.stream(self.stream, *self.shape)

    def create(self) -> ImageModel:
        """The model, with its formula weights."""
        with init.skip_init():
            return formula.fill(create_model(self.model, **self.overrides))

    def compare(self, model: ImageModel) -> Comparison:
        """Run the model, and compare it with what was recorded."""
        return compare(trace(model, self.images()), self, model, distance)


def list_goldens() -> list[str]:
    """Their names, sorted; that of a model as it is registered is the model's."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Golden:
    """A golden by name.

    Raises:
        ValueError: there is none of this name.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"there is no golden {name!r}; there are {', '.join(list_goldens())}")
    fields = json.loads(path.read_text(encoding="utf-8"))
    del fields["fingerprint"]
    for kind in _KINDS:
        fields[kind] = {key: Fingerprint(*values) for key, values in fields[kind].items()}
    return Golden(**fields)


def save(name: str, golden: Golden) -> None:
    """Write a golden, a line for each fingerprint."""
    head, lines = vars(golden) | {"fingerprint": ", ".join(Fingerprint._fields)}, []
    for kind in _KINDS:
        rows = [f"{json.dumps(key)}: {json.dumps(values)}" for key, values in head.pop(kind).items()]
        lines.append(f"{json.dumps(kind)}: {{\n" + ",\n".join(rows) + "\n}")
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()] + lines
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


_KINDS = ("outputs", "gradients", "parameters")
