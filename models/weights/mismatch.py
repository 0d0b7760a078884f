"""L6: what does not fit between a file and a model: the table of mismatches, and their likely causes."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from minigrad import Tensor
from minigrad.nn import Module, init
from models.model import ImageModel
from models.registry import create_model, list_models
from models.vit import VisionTransformer
from models.weights.layouts import LAYOUTS, Shape
from models.weights.plan import Entry, Plan


class Misfit(NamedTuple):
    """A row of the table."""

    kind: str  # missing, unexpected, misshapen, a dtype, or "not N heads"
    theirs: str  # the name in the file; "-": missing
    ours: str  # the name in the model
    shape_there: Shape | None
    shape_here: Shape | None


class MisfitError(ValueError):
    """The weights do not fit the model; the message is a table of all mismatches.

    Attributes:
        misfits: the rows of the table.
        lookalike: the registered model that the weights fit; None: there is none.
    """

    def __init__(self, message: str, misfits: list[Misfit], lookalike: str | None) -> None:
        super().__init__(message)
        self.misfits = misfits
        self.lookalike = lookalike


def find_misfits(plan: Plan, model: ImageModel) -> list[Misfit]:
    """The entries that do not fit, in the order of the file, then the missing parameters."""
    own, modules = model.state_dict(), dict(model.named_modules())
    misfits = []
    for entry in plan.entries:
        shape, place = entry.array.shape, entry.place
        if entry.unexpected:
            misfits.append(Misfit("unexpected", entry.name, place.name, shape, None))
        elif kind := _mismatch(entry, own[place.name], modules):
            here = own[place.name].shape
            expected = place.shape(here) if kind == "misshapen" else here
            misfits.append(Misfit(kind, entry.name, place.name, shape, expected))
    for place in plan.missing:
        third = "" if place.part is None else f" [{'qkv'[place.part]}]"
        misfits.append(Misfit("missing", "-", place.name + third, None, place.shape(own[place.name].shape)))
    return misfits


def _mismatch(entry: Entry, parameter: Tensor, modules: Mapping[str, Module]) -> str | None:
    """Why the array cannot become the parameter: its shape, dtype or number of heads; None: it can."""
    place, array = entry.place, entry.array
    if not place.fits(array.shape, parameter.shape):
        return "misshapen"
    if parameter.dtype.kind == "f" and array.dtype.kind != "f":
        return str(array.dtype)
    if ".attn." in place.name and array.ndim > parameter.ndim:  # JAX's: the heads are an axis
        shape = tuple(array.shape[axis] for axis in place.axes or range(array.ndim))
        attn: Any = modules[place.name.rpartition(".attn.")[0] + ".attn"]
        if shape[".attn.proj." in place.name] != attn.num_heads:
            return f"not {attn.num_heads} heads"
    return None


def misfit_error(misfits: list[Misfit], plan: Plan, model: ImageModel, resize: bool) -> MisfitError:
    """The error that shows these misfits of a plan and their likely causes."""
    lookalike = _similar_model(plan, model)
    return MisfitError(_report(misfits, plan, model, resize, lookalike), misfits, lookalike)


def _report(misfits: list[Misfit], plan: Plan, model: ImageModel, resize: bool, lookalike: str | None) -> str:
    if not plan.entries:
        return "there are no weights to load: none at all, or only a classifier, which head=False passes over"
    if all(entry.unexpected for entry in plan.entries):
        names = [entry.name for entry in plan.entries]
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        known = "\n  ".join(layout.name for layout in LAYOUTS)
        return f"none of these {len(names)} names ({some}) is known here. Weights can have the names of\n  {known}"
    rows: list[tuple[str, ...]] = [("", "in the file", "in the model", "shape in the file", "shape in the model")]
    for kind in dict.fromkeys(misfit.kind for misfit in misfits):
        alike = [misfit for misfit in misfits if misfit.kind == kind]
        for _, theirs, ours, there, here in alike[:_ROWS]:
            shapes = ["-" if shape is None else str(shape) for shape in (there, here)]
            rows.append((kind, theirs, "-" if here is None else ours, *shapes))
        if len(alike) > _ROWS:
            rows.append((kind, f"and {len(alike) - _ROWS} more", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [
        f"these weights (in the names of {plan.layout.name}) do not fit this {type(model).__name__}, "
        "and none was loaded:",
        *(f"  {line}" for line in table),
        *_likely_fixes(misfits, plan.head, model, resize, lookalike),
    ]
    return "\n".join(lines)


_ROWS = 10  # of a kind


def _likely_fixes(
    misfits: list[Misfit], head: tuple[str, str], model: ImageModel, resize: bool, lookalike: str | None
) -> list[str]:
    """A sentence for each cause that the misfits may have."""
    classifier, pre_logits = head
    heads, layers, positions, others = [], [], [], []
    for misfit in misfits:
        if misfit.ours.startswith(classifier):
            heads.append(misfit)
        elif misfit.ours.startswith(pre_logits) and isinstance(model, VisionTransformer):
            layers.append(misfit)
        elif misfit.kind == "misshapen" and misfit.ours.endswith(("pos_embed", "relative_position_bias_table")):
            positions.append(misfit)
        else:
            others.append(misfit)
    if others and lookalike:
        return [f"They look like those of create_model({lookalike!r}), without other arguments."]
    fixes = []
    if heads:
        classes = [misfit.shape_there[0] for misfit in heads if misfit.shape_there and len(misfit.shape_there) == 1]
        alike = f"; create_model(..., num_classes={classes[0]}) makes one like the file's" if classes else ""
        fixes.append(f"The classifiers differ: head=False keeps the model's{alike}.")
    if layers:
        sizes = [misfit.shape_there[0] for misfit in layers if misfit.shape_there and len(misfit.shape_there) == 1]
        alike = f"create_model(..., representation_size={sizes[0] if sizes else None}) makes one like the file's"
        fixes.append(f"The pre-logits layers differ: head=False keeps the model's, or that it has none; {alike}.")
    if positions and not resize:
        fixes.append("The positions are those of another size of image or window: resize=True resamples them.")
    elif positions:
        fixes.append("Positions are resampled from a square grid or window only, and their channels must be the same.")
    if any(misfit.kind.endswith("heads") for misfit in others):
        fixes.append("The heads of attention differ: create_model(..., num_heads=...) sets them.")
    elif any(misfit.kind not in ("missing", "unexpected", "misshapen") for misfit in others):
        fixes.append("Weights are floating-point numbers: where they were quantised, undo it first.")
    if others:
        fixes.append("Was the model created with the same arguments as theirs?")
    return fixes


def _similar_model(plan: Plan, model: ImageModel) -> str | None:
    """The registered model that nearly all of these arrays would fit, better than they fit this one."""
    readings = [[(layout.place(entry.name), entry.array.shape) for entry in plan.entries] for layout in LAYOUTS]

    def likeness(shapes: Mapping[str, Shape]) -> float:
        """What fits, over what there is on either side; in the best of the layouts."""
        most = 0.0
        for entries in readings:
            fitting = [
                place.name for place, shape in entries if place.name in shapes and place.fits(shape, shapes[place.name])
            ]
            most = max(most, len(set(fitting)) / (len(shapes) + len(entries) - len(fitting)))
        return most

    name, shapes = max(_named_shapes().items(), key=lambda item: likeness(item[1]))
    this = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return name if likeness(shapes) > max(0.9, likeness(this)) else None


@cache
def _named_shapes() -> dict[str, dict[str, Shape]]:
    """The shapes of all models that have a name."""
    with init.meta_init():
        return {
            name: {key: tensor.shape for key, tensor in create_model(name).state_dict().items()}
            for name in list_models()
        }
