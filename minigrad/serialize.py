"""L5: arrays in files: `.npz`, NumPy's format, and `.safetensors`, for exchange with other frameworks.

Loading runs no code: pickle is never used, so `save` and `load` refuse arrays of Python objects. A file is written
under a temporary name and renamed when complete, so after a crash the previous file is still there.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import Array, plain, to_device
from minigrad.backend.dtypes import as_dtype
from minigrad.backend.meta import MetaArray

_METADATA = "__metadata__"


def save(path: str | Path, arrays: Mapping[str, Tensor | Array], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays, and metadata (JSON values), to a `.npz` or `.safetensors` file.

    Raises:
        ValueError: `path` has another suffix.
        TypeError: an array contains Python objects, or is a meta array, without values.
        OSError: the disk is full, or the folder is not writable. An existing file at `path` is not changed.
    """
    path, kind = Path(path), _kind(Path(path))
    on_cpu = {}
    for name, x in arrays.items():
        x = x.data if isinstance(x, Tensor) else x
        if isinstance(x, MetaArray):
            raise TypeError(f"cannot save {name!r}: a meta array, as created under meta_init(), has no values")
        on_cpu[name] = np.asarray(to_device(plain(x), "cpu"), order="C")
        if on_cpu[name].dtype.hasobject:
            raise TypeError(f"cannot save {name!r}: the array contains Python objects, which only pickle could store")
    json_text = json.dumps(dict(metadata or {}))
    with replacing(path) as file:
        if kind == "npz":
            _write_npz(file, on_cpu | {_METADATA: np.frombuffer(json_text.encode(), np.uint8)})
        else:
            file.write(_safetensors().numpy.save(on_cpu, {"minigrad": json_text}))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to, which replaces `path` atomically, flushed to disk, at the end of the block. If the
    block raises, or the process is killed, `path` is not changed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the renaming of files in `folder` to disk, if the system supports fsync of folders."""
    with suppress(OSError):  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of a file.

    NumPy's format does not support bfloat16: minigrad, JAX and others store bfloat16 with dtype `V2`, raw data of two
    bytes. So arrays of dtype `V2` in a `.npz` are loaded as bfloat16 if ml_dtypes is installed, else as `V2`.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is damaged, has another format, or contains Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    kind = _kind(path)
    reader = _safetensors() if kind == "safetensors" else None
    try:
        if reader is None:
            with _open_npz(path) as file:
                arrays = {name: file[name] for name in file.files}
            invalid = [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]
            if invalid:
                raise ValueError(f"{invalid[0]} is not an array")
            json_text = arrays.pop(_METADATA, np.frombuffer(b"{}", np.uint8)).tobytes().decode()
        else:
            with reader.safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                json_text = (file.metadata() or {}).get("minigrad", "{}")
        metadata = json.loads(json_text)
    except Exception as error:  # a damaged file makes the readers raise many types of errors
        raise ValueError(f"{path} is not a complete {kind} file of arrays: {error}") from error
    for name, x in arrays.items():
        if x.dtype == np.dtype("V2"):
            with suppress(RuntimeError):
                arrays[name] = x.view(as_dtype("bfloat16"))
    return arrays, metadata


def load_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a file, without reading the arrays.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is damaged, or has another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    kind = _kind(path)
    reader = _safetensors() if kind == "safetensors" else None
    try:
        if reader is not None:
            with reader.safe_open(path, framework="numpy") as file:
                return json.loads((file.metadata() or {}).get("minigrad", "{}"))
        with _open_npz(path) as file:
            return json.loads(file[_METADATA].tobytes().decode()) if _METADATA in file.files else {}
    except Exception as error:  # as in `load`
        raise ValueError(f"{path} is not a complete {kind} file of arrays: {error}") from error


@contextmanager
def _open_npz(path: Path) -> Iterator[Any]:
    """The arrays of a `.npz` file by name. `numpy.load` would take any other file for a pickle, and recommend to load
    the pickle unsafely."""
    if not zipfile.is_zipfile(path):
        raise ValueError("not a zip archive, or a truncated one")
    with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
        yield file


def _write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """As `numpy.savez`, which cannot save arrays named `file` or `allow_pickle`."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, x, allow_pickle=False)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"the file name must end in .npz or .safetensors, got {path.name!r}")
    return suffix[1:]


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise RuntimeError(
            "a .safetensors file needs its library: pip install safetensors; a .npz file needs none"
        ) from error
    return safetensors
