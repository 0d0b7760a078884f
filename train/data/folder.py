"""L7: a dataset from folders of images, one folder per class:

    DIR/train/CLASS/*.png           DIR/val/CLASS/*.png, or DIR/test

The images are in the folder of a class or in its subfolders, in any format that models/images.py reads. Each image is
resized to cover --img-size, then center-cropped. All images stay in memory.

The name of a class is the name of its folder. In Unicode, é is one character, or e and an accent; file systems
allow both forms, and both name the same class.
"""

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from models import images
from models.predict import one_line
from train.config.errors import InputError
from train.data.dataset import Dataset, Split
from train.output.log import Progress

_CHUNK = 1024  # images per chunk in the computation of the statistics
_MAX_PROBLEMS = 10  # unreadable files after which reading stops


def load(folder: Path, size: int, train: int | None = None, test: int | None = None) -> Dataset:
    """The dataset in `folder`, with its first `train` and `test` images; None means all. The classes alternate.

    Raises:
        InputError: a folder is missing or has no images, the splits have different classes, or a file is not an
            image.
    """
    if not (folder / "train").is_dir():
        raise InputError(f"--data-dir {folder} has no folder train: it must have train/CLASS/*.png and val/CLASS/*.png")
    tested = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if tested is None:
        raise InputError(f"--data-dir {folder} has a folder train, but no folder val or test for the test images")
    classes, others = _classes(folder / "train"), _classes(tested)
    if classes.keys() != others.keys():
        only = [f"{name} only in {place}" for name, place in _differences(classes, others, tested.name)]
        raise InputError(f"the classes in {folder}/train and {tested.name} differ: {', '.join(only[:5])}")
    if len(classes) < 2:
        raise InputError(f"{folder / 'train'} has {len(classes)} folders with images; at least two classes are needed")
    split = _read(folder / "train", classes, size, train)
    mean, std = _statistics(split.images)
    return Dataset(folder.resolve().name, split, _read(tested, others, size, test), tuple(classes), mean, std)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The folders of each class, by name in Unicode's composed form (NFC), without hidden folders.

    Images beside the class folders have no class: the number of these images is printed.
    """
    try:
        entries = images.visible(folder)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None
    found: dict[str, list[Path]] = {}
    for entry in entries:
        if entry.is_dir():
            found.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry)
    if beside := sum(map(images.is_image, entries)):
        print(f"{folder}: {beside} images beside the folders of the classes are ignored", file=sys.stderr)
    return dict(sorted(found.items()))


def _differences(train: Mapping[str, Any], test: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """The classes that only one split has, each with the name of this split."""
    return [(c, "train") for c in train if c not in test] + [(c, name) for c in test if c not in train]


def _read(folder: Path, classes: Mapping[str, Sequence[Path]], size: int, count: int | None) -> Split:
    """The first `count` images of a split; None means all. The classes alternate."""
    problems: list[str] = []
    try:
        files = [[(file, i) for file in images.find(places)] for i, places in enumerate(classes.values())]
        in_turn = [entry for entry in chain.from_iterable(zip_longest(*files)) if entry is not None][:count]
        pixels = np.empty((len(in_turn), 3, size, size), np.uint8)
        with Progress(len(in_turn), " images", f"read {folder}") as progress:
            for i, (file, _) in enumerate(in_turn):
                try:
                    pixels[i] = images.read(file, (size, size), 3)
                except (OSError, ValueError) as error:  # the message names the file
                    problems.append(one_line(error))
                if len(problems) == _MAX_PROBLEMS:
                    break
                progress.update(1)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or folder}: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(
            f"{len(in_turn):,} images of {size} x {size} do not fit into memory: lower --img-size"
        ) from None
    except (ValueError, RuntimeError) as error:  # a class without images, or Pillow is not installed
        raise InputError(str(error)) from None
    if problems:
        more = ", and perhaps more" if len(problems) == _MAX_PROBLEMS else ""
        raise InputError(f"{'; '.join(problems)}{more}: repair or delete {'them' if problems[1:] else 'it'}")
    return Split(pixels, np.array([label for _, label in in_turn], np.int64))


Colour = tuple[float, float, float]


def _statistics(pixels: np.ndarray) -> tuple[Colour, Colour]:
    """Mean and standard deviation, at least 1/255, of each channel over all pixels in [0, 1]."""
    n, total, squares = pixels[:, 0].size, np.zeros(3), np.zeros(3)
    for start in range(0, len(pixels), _CHUNK):
        x = pixels[start : start + _CHUNK].astype(np.float64)
        total += x.sum(axis=(0, 2, 3))
        squares += (x * x).sum(axis=(0, 2, 3))
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean * mean, 1))
    (r, g, b), (r_std, g_std, b_std) = (mean / 255).tolist(), (std / 255).tolist()
    return (r, g, b), (r_std, g_std, b_std)
