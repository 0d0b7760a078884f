"""L6: goldens, runs of other libraries recorded in a few kilobytes, for comparisons without PyTorch.

A golden names the model, the images and the library. For each array the golden has a fingerprint: norm, sum, a few
elements, and the dot product with a fixed random array, which detects permutations and transposes.
"""

import json
from dataclasses import dataclass
from difflib import get_close_matches
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
    """Norm, sum and samples of an array: `probe` is its dot product with `stream("probe." + name)`; `entries` are
    evenly spaced elements."""

    shape: list[int]
    norm: float
    sum: float
    probe: float
    entries: list[float]


def fingerprint(name: str, x: np.ndarray, entries: int) -> Fingerprint:
    """Norm, sum, dot product with a fixed random array, and `entries` elements of x."""
    flat = x.reshape(-1).astype(np.float64)
    probe = formula.stream(f"probe.{name}", flat.size)
    sampled = flat[:: max(flat.size // entries, 1)][:entries] if entries else flat[:0]
    return Fingerprint(
        [*x.shape], float(np.linalg.norm(flat)), float(flat.sum()), float(flat @ probe), sampled.tolist()
    )


def distance(name: str, ours: np.ndarray, theirs: Fingerprint) -> np.ndarray:
    """Differences between the fingerprint of an array and a recorded one: of norm, sum and probe relative to the norm;
    of the elements relative to the root mean square."""
    if [*ours.shape] != theirs.shape:
        return np.array([np.inf])
    mine = fingerprint(name, ours, len(theirs.entries))
    norm = theirs.norm or 1.0
    totals = np.subtract(mine[1:4], theirs[1:4]) / norm
    return abs(np.append(totals, np.subtract(mine.entries, theirs.entries) / norm * ours.size**0.5))


@dataclass(frozen=True)
class Golden:
    """A recorded run of a model with formula weights, in float64.

    Attributes:
        library: the library that was recorded.
        version: the version of the library.
        model: the name of the model here.
        overrides: the arguments of `create_model`.
        stream: the name of the images, `formula.stream(stream, *shape)`.
        shape: the shape of the images, (B, C, H, W).
        loss: the dot product of the logits with `stream("loss")`.
        outputs: fingerprints, as (positions, channels), of blocks and of layers outside blocks; the logits last.
        gradients: fingerprints of the gradients of these outputs and of the images.
        parameters: fingerprints of the gradients of the parameters.
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
        """The model with its formula weights."""
        with init.skip_init():
            return formula.fill(create_model(self.model, **self.overrides))

    def compare(self, model: ImageModel) -> Comparison:
        """Run the model, and compare it with the recorded run."""
        return compare(trace(model, self.images()), self, model, distance)


def list_goldens() -> list[str]:
    """The names of all goldens, sorted. The golden of an unmodified registered model has the model's name."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Golden:
    """A golden by name.

    Raises:
        ValueError: there is no golden of this name.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        close = get_close_matches(name, list_goldens(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(list_goldens())}"
        raise ValueError(f"there is no golden {name!r}; {hint}")
    fields = json.loads(path.read_text(encoding="utf-8"))
    del fields["fingerprint"]
    for kind in _KINDS:
        fields[kind] = {key: Fingerprint(*values) for key, values in fields[kind].items()}
    return Golden(**fields)


def save(name: str, golden: Golden) -> None:
    """Write a golden as JSON, with one fingerprint per line."""
    head, lines = vars(golden) | {"fingerprint": ", ".join(Fingerprint._fields)}, []
    for kind in _KINDS:
        rows = [f"{json.dumps(key)}: {json.dumps(values)}" for key, values in head.pop(kind).items()]
        lines.append(f"{json.dumps(kind)}: {{\n" + ",\n".join(rows) + "\n}")
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()] + lines
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


_KINDS = ("outputs", "gradients", "parameters")
