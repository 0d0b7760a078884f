"""L6: print a comparison as a table."""

from collections.abc import Sequence

from models.compare.differences import Comparison, Row
from models.compare.trace import is_submodule, outer_layers
from models.model import ImageModel

MAX_PARAMETERS = 5  # shown, those with the largest differences


def table(comparison: Comparison, model: ImageModel) -> str:
    """Activations in forward order, gradients in backward order, and the parameters with the largest differences.

    The table has a line for each block, each layer outside blocks, and each layer of the first block out of tolerance.
    """
    value, gradient = comparison.tolerances
    worst = comparison.parameters[:MAX_PARAMETERS]
    return "\n\n".join(
        [
            _section("activations, forward", comparison.outputs, value, model),
            _section("gradients of activations, backward", comparison.gradients, gradient, model),
            _lines(f"gradients of {len(comparison.parameters)} parameters, worst first", worst, gradient),
        ]
    )


def verdict(comparison: Comparison) -> str:
    """A sentence: all arrays agree; or the number of arrays out of tolerance, and the first of these arrays."""
    wrong = comparison.out_of_tolerance()
    total = len(comparison.outputs) + len(comparison.gradients) + len(comparison.parameters)
    if not wrong:
        return f"all {total} arrays agree"
    first, count = wrong[0], f"{len(wrong)} of {total} arrays are out of tolerance"
    if first in comparison.outputs:
        return f"{count}; the first in forward order is the output of {first.name}"
    if first in comparison.gradients:
        return f"{count}, none in the forward; the first in backward order is the gradient of {first.name}"
    return f"{count}, all of them gradients of parameters; the largest difference is in {first.name}"


def _section(title: str, rows: Sequence[Row], tolerance: float, model: ImageModel) -> str:
    names = [row.name for row in rows]
    shown = outer_layers(model, names)
    first = next((row.name for row in rows if not row.within(tolerance)), None)
    if first is not None:
        opened = [name for name in shown if is_submodule(first, name)]
        shown += [name for name in names if any(is_submodule(name, block) for block in opened)]
    return _lines(title, [row for row in rows if row.name in shown], tolerance, first)


def _lines(title: str, rows: Sequence[Row], tolerance: float, first: str | None = None) -> str:
    lines = [f"{f'{title} (tolerance {tolerance:.0e})':64}   largest      mean"]
    for row in rows:
        out = "" if row.within(tolerance) else "   <-- first out of tolerance" if row.name == first else "   out"
        lines.append(f"  {row.name:62} {row.largest:9.1e} {row.mean:9.1e}{out}")
    return "\n".join(lines)
