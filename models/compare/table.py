"""L6: a comparison as text."""

from collections.abc import Sequence

from models.compare.differences import Comparison, Row
from models.compare.trace import landmarks, within
from models.model import ImageModel

WORST = 5  # parameters that are shown


def table(comparison: Comparison, model: ImageModel) -> str:
    """Activations in the order of the forward, gradients in that of the backward, and the worst parameters.

    A line for each block and each layer between them; where a block holds the first layer that is out of tolerance,
    its inside too.
    """
    value, gradient = comparison.tolerances
    worst = comparison.parameters[:WORST]
    return "\n\n".join(
        [
            _section("activations, forward", comparison.outputs, value, model),
            _section("their gradients, backward", comparison.gradients, gradient, model),
            _lines(f"gradients of {len(comparison.parameters)} parameters, the worst", worst, gradient),
        ]
    )


def verdict(comparison: Comparison) -> str:
    """In a sentence, whether all agrees, and where to look if not."""
    wrong = comparison.out_of_tolerance()
    total = len(comparison.outputs) + len(comparison.gradients) + len(comparison.parameters)
    if not wrong:
        return f"all {total} arrays agree"
    first, count = wrong[0], f"{len(wrong)} of {total} arrays are out of tolerance"
    if first in comparison.outputs:
        return f"{count}; in the forward, the first is what {first.name} returns"
    if first in comparison.gradients:
        return f"{count}, none of them in the forward; the first is the gradient that comes back to {first.name}"
    return f"{count}, all of them gradients of parameters; the worst is that of {first.name}"


def _section(title: str, rows: Sequence[Row], tolerance: float, model: ImageModel) -> str:
    names = [row.name for row in rows]
    shown = landmarks(model, names)
    mark = next((row.name for row in rows if not row.within(tolerance)), None)
    if mark is not None:
        around = [name for name in shown if within(mark, name)]
        shown += [name for name in names if any(within(name, other) for other in around)]
    return _lines(title, [row for row in rows if row.name in shown], tolerance, mark)


def _lines(title: str, rows: Sequence[Row], tolerance: float, mark: str | None = None) -> str:
    lines = [f"{f'{title} (tolerance {tolerance:.0e})':64}   largest      mean"]
    for row in rows:
        out = "" if row.within(tolerance) else "   <-- first out of tolerance" if row.name == mark else "   out"
        lines.append(f"  {row.name:62} {row.largest:9.1e} {row.mean:9.1e}{out}")
    return "\n".join(lines)
