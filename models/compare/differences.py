"""L6: how far apart two runs of a model are, layer by layer, and how far they may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from models.compare.trace import Trace, channels, holders, readings
from models.hybrid import HybridVisionTransformer
from models.model import ImageModel


@dataclass(frozen=True)
class Row:
    """The largest and the mean difference between two arrays, relative to the largest entry of the reference."""

    name: str
    largest: float
    mean: float

    def within(self, tolerance: float) -> bool:
        """Whether the arrays agree."""
        return self.largest <= tolerance


@dataclass(frozen=True)
class Comparison:
    """What two runs of a model have in common.

    Attributes:
        outputs: of the modules, but for those that hold blocks, in the order of the forward; last the logits.
        gradients: with respect to these, in the order of the backward; last of the images.
        parameters: their gradients, the worst first.
        tolerances: for the outputs, and for all gradients.
    """

    outputs: list[Row]
    gradients: list[Row]
    parameters: list[Row]
    tolerances: tuple[float, float]

    def out_of_tolerance(self) -> list[Row]:
        """The rows that disagree, in the order in which they were computed."""
        value, gradient = self.tolerances
        found = [row for row in self.outputs if not row.within(value)]
        return found + [row for row in [*self.gradients, *self.parameters] if not row.within(gradient)]


Distance = Callable[[str, np.ndarray, Any], np.ndarray]


def relative(name: str, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Differences relative to the largest entry of `theirs`."""
    if ours.shape != theirs.shape:
        return np.array([np.inf])
    return abs(ours - theirs) / (np.max(abs(theirs), initial=0) or 1)


def compare(ours: Trace, theirs: Any, model: ImageModel, distance: Distance = relative) -> Comparison:
    """Compare two runs.

    Args:
        ours: a run of `model`.
        theirs: a Trace, or what has the same three dicts, with values that `distance` understands.
        model: the model.
        distance: (name, our array, their value) to relative differences.

    Where an output can be read as (positions, channels) in more than one way, the closest counts.
    """
    width, skipped = channels(model), holders(model)

    def rows(mine: Mapping[str, np.ndarray], others: Mapping[str, Any]) -> list[Row]:
        found = []
        for name in mine:
            if name not in others or name in skipped:
                continue
            x, y = [mine[name]], [others[name]]
            if name in width:
                x = readings(mine[name], width[name])
                y = readings(others[name], width[name]) if isinstance(others[name], np.ndarray) else y
            with np.errstate(invalid="ignore"):
                pairs = [np.nan_to_num(distance(name, *pair), nan=np.inf) for pair in product(x, y)]
            closest = min(pairs, key=np.max, default=np.array([np.inf]))
            found.append(Row(name, float(closest.max()), float(closest.mean())))
        return found

    backward = dict(reversed([(name, ours.gradients[name]) for name in ["images", *ours.outputs]]))
    return Comparison(
        outputs=rows(ours.outputs, theirs.outputs),
        gradients=rows(backward, theirs.gradients),
        parameters=sorted(rows(ours.parameters, theirs.parameters), key=lambda row: -row.largest),
        tolerances=tolerances(model),
    )


def tolerances(model: ImageModel) -> tuple[float, float]:
    """How far apart outputs may be, and gradients, for a model of this kind, depth and dtype.

    In float64, a layer with another epsilon or a GELU approximated by tanh is far outside; in float32 it is not. There,
    too, a ReLU's input that is almost zero may fall on the other side, and take an entry of the gradient with it: in a
    full ResNet this happens, and the mean difference tells more than the largest.
    """
    if next(model.parameters()).dtype == np.float64:
        return 1e-12, 1e-11
    factor = (2 if isinstance(model, HybridVisionTransformer) else 1) * (10 if len(model.sections()) > 12 else 1)
    return 1e-5 * factor, 5e-5 * factor
