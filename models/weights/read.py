"""L6: read files of weights into a dict of arrays by name: `.npz`, `.safetensors`, and pickles of `torch.save`.

Loading a pickle can run any code. Here torch's unpickler loads tensors only, and inert placeholders replace all other
objects, so no code of the file runs.
"""

import builtins
import io
import pickle
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from minigrad import Tensor, serialize
from minigrad.backend import plain, to_device

Arrays = dict[str, np.ndarray]

# Keys under which checkpoints hold weights, in order of preference: averaged weights (EMA) first.
_WEIGHT_KEYS = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "params_ema", "teacher"),
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
    "student",
)

# safetensors' dtypes in NumPy. NumPy has no bfloat16: "V2" is two raw bytes, which `_to_array` converts to float32.
_DTYPES = {"BF16": "V2", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "?"}


def read(weights: str | Path | Mapping[str, Any]) -> Arrays:
    """The arrays of a file or a dict, under the names in the file or dict.

    Raises:
        TypeError: the weights are neither a path nor a dict, or the file holds no dict.
        ValueError, FileNotFoundError, RuntimeError: as for `load_weights`.
    """
    tree: Any = _read_file(Path(weights)) if isinstance(weights, str | Path) else weights
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"weights must be a dict of arrays by name, or a file with such a dict, got {type(tree).__name__}"
            + ("; pass its state_dict()" if hasattr(tree, "state_dict") else "")
        )
    for _ in range(3):  # levels of nesting, as in {"state_dict": {"model": ...}}
        tree = next((tree[key] for key in _WEIGHT_KEYS if isinstance(tree.get(key), Mapping) and tree[key]), tree)
    return _add_class_position(_unstack_jax({name: _to_array(name, value) for name, value in tree.items()}))


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
        f"a file of weights must end in .safetensors, .npz, .pth, .pt, .bin, .ckpt or .pth.tar, got {path.name!r}"
    )


def _read_safetensors(path: Path) -> Arrays:
    try:
        safetensors: Any = import_module("safetensors")
    except ImportError as error:
        raise RuntimeError("reading .safetensors files needs safetensors: pip install safetensors") from error
    try:
        entries = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    for name, entry in entries.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} has dtype {entry['dtype']}; supported are {', '.join(_DTYPES)}")
    return {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries.items()
    }


def _read_torch(path: Path) -> Any:
    try:
        torch: Any = import_module("torch")
    except ImportError as error:
        raise RuntimeError(
            f"{path.name} is a pickle, and reading one without running its code needs torch: pip install torch; or "
            f"convert the file where torch is installed: safetensors.torch.save_file(torch.load({path.name!r}, "
            f"weights_only=True), '{path.stem}.safetensors')"
        ) from error
    found = {name: _FILLED.get(cls.filled_as, cls) for name, cls in _globals(path).items() if not _is_refused(name)}
    try:
        with torch.serialization.safe_globals([(cls, name) for name, cls in found.items()]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file or another format
        raise ValueError(
            f"{path} is damaged, or holds objects that could run code and are not loaded: {_reason(error)}. "
            "If you trust the source, save the weights alone where the file can be loaded: "
            "torch.save(model.state_dict(), file)"
        ) from error
    if isinstance(loaded, _Placeholder):
        raise ValueError(
            f"{path} is a pickled object of class {type(loaded).__name__}, which could run code and is not loaded; "
            "save the weights alone: torch.save(model.state_dict(), file)"
        )
    return loaded


class _Placeholder:
    """Replaces a class or function of a pickle, such as the argparse.Namespace in timm's checkpoints: accepts any
    arguments, state and items, and does nothing but record, in its class, which items it has. (torch's own classes are
    not replaced.)"""

    filled_as: type | None = None  # by the pickle: dict: with keys and values; list: with elements; None: neither

    def __new__(cls, *arguments: Any, **keywords: Any) -> "_Placeholder":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        type(self).filled_as = dict

    def append(self, element: Any) -> None:
        type(self).filled_as = list

    def extend(self, elements: Any) -> None:
        type(self).filled_as = list


class _NewDict:
    """Replaces a class derived from dict, such as the yacs.config.CfgNode in checkpoints of Microsoft's Swin: torch's
    unpickler adds items to its own classes only."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return OrderedDict()


class _NewList:
    """Replaces a class derived from list, or collections.deque."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return []


_FILLED: dict[type | None, type] = {dict: _NewDict, list: _NewList}


def _is_refused(name: str) -> bool:
    """True for a function that only a malicious file names: a built-in function such as exec, or one of subprocess. The
    built-in classes are harmless: a defaultdict(list) names list. (torch itself refuses os and sys.)"""
    module, _, attribute = name.partition(".")
    is_class = isinstance(getattr(builtins, attribute, None), type)
    return module in ("subprocess", "commands") or (module in ("builtins", "__builtin__") and not is_class)


class _Scanner(pickle._Unpickler):
    """Reads a pickle with placeholders for all of its classes and functions, so that none of their code runs.

    The unpickler in Python, not in C: for an index of 2³¹ - 1, the C unpickler allocates a table of 16 GB.
    """

    def __init__(self, file: IO[bytes], found: dict[str, type[_Placeholder]]) -> None:
        super().__init__(file)
        self.found = found

    def find_class(self, module: str, name: str) -> type[_Placeholder]:
        """A placeholder. Protocol 2 of pickle, which torch uses, has the names of Python 2, as __builtin__.list, and
        torch's unpickler translates some of them: the placeholder has both names."""
        new_module, new_name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        placeholder = self.found.setdefault(f"{module}.{name}", type(new_name, (_Placeholder,), {}))
        return self.found.setdefault(f"{new_module}.{new_name}", placeholder)

    def persistent_load(self, pid: Any) -> None:
        """A storage of a tensor is not read."""


def _globals(path: Path) -> dict[str, type[_Placeholder]]:
    """Placeholders for the classes and functions in a file of torch.save, by qualified name, which have recorded how
    the pickle fills them; empty for other files. The format: a zip archive with a pickle, or before PyTorch 1.6 five
    pickles, then the data."""
    found: dict[str, type[_Placeholder]] = {}
    with open(path, "rb") as file, suppress(Exception):  # torch.load reports a damaged file
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                pickles: list[IO[bytes]] = [io.BytesIO(archive.read(member))]
        else:
            file.seek(0)
            pickles = [file] * 5
        for pickled in pickles:
            _Scanner(pickled, found).load()
    return found


def _reason(error: Exception) -> str:
    """The cause in torch's message, without terminal colours and the advice to set weights_only=False."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    if refused := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text):
        return f"it names {refused[1]}"
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    return text.partition("\n")[0].rstrip(". ") or type(error).__name__


def _to_array(name: Any, value: Any) -> np.ndarray:
    """An entry as a numeric NumPy array on the CPU; bfloat16 is converted to float32."""
    try:
        value = value.data if isinstance(value, Tensor) else value
        if hasattr(value, "detach"):  # a torch tensor
            value = value.detach().cpu()
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        elif hasattr(value, "__cuda_array_interface__"):
            value = to_device(value, "cpu")
        array = np.asarray(plain(value))
    except Exception as error:  # sparse, quantized, ragged
        raise ValueError(f"{name!r} cannot be converted to a NumPy array: {error}") from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16: the upper half of a float32
        array = (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if not isinstance(name, str) or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name!r} is not a name with a numeric array, got {type(value).__name__} of dtype {array.dtype}; "
            "if the weights are in a nested dict, pass the nested dict"
        )
    return array


def _unstack_jax(arrays: Arrays) -> Arrays:
    """Convert Google's newer format (big_vision) to the older one: split arrays with a leading axis for the blocks, and
    add a position embedding of zeros for the class token, which has none."""
    unstacked = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        if "encoderblock" in path and array.ndim:
            for i, block in enumerate(array):
                unstacked[name.replace("encoderblock/", f"encoderblock_{i}/")] = block
        elif leaf == "pos_embedding" and "posembed_input" not in path and array.ndim == 3:
            unstacked[name] = np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)
        else:
            unstacked[name] = array
    return unstacked


def _add_class_position(arrays: Arrays) -> Arrays:
    """Convert DINOv2 with registers from its authors' and Hugging Face's form to timm's: there the class token has a
    position embedding, but not the registers; here neither has, so the class token's is added to the class token."""
    registers = next((name for name in arrays if name.rpartition(".")[2] == "register_tokens"), "")
    path = registers.removesuffix("register_tokens")
    token = f"{path}cls_token"
    positions = next((name for name in (f"{path}pos_embed", f"{path}position_embeddings") if name in arrays), "")
    if not registers or token not in arrays or not positions or arrays[positions].ndim != 3:
        return arrays
    position, patches = arrays[positions][:, :1], arrays[positions][:, 1:]
    return arrays | {token: arrays[token] + position, positions: patches}
