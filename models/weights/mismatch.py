"""L6: mismatches between a file and a model: the error with a table of them, and their likely fixes."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from minigrad import Tensor
from minigrad.nn import Module, init
from models.model import ImageModel
from models.registry import create_model, registered
from models.vit import VisionTransformer
from models.weights.layouts import LAYOUTS, Shape
from models.weights.plan import Entry, Plan


class Misfit(NamedTuple):
    """A row of the table."""

    kind: str  # "missing", "unexpected", "shape mismatch", the array's dtype, or "not N heads"
    name_in_file: str  # "-": missing
    name_in_model: str  # of an unexpected entry, the translated name
    shape_in_file: Shape | None
    shape_in_model: Shape | None


class MisfitError(ValueError):
    """The weights do not fit the model; the message is a table of all mismatches.

    Attributes:
        misfits: the rows of the table.
        lookalike: the name of the registered model with overlap above 0.9 and above this model's; None: no such model.
    """

    def __init__(self, message: str, misfits: list[Misfit], lookalike: str | None) -> None:
        super().__init__(message)
        self.misfits = misfits
        self.lookalike = lookalike

    def in_one_line(self) -> str:
        """The number of mismatches of each kind, the first of each, and the likely fix."""
        kinds: dict[str, list[str]] = {}
        for kind, theirs, ours, there, here in self.misfits:
            shapes = "" if there is None or here is None else f", {there} in the file and {here} in the model"
            kinds.setdefault(kind, []).append(f"{ours if theirs == '-' else theirs}{shapes}")
        counts = ", ".join(f"{len(names)} {kind} ({first_of(names)})" for kind, names in kinds.items())
        if self.lookalike:
            return f"{counts}; its weights look like those of --model {self.lookalike}"
        if all(ours.endswith(("pos_embed", "bias_table")) for _, _, ours, _, _ in self.misfits):
            return f"{counts}; positions are resampled from a square grid or window only"
        return f"{counts}; the file must have the same architecture, patch size and window size"


def first_of(names: Iterable[str]) -> str:
    """The first name, and an ellipsis if there are others."""
    first, *others = names
    return f"{first}, ..." if others else first


def find_misfits(plan: Plan, model: ImageModel) -> list[Misfit]:
    """The entries that do not fit, in the file's order, then the missing parameters."""
    own, modules = model.state_dict(), dict(model.named_modules())
    misfits = []
    for entry in plan.entries:
        shape, place = entry.array.shape, entry.place
        if entry.unexpected:
            misfits.append(Misfit("unexpected", entry.name, place.name, shape, None))
        elif kind := _mismatch(entry, own[place.name], modules):
            misfits.append(Misfit(kind, entry.name, place.name, shape, place.shape(own[place.name].shape)))
    for place in plan.missing:
        part = "" if place.part is None else f" [{place.part}]"
        misfits.append(Misfit("missing", "-", place.name + part, None, place.shape(own[place.name].shape)))
    return misfits


def _mismatch(entry: Entry, parameter: Tensor, modules: Mapping[str, Module]) -> str | None:
    """The kind of mismatch of an array with its parameter: shape, dtype or number of heads; None: the array fits."""
    place, array = entry.place, entry.array
    if not place.fits(array.shape, parameter.shape):
        return "shape mismatch"
    if parameter.dtype.kind == "f" and array.dtype.kind != "f":
        return str(array.dtype)
    if ".attn." in place.name and array.ndim > parameter.ndim:  # JAX: the heads are an axis
        shape = tuple(array.shape[axis] for axis in place.axes or range(array.ndim))
        attn: Any = modules[place.name.rpartition(".attn.")[0] + ".attn"]
        if shape[".attn.proj." in place.name] != attn.num_heads:
            return f"not {attn.num_heads} heads"
    return None


def misfit_error(misfits: list[Misfit], plan: Plan, model: ImageModel, resize: bool) -> MisfitError:
    """The error for these misfits of a plan, with their likely fixes."""
    lookalike = _similar_model(plan, model)
    return MisfitError(_report(misfits, plan, model, resize, lookalike), misfits, lookalike)


def _report(misfits: list[Misfit], plan: Plan, model: ImageModel, resize: bool, lookalike: str | None) -> str:
    if not plan.entries:
        return "there are no weights to load: the file has none, or only a classifier, which head=False ignores"
    if all(entry.unexpected for entry in plan.entries):
        names = [entry.name for entry in plan.entries]
        examples = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        layouts = "\n  ".join(layout.name for layout in LAYOUTS)
        return f"none of the {len(names)} names ({examples}) is known. The naming schemes known are\n  {layouts}"
    rows: list[tuple[str, ...]] = [("", "in the file", "in the model", "shape in the file", "shape in the model")]
    for kind in dict.fromkeys(misfit.kind for misfit in misfits):
        of_kind = [misfit for misfit in misfits if misfit.kind == kind]
        for _, in_file, in_model, *shapes in of_kind[:_ROWS]:
            row = (in_file, "-" if shapes[1] is None else in_model, *("-" if x is None else str(x) for x in shapes))
            rows.append((kind, *row))
        if len(of_kind) > _ROWS:
            rows.append((kind, f"and {len(of_kind) - _ROWS} more", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [
        f"these weights (with the names of {plan.layout.name}) do not fit this {type(model).__name__}, "
        "and none was loaded:",
        *(f"  {line}" for line in table),
        *_likely_fixes(misfits, plan.head, model, resize, lookalike),
    ]
    return "\n".join(lines)


_ROWS = 10  # shown of each kind


def _likely_fixes(
    misfits: list[Misfit], head: tuple[str, ...], model: ImageModel, resize: bool, lookalike: str | None
) -> list[str]:
    """A sentence for each likely cause of the misfits."""
    *classifiers, pre_logits = head
    in_classifier, in_pre_logits, in_positions, others = [], [], [], []
    for misfit in misfits:
        name = misfit.name_in_model
        if name.startswith(tuple(classifiers)):
            in_classifier.append(misfit)
        elif name.startswith(pre_logits) and isinstance(model, VisionTransformer):
            in_pre_logits.append(misfit)
        elif misfit.kind == "shape mismatch" and name.endswith(("pos_embed", "relative_position_bias_table")):
            in_positions.append(misfit)
        else:
            others.append(misfit)
    if others and lookalike:
        return [f"The weights look like weights of create_model({lookalike!r}) without further arguments."]
    fixes = []
    if in_classifier:
        classes = _bias_size(in_classifier)
        matching = f"; create_model(..., num_classes={classes}) matches the file" if classes is not None else ""
        fixes.append(f"The classifiers differ: head=False keeps the model's{matching}.")
    if in_pre_logits:
        fixes.append(
            "The pre-logits layers differ: head=False keeps the model's head; "
            f"create_model(..., representation_size={_bias_size(in_pre_logits)}) matches the file."
        )
    if in_positions and not resize:
        fixes.append("The image, patch or window size differs: resize=True resamples positions.")
    elif in_positions:
        fixes.append("Positions can be resampled only from a square grid or window with the same number of channels.")
    if any(misfit.kind.endswith("heads") for misfit in others):
        fixes.append("The number of attention heads differs: create_model(..., num_heads=...) sets it.")
    elif any(misfit.kind not in ("missing", "unexpected", "shape mismatch") for misfit in others):
        fixes.append("Weights must be floating-point: dequantize quantized weights first.")
    if others:
        fixes.append("Was the model created with the same arguments as the file's model?")
    return fixes


def _bias_size(misfits: list[Misfit]) -> int | None:
    """The length of the file's bias among these misfits of a linear layer; None: the file has no bias."""
    return next((x.shape_in_file[0] for x in misfits if x.shape_in_file and len(x.shape_in_file) == 1), None)


def _similar_model(plan: Plan, model: ImageModel) -> str | None:
    """The registered model with the largest overlap with the file, if above 0.9 and above `model`'s overlap."""
    by_layout = [[(layout.place(entry.name), entry.array.shape) for entry in plan.entries] for layout in LAYOUTS]

    def overlap(shapes: Mapping[str, Shape]) -> float:
        """Intersection over union of the file's arrays and a model's parameters, in the layout that fits best."""
        best = 0.0
        for entries in by_layout:
            fitting = [
                place.name for place, shape in entries if place.name in shapes and place.fits(shape, shapes[place.name])
            ]
            best = max(best, len(set(fitting)) / (len(shapes) + len(entries) - len(fitting)))
        return best

    name, shapes = max(_registered_shapes().items(), key=lambda item: overlap(item[1]))
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return name if overlap(shapes) > max(0.9, overlap(own)) else None


@cache
def _registered_shapes() -> dict[str, dict[str, Shape]]:
    """The parameter shapes of all registered models, in the order of registration: ViT before DeiT, its equal."""
    with init.meta_init():
        return {
            name: {key: tensor.shape for key, tensor in create_model(name).state_dict().items()}
            for name in registered()
        }
