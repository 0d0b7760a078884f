"""L7: any images, in folders by class:

    DIR/train/CLASS/*.png           DIR/val/CLASS/*.png, or DIR/test

and other formats that models/images.py reads. Each is scaled until it just covers the size asked for, and its middle is
cut out. All of them stay in memory.
"""

from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from models import images
from train.dataset import Dataset, Split
from train.errors import InputError
from train.log import Progress

_CHUNK = 1024  # images at once, for the statistics


def load(folder: Path, size: int, train: int | None = None, test: int | None = None) -> Dataset:
    """The dataset in `folder`, or its first images: classes follow each other in turn, as long as they have images.

    Raises:
        InputError: a folder is missing or has no images, the classes of the two differ, or a file is no image.
    """
    if not (folder / "train").is_dir():
        raise InputError(f"--data-dir {folder} has no folder train; needed are train/CLASS/*.png and val/CLASS/*.png")
    tested = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if tested is None:
        raise InputError(f"--data-dir {folder} has a folder train, but none named val or test, with images to test on")
    classes, others = _classes(folder / "train"), _classes(tested)
    if classes != others:
        only = [f"{name} only in {place}" for name, place in _differences(classes, others, tested.name)]
        raise InputError(f"the classes in {folder}/train and {tested.name} differ: {', '.join(only[:5])}")
    if len(classes) < 2:
        raise InputError(f"{folder / 'train'} has {len(classes)} folders with images; at least two classes are needed")
    split = _read(folder / "train", classes, size, train)
    mean, std = _statistics(split.images)
    return Dataset(folder.resolve().name, split, _read(tested, classes, size, test), tuple(classes), mean, std)


def _classes(folder: Path) -> list[str]:
    """The names of the folders within; hidden ones are passed over."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None


def _differences(train: list[str], test: list[str], name: str) -> list[tuple[str, str]]:
    """Classes that are in one of the two, and in which."""
    return [(c, "train") for c in train if c not in test] + [(c, name) for c in test if c not in train]


def _read(folder: Path, classes: list[str], size: int, count: int | None) -> Split:
    """The images of a split, or the first `count`."""
    try:
        files = [[(file, i) for file in images.find([folder / name])] for i, name in enumerate(classes)]
        in_turn = [entry for entry in chain.from_iterable(zip_longest(*files)) if entry is not None][:count]
        pixels = np.empty((len(in_turn), 3, size, size), np.uint8)
        with Progress(len(in_turn), " images", f"read {folder}") as progress:
            for i, (file, _) in enumerate(in_turn):
                pixels[i] = images.read(file, (size, size), 3)
                progress.update(1)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or folder}: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(
            f"{len(in_turn):,} images of {size} x {size} do not fit into memory: a lower --img-size"
        ) from None
    except (ValueError, RuntimeError) as error:  # no image, or Pillow is not installed: the message says which file
        raise InputError(str(error)) from None
    return Split(pixels, np.array([label for _, label in in_turn], np.int64))


Colour = tuple[float, float, float]


def _statistics(pixels: np.ndarray) -> tuple[Colour, Colour]:
    """Mean and standard deviation of each channel over all pixels, white is 1; the latter at least 1/255."""
    n, total, squares = pixels[:, 0].size, np.zeros(3), np.zeros(3)
    for start in range(0, len(pixels), _CHUNK):
        x = pixels[start : start + _CHUNK].astype(np.float64)
        total += x.sum(axis=(0, 2, 3))
        squares += (x * x).sum(axis=(0, 2, 3))
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean * mean, 1))
    (r, g, b), (r_std, g_std, b_std) = (mean / 255).tolist(), (std / 255).tolist()
    return (r, g, b), (r_std, g_std, b_std)
