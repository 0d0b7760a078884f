"""L6: weights from elsewhere: what other frameworks and repositories have trained, loaded into the models here.

A file is read, its names and shapes are turned into ours (`layouts.py`), and all is compared with the model before
any of it is loaded.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from math import isqrt, prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from minigrad import Tensor, serialize
from minigrad.backend import plain, to_device
from minigrad.nn import init
from minigrad.ops.checks import sides
from models.model import ImageModel, Size
from models.registry import create_model, list_models
from models.swin import SwinTransformer, resample_relative_position_bias_table
from models.vit import VisionTransformer, resample_pos_embed
from models.weights.layouts import LAYOUTS, Layout, Place, Shape, layout_of, places, to_canonical

Arrays = dict[str, np.ndarray]


class Loaded(NamedTuple):
    """What came of it."""

    head: bool  # whether the classifier was loaded too
    classes: int | None  # of the classifier in the file; None: there is none with a bias
    resized: list[str]  # the parameters of the model whose positions were resampled


class MisfitError(ValueError):
    """Weights that are not those of the model; the message is a table of all that differs."""

    def __init__(self, message: str, misfits: "list[Misfit]", lookalike: str | None) -> None:
        super().__init__(message)
        self.misfits = misfits
        self.lookalike = lookalike  # the named model that they would fit


def load_weights(
    model: ImageModel, weights: str | Path | Mapping[str, Any], *, head: bool | None = True, resize: bool = False
) -> Loaded:
    """Load weights in the names of timm, torchvision, Microsoft's Swin, Facebook's ConvNeXt, Hugging Face's
    transformers, Google's JAX code, or minigrad. They take the model's dtype, and go to its device.

    Args:
        model: a model of the same architecture.
        weights: a `.safetensors` or `.npz` file; a file of `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`, or
            without a suffix), for which torch must be installed; or a dict of arrays, Tensors or torch tensors. What
            wraps them, such as `{"model": ...}`, is taken off; where there are averaged weights (EMA) beside the
            others, these are loaded. Other objects in the file are passed over, and none of their code is run.
        head: whether to load the classifier, and the pre-logits layer before it where there is one. Otherwise the
            model keeps its own, and the file's are passed over. None: if they fit.
        resize: whether to resample position embeddings and tables of relative positions that were made for another
            size of image or window. A checkpoint of `python -m train` names its model, so that its grid and windows
            are known. In other files they are not, and are taken to be square: without `resize`, the positions of an
            oblong grid are loaded unchanged.

    Returns:
        What was loaded: whether the classifier was, of how many classes the file's is, and what was resampled.

    Raises:
        MisfitError: the weights do not fit the model; the message shows where, and what may help. The model is as it
            was.
        ValueError: the file is damaged, or holds anything but arrays.
        FileNotFoundError: there is no such file.
        RuntimeError: the library that reads such a file is not installed.
    """
    arrays = _arrays(weights)
    layout, own = layout_of(arrays, model), model.state_dict()
    ours = {name: layout.place(name).name for name in arrays}
    arrays = {name: x for name, x in arrays.items() if ours[name] in own or not _COMPUTED.search(ours[name])}
    classes = next((x.size for name, x in arrays.items() if ours[name] == f"{_head(model)[0]}bias"), None)
    found, resized, origin = places(arrays, model), [], _origin(weights) if resize else None
    for name, place in found.items():
        if resize and place is not None:
            array = _resized(arrays[name], place.name, own[place.name].shape, model, origin)
            resized += [] if array is arrays[name] else [place.name]
            arrays[name] = array
    misfits = _misfits(arrays, found, layout, model)
    if head is None:
        head = not any(misfit.ours.startswith(_head(model)) for misfit in misfits)
    if not head:
        misfits = [misfit for misfit in misfits if not misfit.ours.startswith(_head(model))]
        arrays = {name: x for name, x in arrays.items() if not ours[name].startswith(_head(model))}
    if misfits:
        lookalike = _lookalike(arrays, model)
        raise MisfitError(_report(misfits, arrays, layout, model, resize, lookalike), misfits, lookalike)
    model.load_state_dict(to_canonical(arrays, model), strict=False)
    return Loaded(head, classes, resized)


# What models compute for themselves, or do without.
_COMPUTED = re.compile(r"(^|\.)(relative_position_index|attn_mask|num_batches_tracked)$")


def _head(model: ImageModel) -> tuple[str, str]:
    """What the names of the head's parameters begin with: those of the classifier, and of the layer before it."""
    return next(f"{name}." for name, module in model.named_modules() if module is model.head), "pre_logits."


def _resized(array: np.ndarray, name: str, shape: Shape, model: ImageModel, origin: ImageModel | None) -> np.ndarray:
    """The array for a parameter of this name and shape: resampled, if it is of positions and was made for others, those
    of the model `origin`; None: for a square grid or window."""
    if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
        return array
    if name == "pos_embed" and isinstance(model, VisionTransformer):  # (1, 1 + h·w, D)
        side, grid = isqrt(max(array.shape[1] - 1, 0)), model.patch_embed.grid_size
        old = origin.patch_embed.grid_size if isinstance(origin, VisionTransformer) else (side, side)
        if array.shape[:2] == (1, 1 + prod(old)) and grid != old:  # of as many patches, too: 8 x 8, 4 x 16
            return resample_pos_embed(_as_floats(array), old, grid).numpy()
    if name.endswith("relative_position_bias_table"):  # ((2M - 1)², heads)
        side, window = (isqrt(array.shape[0]) + 1) // 2, _window(model, name)
        old = _window(origin, name) if isinstance(origin, SwinTransformer) else window if array.shape == shape else side
        if prod(2 * length - 1 for length in sides(old)) == array.shape[0] and old != window:
            return resample_relative_position_bias_table(_as_floats(array), window, old).numpy()
    return array


def _window(model: ImageModel, name: str) -> Size:
    """The size of the windows that a bias table of this name is for."""
    modules: dict[str, Any] = dict(model.named_modules())
    return modules[name.rpartition(".")[0]].window_size


def _origin(weights: str | Path | Mapping[str, Any]) -> ImageModel | None:
    """The model that a checkpoint of `python -m train` names, without numbers; None: a file of others."""
    try:
        arguments = serialize.load_metadata(weights)["model"]  # type: ignore[arg-type]
        with init.meta_init():
            return create_model(**arguments)
    except Exception:  # whatever it lacks, it is of others
        return None


def _as_floats(array: np.ndarray) -> Tensor:
    return Tensor(array.astype(np.promote_types(array.dtype, np.float32)))


# Reading ------------------------------------------------------------------------------------------------------------

# The best first: averaged weights are those that were evaluated.
_WRAPPERS = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "params_ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
)

# safetensors' dtypes as NumPy's, which has no bfloat16: two bytes without a meaning, until `_array` gives them theirs.
_DTYPES = {"BF16": "V2", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "?"}


def _arrays(weights: str | Path | Mapping[str, Any]) -> Arrays:
    """The arrays by the names they came with, whatever they came in."""
    tree: Any = _read(Path(weights)) if isinstance(weights, str | Path) else weights
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"weights are a file with a dict of arrays by name, or such a dict, got {type(tree).__name__}"
            + ("; pass its state_dict()" if hasattr(tree, "state_dict") else "")
        )
    for _ in range(3):  # one within another, as in {"state_dict": {"model": ...}}
        tree = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping) and tree[key]), tree)
    return _as_older_jax({name: _array(name, value) for name, value in tree.items()})


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return serialize.load(path)[0]
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix in (".pth", ".pt", ".bin", ".ckpt") or path.name.lower().endswith(".pth.tar") or _globals(path):
        return _read_torch(path)
    raise ValueError(
        f"files of weights end in .safetensors, .npz, .pth, .pt, .bin, .ckpt or .pth.tar, got {path.name!r}"
    )


def _read_safetensors(path: Path) -> Arrays:
    try:
        safetensors: Any = import_module("safetensors")
    except ImportError as error:
        raise RuntimeError("a .safetensors file needs its library: pip install safetensors") from error
    try:
        entries = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    for name, entry in entries.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} is stored as {entry['dtype']}; the types known are {', '.join(_DTYPES)}")
    return {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries.items()
    }


def _read_torch(path: Path) -> Any:
    try:
        torch: Any = import_module("torch")
    except ImportError as error:
        raise RuntimeError(
            f"{path.name} is a pickle, which only torch can read without running what is in it: pip install torch; or "
            f"convert it where torch is installed: safetensors.torch.save_file(torch.load({path.name!r}, "
            f"weights_only=True), '{path.stem}.safetensors')"
        ) from error
    strangers = {name for name in _globals(path) if name.partition(".")[0] not in _NEVER_BESIDE_WEIGHTS}
    try:
        inert = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in sorted(strangers)]
        with torch.serialization.safe_globals(inert):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive, or one of anything else, fails in a dozen ways
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which is not loaded as it could run code: "
            f"{_reason(error)}. If you trust its source, write the weights alone where they can be loaded: "
            "torch.save(model.state_dict(), file)"
        ) from error
    if isinstance(loaded, _Inert):
        raise ValueError(
            f"{path} is a whole object of class {type(loaded).__name__}, which is not loaded as it could run code; "
            "write its weights alone: torch.save(model.state_dict(), file)"
        )
    return loaded


class _Inert:
    """What a class or function of a pickle is replaced by, such as the argparse.Namespace of timm's checkpoints: it
    takes any arguments and state, and does nothing. (The names that torch itself knows stay torch's.)"""

    def __new__(cls, *arguments: Any, **keywords: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NEVER_BESIDE_WEIGHTS = {"builtins", "subprocess", "commands"}
"""Modules whose names, such as exec, are in files that are to do harm; torch itself refuses those of os and
sys. (Protocol 2 of pickle, which torch uses, calls subprocess by its name in Python 2, commands.)"""


def _globals(path: Path) -> set[str]:
    """The names of classes and functions in a file of torch.save, read without running it; none, if it is no such
    file: a zip archive with a pickle in it, or, before PyTorch 1.6, five pickles and then the numbers."""
    names: set[str] = set()
    with open(path, "rb") as file, suppress(Exception):  # what is damaged, torch will say
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                pickles: list[IO[bytes]] = [io.BytesIO(archive.read(member))]
        else:
            file.seek(0)
            pickles = [file] * 5
        for pickled in pickles:
            for instruction, argument, _ in pickletools.genops(pickled):
                if instruction.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
    return names


def _reason(error: Exception) -> str:
    """The part of torch's message that says what is wrong, without colours for a terminal and advice to run it."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    if stranger := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text):
        return f"it names {stranger[1]}"
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    return text.partition("\n")[0].rstrip(". ") or type(error).__name__


def _array(name: Any, value: Any) -> np.ndarray:
    """One entry as an array of numbers on the CPU; bfloat16 becomes float32."""
    try:
        value = value.data if isinstance(value, Tensor) else value
        if hasattr(value, "detach"):  # torch's
            value = value.detach().cpu()
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        elif hasattr(value, "__cuda_array_interface__"):
            value = to_device(value, "cpu")
        array = np.asarray(plain(value))
    except Exception as error:  # sparse, quantised, ragged
        raise ValueError(f"{name!r} is no array that NumPy can hold: {error}") from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16: the upper half of a float32
        array = (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if not isinstance(name, str) or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name!r} is no array of numbers by name but {type(value).__name__} of dtype {array.dtype}; "
            "if the weights are inside another dict, pass that one"
        )
    return array


def _as_older_jax(arrays: Arrays) -> Arrays:
    """Newer files of Google's may hold all blocks in one array, with a leading axis for the block, and no position for
    the class token, which is the same as one of zeros."""
    older = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        if "encoderblock" in path and array.ndim:
            for i, block in enumerate(array):
                older[name.replace("encoderblock/", f"encoderblock_{i}/")] = block
        elif leaf == "pos_embedding" and "posembed_input" not in path and array.ndim == 3:
            older[name] = np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)
        else:
            older[name] = array
    return older


# What does not fit --------------------------------------------------------------------------------------------------


class Misfit(NamedTuple):
    """A line of the table."""

    kind: str
    theirs: str  # the name in the file
    ours: str  # and here, or what it would be here
    shape_there: Shape | None
    shape_here: Shape | None


def _misfits(arrays: Arrays, found: Mapping[str, Place | None], layout: Layout, model: ImageModel) -> list[Misfit]:
    own, modules = model.state_dict(), dict(model.named_modules())
    misfits = []
    for name, place in found.items():
        shape = arrays[name].shape
        if place is None:
            misfits.append(Misfit("unexpected", name, layout.place(name).name, shape, None))
            continue
        target = own[place.name]
        if not place.fits(shape, target.shape):
            misfits.append(Misfit("misshapen", name, place.name, shape, place.shape(target.shape)))
        elif target.dtype.kind == "f" and arrays[name].dtype.kind != "f":
            misfits.append(Misfit(f"{arrays[name].dtype}", name, place.name, shape, target.shape))
        elif ".attn." in place.name and len(shape) > target.ndim:  # JAX's: the heads are an axis
            axes = tuple(shape[axis] for axis in place.axes or range(len(shape)))
            attn: Any = modules[place.name.rpartition(".attn.")[0] + ".attn"]
            if axes[".attn.proj." in place.name] != attn.num_heads:
                misfits.append(Misfit(f"not {attn.num_heads} heads", name, place.name, shape, target.shape))
    filled = {(place.name, place.part) for place in found.values() if place is not None}
    for name, tensor in own.items():
        apart = any((name, part) in filled for part in range(3))
        for part in range(3) if apart else [None]:
            if (name, part) not in filled:
                third = "" if part is None else f" [{'qkv'[part]}]"
                misfits.append(Misfit("missing", "-", name + third, None, Place(name, part).shape(tensor.shape)))
    return misfits


def _report(
    misfits: list[Misfit], arrays: Arrays, layout: Layout, model: ImageModel, resize: bool, lookalike: str | None
) -> str:
    if not arrays:
        return "there are no weights to load: none at all, or only a classifier, which head=False passes over"
    unknown = sum(misfit.kind == "unexpected" for misfit in misfits)
    if unknown == len(arrays):
        some = ", ".join(list(arrays)[:3]) + (", ..." if len(arrays) > 3 else "")
        known = "\n  ".join(layout.name for layout in LAYOUTS)
        return f"none of these {len(arrays)} names ({some}) is known here. Weights can have the names of\n  {known}"
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
    return (
        f"these weights (in the names of {layout.name}) do not fit this {type(model).__name__}, and none was loaded:"
        + "".join(f"\n  {line}" for line in table)
        + "".join(f"\n{fix}" for fix in _likely_fixes(misfits, model, resize, lookalike))
    )


_ROWS = 10  # of a kind


def _likely_fixes(misfits: list[Misfit], model: ImageModel, resize: bool, lookalike: str | None) -> list[str]:
    """A sentence for each cause that the misfits may have."""
    classifier, pre_logits = _head(model)
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


def _lookalike(arrays: Arrays, model: ImageModel) -> str | None:
    """The named model that nearly all of these arrays would fit, better than they fit this one."""
    readings = [[(layout.place(name), array.shape) for name, array in arrays.items()] for layout in LAYOUTS]

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
