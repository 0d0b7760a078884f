"""L7: CIFAR-10 and CIFAR-100, from the files of the author: Krizhevsky 2009, "Learning multiple layers of features from
tiny images".

Each file is a pickled dict with a list of labels and `data` (images, 3072) uint8: a row has the red, green and blue
plane of 32 x 32 pixels, in this order. The files are in a folder, or in a tar.gz, which is read without unpacking.
"""

import gzip
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.terminal import plural
from train.config.errors import InputError
from train.data.dataset import Dataset, Split
from train.data.unpickle import IntegerArray, load_plain

_LARGEST = 1 << 28  # bytes: the largest real file, CIFAR-100's training images, has 155 million


@dataclass(frozen=True)
class Source:
    """A version of CIFAR: its archive, the files in the archive, and the keys of the pickled dicts."""

    name: str
    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    label_names: str
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


SOURCES = {
    "cifar10": Source(
        name="cifar10",
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        label_names="label_names",
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Source(
        name="cifar100",
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        meta="meta",
        labels="fine_labels",
        label_names="fine_label_names",
        classes=100,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
}


def find(source: Source, data_dir: Path) -> Path | None:
    """The folder or archive of `source`: in `data_dir`, or `data_dir` itself; None if missing."""
    folders = (data_dir / source.folder, data_dir)
    archives = (data_dir / source.archive, data_dir)
    found = [f for f in folders if any((f / name).is_file() for name in (*source.train, *source.test))]
    found += [a for a in archives if a.is_file()]
    return found[0] if found else None


def load(source: Source, data_dir: Path) -> Dataset:
    """Read and check the dataset.

    Raises:
        InputError: a file is missing, damaged or hostile, or its contents are not CIFAR's.
    """
    place = find(source, data_dir)
    if place is None:
        raise InputError(
            f"there is no {source.name} in {data_dir}: add --download, or set --data-dir to a folder with "
            f"{source.folder} or {source.archive} (from {source.url})"
        )
    names = (*source.train, *source.test, source.meta)
    contents = _from_folder(place, names) if place.is_dir() else _from_archive(place, source.folder, names)

    def split(parts: Sequence[str]) -> Split:
        images, labels = zip(*(_batch(contents(name), f"{place}: {name}", source) for name in parts), strict=True)
        return Split(np.concatenate(images), np.concatenate(labels))

    classes = _class_names(contents(source.meta), f"{place}: {source.meta}", source)
    return Dataset(source.name, split(source.train), split(source.test), classes, source.mean, source.std)


def _from_folder(folder: Path, names: Sequence[str]) -> Callable[[str], bytes]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is incomplete: {', '.join(missing)} missing; unpack the archive again")

    def read(name: str) -> bytes:
        try:
            with (folder / name).open("rb") as file:
                content = file.read(_LARGEST + 1)
        except OSError as error:
            raise InputError(f"cannot read {folder / name}: {error.strerror}") from None
        return _not_too_large(content, f"{folder}: {name}")

    return read


def _from_archive(archive: Path, folder: str, names: Sequence[str]) -> Callable[[str], bytes]:
    contents = {}
    wanted = {f"{folder}/{name}": name for name in names}
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if member.name in wanted and member.isreg():
                    file = tar.extractfile(member)
                    name = wanted[member.name]
                    contents[name] = _not_too_large(file.read(_LARGEST + 1) if file else b"", f"{archive}: {name}")
            while stream.read(1 << 20):  # to the end, where the checksum is compared
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{archive} is damaged or not a tar.gz file ({error}); delete the file and download it again"
        ) from None
    missing = [name for name in names if name not in contents]
    if missing:
        raise InputError(f"{archive} is incomplete: {', '.join(missing)} missing in its folder {folder}")
    return contents.__getitem__


def _not_too_large(content: bytes, where: str) -> bytes:
    if len(content) > _LARGEST:
        raise InputError(f"{where} is larger than {_LARGEST >> 20} MiB, more than any file of CIFAR")
    return content


def _batch(content: bytes, where: str, source: Source) -> tuple[np.ndarray, np.ndarray]:
    batch = _dict(content, where)
    data, labels = batch.get("data"), batch.get(source.labels)
    pixels = data.array if isinstance(data, IntegerArray) else np.empty(0)
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32 or len(pixels) == 0:
        raise InputError(f"{where}: `data` must be an array (images, 3072) of uint8")
    if isinstance(labels, IntegerArray) and labels.array.ndim == 1:
        labels = labels.array.tolist()
    if not (isinstance(labels, list | tuple) and all(type(label) is int for label in labels)):
        raise InputError(f"{where}: `{source.labels}` must be a list of integers")
    if len(labels) != len(pixels):
        raise InputError(f"{where} has {plural(len(pixels), 'image')} and {plural(len(labels), 'label')}")
    if min(labels) < 0 or max(labels) >= source.classes:
        raise InputError(f"{where}: labels must be from 0 to {source.classes - 1}, got {min(labels)} to {max(labels)}")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _class_names(content: bytes, where: str, source: Source) -> tuple[str, ...]:
    names = _dict(content, where).get(source.label_names)
    if not (
        isinstance(names, list) and len(names) == source.classes and all(isinstance(n, str | bytes) for n in names)
    ):
        raise InputError(f"{where}: `{source.label_names}` must be a list of {source.classes} names")
    return tuple(_text(name) for name in names)


def _dict(content: bytes, where: str) -> dict[str, Any]:
    try:
        loaded = load_plain(content)
    except pickle.UnpicklingError as error:
        raise InputError(f"{where} is refused: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{where} must hold a dict, not a {type(loaded).__name__}")
    return {_text(key): value for key, value in loaded.items() if isinstance(key, str | bytes)}


def _text(name: str | bytes) -> str:
    """`name` as a str: Python 2 wrote names as bytes."""
    return name.decode("latin1") if isinstance(name, bytes) else name
