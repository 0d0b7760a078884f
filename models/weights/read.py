"""L6: files of weights as arrays by name: npz, safetensors, and torch's pickles without running them."""

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from minigrad import Tensor, serialize
from minigrad.backend import plain, to_device

Arrays = dict[str, np.ndarray]

# The best first: averaged weights are those that were evaluated.
_WRAPPERS = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "params_ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
)

# safetensors' dtypes as NumPy's, which has no bfloat16: two bytes without a meaning, until `_array` gives them theirs.
_DTYPES = {"BF16": "V2", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "?"}


def read(weights: str | Path | Mapping[str, Any]) -> Arrays:
    """The arrays by the names they came with, whatever they came in."""
    tree: Any = _read_file(Path(weights)) if isinstance(weights, str | Path) else weights
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"weights are a file with a dict of arrays by name, or such a dict, got {type(tree).__name__}"
            + ("; pass its state_dict()" if hasattr(tree, "state_dict") else "")
        )
    for _ in range(3):  # one within another, as in {"state_dict": {"model": ...}}
        tree = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping) and tree[key]), tree)
    return _as_older_jax({name: _array(name, value) for name, value in tree.items()})


def _read_file(path: Path) -> Any:
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
