"""L5: arrays in files: `.npz`, NumPy's own format, and `.safetensors`, for exchange with other frameworks.

Never pickle, which can run code: an array of Python objects is refused on the way out and on the way in. A file is
written beside its place and moved there when complete, so a crash leaves the old one.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minigrad.backend import Array, plain, to_device
from minigrad.backend.dtypes import as_dtype
from minigrad.backend.meta import MetaArray
from minigrad.tensor import Tensor

_METADATA = "__metadata__"


def save(path: str | Path, arrays: Mapping[str, Tensor | Array], metadata: Mapping[str, Any] | None = None) -> None:
    """Write arrays by name, and metadata (anything JSON can hold), to a `.npz` or `.safetensors` file.

    Raises:
        ValueError: another suffix.
        TypeError: an array of Python objects, or one without numbers.
        OSError: the disk is full, or the folder cannot be written; an older file at `path` is as it was.
    """
    path, kind = Path(path), _kind(Path(path))
    on_cpu = {}
    for name, x in arrays.items():
        x = x.data if isinstance(x, Tensor) else x
        if isinstance(x, MetaArray):
            raise TypeError(f"cannot save {name!r}: it has no numbers, as its model was made under meta_init()")
        on_cpu[name] = np.asarray(to_device(plain(x), "cpu"), order="C")
        if on_cpu[name].dtype.hasobject:
            raise TypeError(f"cannot save {name!r}: it holds Python objects, which only pickle could store")
    text = json.dumps(dict(metadata or {}))
    with replacing(path) as file:
        if kind == "npz":
            _write_npz(file, on_cpu | {_METADATA: np.frombuffer(text.encode(), np.uint8)})
        else:
            file.write(_safetensors().numpy.save(on_cpu, {"minigrad": text}))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, that takes the place of `path` at the end of the block, whole and on the disk; if the block
    fails, or the process is killed in it, the old one stays."""
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
    """Bring to the disk which file has which name, where a system can."""
    with suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of a file.

    NumPy's format has no name for bfloat16: minigrad, JAX and others write it as `V2`, two bytes without a meaning. So
    an array of `V2` in a `.npz` is read as bfloat16 if ml_dtypes is installed; else it stays `V2`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another format, or holds Python objects.
    """
    path, kind = Path(path), _kind(Path(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    reader = _safetensors() if kind == "safetensors" else None
    try:
        if reader is None:
            if not zipfile.is_zipfile(path):
                raise ValueError("not a zip archive, or one that is cut short")
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            strange = [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]
            if strange:
                raise ValueError(f"{strange[0]} holds no array")
            text = arrays.pop(_METADATA, np.frombuffer(b"{}", np.uint8)).tobytes().decode()
        else:
            with reader.safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                text = (file.metadata() or {}).get("minigrad", "{}")
        metadata = json.loads(text)
    except Exception as error:  # the readers stumble over a damaged file in a dozen ways
        raise ValueError(f"{path} is no complete {kind} file of arrays: {error}") from error
    for name, x in arrays.items():
        if x.dtype == np.dtype("V2"):
            with suppress(RuntimeError):
                arrays[name] = x.view(as_dtype("bfloat16"))
    return arrays, metadata


def load_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a file alone, without reading the rest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another format.
    """
    path, kind = Path(path), _kind(Path(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    reader = _safetensors() if kind == "safetensors" else None
    try:
        if reader is not None:
            with reader.safe_open(path, framework="numpy") as file:
                return json.loads((file.metadata() or {}).get("minigrad", "{}"))
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            return json.loads(file[_METADATA].tobytes().decode()) if _METADATA in file.files else {}
    except Exception as error:  # as in `load`
        raise ValueError(f"{path} is no complete {kind} file of arrays: {error}") from error


def _write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """As `numpy.savez`, for which some names are taken."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, x, allow_pickle=False)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"files of arrays end in .npz or .safetensors, got {path.name!r}")
    return suffix[1:]


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise RuntimeError(
            "a .safetensors file needs its library: pip install safetensors; .npz files need none"
        ) from error
    return safetensors
