"""L5: `minigrad.save` and `minigrad.load`: nested state in one file, in the place of torch.save and torch.load.

A file is `.npz` or `.safetensors`: never pickle, so that loading runs no code. Tensors are stored under their paths,
"model/fc.weight"; the structure around them, as JSON, in the metadata of the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import serialize
from minigrad._tensor import Tensor

_STRUCTURE = "structure"
_ALTERNATIVE = "use a name that ends in .npz or .safetensors"


def save(obj: Any, f: str | Path) -> None:
    """Write Tensors, arrays, numbers, strings and None in nested dicts, lists and tuples to a file, such as

        minigrad.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, "run.npz")

    Raises:
        ValueError: the name ends in .pt or .pth, the names of pickle files, or in another suffix than those above.
        TypeError: an object of another type, such as a Module: save its `state_dict()`.
    """
    _check_name(f)
    arrays: dict[str, Any] = {}
    structure = _encode(obj, "", arrays)
    serialize.save(f, arrays, {_STRUCTURE: structure})


def load(f: str | Path, map_location: str | None = None, weights_only: bool = True) -> Any:
    """The object in a file that `save` wrote; for another file of arrays, a dict of Tensors by name.

    Args:
        map_location: the device of the Tensors; by default the CPU.
        weights_only: no effect: a file never contains code.
    """
    _check_name(f)
    arrays, metadata = serialize.load(f)
    if _STRUCTURE not in metadata:
        return {name: Tensor(x, device=map_location) for name, x in arrays.items()}
    return _decode(metadata[_STRUCTURE], arrays, map_location)


def _check_name(f: str | Path) -> None:
    if not isinstance(f, str | Path):
        raise TypeError(f"save and load take the name of a file, got {type(f).__name__}")
    if Path(f).suffix.lower() in (".pt", ".pth"):
        raise ValueError(
            f"{Path(f).name!r}: files named .pt and .pth are pickle files, which can run code: {_ALTERNATIVE}. "
            "(`models.load_weights` reads the weights of a .pth file.)"
        )


def _encode(x: Any, path: str, arrays: dict[str, Any]) -> Any:
    """The structure of x as JSON values; its Tensors and arrays are added to `arrays`."""
    if isinstance(x, Tensor | np.ndarray):
        name = path or "value"
        if name in arrays:
            raise ValueError(f"save: two arrays have the path {name!r}: rename a key that contains '/'")
        arrays[name] = x
        return {"tensor" if isinstance(x, Tensor) else "array": name}
    if isinstance(x, np.generic):
        x = x.item()
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, Mapping):
        if wrong := [key for key in x if not isinstance(key, str | int)]:
            raise TypeError(f"save: keys must be strings or integers, got {wrong[0]!r} in {path or 'the dict'!r}")
        return {
            "dict": [[key, _encode(value, f"{path}/{key}" if path else str(key), arrays)] for key, value in x.items()]
        }
    if isinstance(x, list | tuple):
        values = [_encode(value, f"{path}/{i}" if path else str(i), arrays) for i, value in enumerate(x)]
        return {"tuple": values} if isinstance(x, tuple) else values
    hint = "save its state_dict()" if hasattr(x, "state_dict") else "convert it to Tensors, numbers and strings"
    raise TypeError(f"save: cannot store {type(x).__name__}{f' at {path!r}' if path else ''}: {hint}")


def _decode(x: Any, arrays: Mapping[str, np.ndarray], device: str | None) -> Any:
    if isinstance(x, list):
        return [_decode(value, arrays, device) for value in x]
    if not isinstance(x, dict):
        return x
    ((kind, content),) = x.items()
    if kind == "tensor":
        return Tensor(arrays[content], device=device)
    if kind == "array":
        return arrays[content]
    if kind == "tuple":
        return tuple(_decode(value, arrays, device) for value in content)
    return {key: _decode(value, arrays, device) for key, value in content}
