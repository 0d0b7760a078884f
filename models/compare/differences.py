"""L6: the differences between two runs of a model, layer by layer, and their tolerances."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from models.compare.trace import Trace, block_containers, channels, to_rows
from models.hybrid import HybridVisionTransformer
from models.model import ImageModel


@dataclass(frozen=True)
class Row:
    """The largest and mean difference of two arrays, relative to the largest absolute value of the reference."""

    name: str
    largest: float
    mean: float

    def within(self, tolerance: float) -> bool:
        """Whether the largest difference is at most the tolerance."""
        return self.largest <= tolerance


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs of a model, for the arrays that both have.

    Attributes:
        outputs: the modules' outputs in forward order, without containers of blocks; the logits last.
        gradients: the gradients of these outputs in backward order; the gradient of the images last.
        parameters: the gradients of the parameters, in descending order of the difference.
        tolerances: the tolerance of outputs, and the tolerance of gradients.
    """

    outputs: list[Row]
    gradients: list[Row]
    parameters: list[Row]
    tolerances: tuple[float, float]

    def out_of_tolerance(self) -> list[Row]:
        """The rows above their tolerance, in the order of computation."""
        value, gradient = self.tolerances
        wrong_outputs = [row for row in self.outputs if not row.within(value)]
        return wrong_outputs + [row for row in [*self.gradients, *self.parameters] if not row.within(gradient)]


Distance = Callable[[str, np.ndarray, Any], np.ndarray]


def relative(name: str, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Differences relative to the largest absolute value of `theirs`; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return np.array([np.inf])
    return abs(ours - theirs) / (np.max(abs(theirs), initial=0) or 1)


def compare(ours: Trace, theirs: Any, model: ImageModel, distance: Distance = relative) -> Comparison:
    """Compare two runs.

    Libraries differ in the layout of feature maps, channels first or last. Outputs are compared as (positions,
    channels); if the shape allows both layouts, the layout with the smaller difference is used.

    Args:
        ours: a run of `model`.
        theirs: a Trace, or an object with the same three dicts, with values that `distance` accepts.
        model: the model.
        distance: maps (name, our array, their value) to relative differences.
    """
    width, skipped = channels(model), block_containers(model)

    def rows(mine: Mapping[str, np.ndarray], others: Mapping[str, Any]) -> list[Row]:
        found = []
        for name in mine:
            if name not in others or name in skipped:
                continue
            x, y = [mine[name]], [others[name]]
            if name in width:
                x = to_rows(mine[name], width[name])
                y = to_rows(others[name], width[name]) if isinstance(others[name], np.ndarray) else y
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
    """The tolerances of outputs and of gradients, for a model of this class, depth and dtype.

    In float64, another epsilon or GELU approximated by tanh exceeds the tolerance by far; in float32 neither does. In
    float32, rounding can also flip the sign of a ReLU input near zero and so change an element of the gradient. In a
    full ResNet this happens, and the mean difference is more informative than the largest.
    """
    if next(model.parameters()).dtype == np.float64:
        return 1e-12, 1e-11
    factor = (2 if isinstance(model, HybridVisionTransformer) else 1) * (10 if len(model.sections()) > 12 else 1)
    return 1e-5 * factor, 5e-5 * factor
