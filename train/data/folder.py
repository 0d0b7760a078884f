"""L7: a dataset from folders of images, one folder per class:

    DIR/train/CLASS/*.jpg           DIR/val/CLASS/*.jpg, or DIR/test

or, with --val-split, one folder of classes, whose images are divided at random:

    DIR/CLASS/*.jpg

The images are in the folder of a class or in its subfolders, in any format that models/images.py reads. Each image is
resized to cover --img-size, then center-cropped. For random resized crops (--scale), a training image keeps its aspect
ratio, and up to twice --img-size. All images stay in memory.

The name of a class is the name of its folder. In Unicode, é is one character, or e and an accent; file systems
allow both forms, and both name the same class.
"""

import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from models import images
from models.terminal import plural
from train.config.errors import InputError
from train.data import reading
from train.data.dataset import Dataset, Split
from train.data.photos import Photos, in_one_buffer

_CHUNK = 1 << 24  # values per chunk in the computation of the statistics
_OF_WINDOWS = {"thumbs.db", "desktop.ini"}  # hidden files on Windows
_NAMED = 3  # unreadable files that an error names

Files = dict[str, list[Path]]
"""The image files of each class, sorted by name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to divide and read the images. A field has the name of its setting.

    Fields:
        img_size: height and width.
        val_split: the fraction of the images of each class to test on; 0: the folder is divided already.
        seed: of the random division.
        random_crop: keep the training images at more than `img_size`, for random resized crops.
        fast_jpeg: decode JPEGs at 1/2, 1/4 or 1/8 of their size, if this is at least twice the size needed, as in
            Pillow's `thumbnail`.
        skip_bad_images: leave out images that cannot be read.
        cache: keep the decoded images in a file.
    """

    img_size: int = 32
    val_split: float = 0.0
    seed: int = 0
    random_crop: bool = False
    fast_jpeg: bool = False
    skip_bad_images: bool = False
    cache: bool = False


def load(folder: Path, options: Options, train: int | None = None, test: int | None = None) -> Dataset:
    """The dataset in `folder`, with its first `train` and `test` images; None means all. The classes alternate.

    Raises:
        InputError: a folder is missing or has no images, the splits have different classes, or a file is not an
            image.
    """
    training, tested = _divided(folder, options)
    split, bad = _read(folder, training, "training", options, train)
    test_split, others = _read(folder, tested, "test", replace(options, random_crop=False), test)
    _check_bad(bad + others, options)
    mean, std = _statistics(split.images)
    names = _names(folder, tested) if options.val_split else ""
    return Dataset(folder.resolve().name, split, test_split, tuple(training), mean, std, tuple(bad + others), names)


def load_test(folder: Path, options: Options, count: int | None = None) -> Dataset:
    """A dataset with the first `count` test images, without training images: to evaluate a model.

    The test images are in DIR/val or DIR/test. If DIR has neither, they are those of `val_split` in DIR/CLASS; if
    `val_split` is 0, all images in DIR/CLASS.

    Raises:
        InputError: as in `load`.
    """
    if options.val_split:
        _, files = _divided(folder, options)
    else:
        files = _find(_test_folder(folder) or folder)
    split, bad = _read(folder, files, "test", replace(options, random_crop=False), count)
    _check_bad(bad, options)
    unknown = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and standard deviation of the training images
    names = _names(folder, files) if options.val_split else ""
    return Dataset(folder.resolve().name, split.first(0), split, tuple(files), *unknown, tuple(bad), names)


def is_divided(folder: Path) -> bool:
    """Whether `folder` has test images apart: DIR/val or DIR/test."""
    return _test_folder(folder) is not None


# Which files ----------------------------------------------------------------------------------------------------------


def _test_folder(folder: Path) -> Path | None:
    return next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)


def _divided(folder: Path, options: Options) -> tuple[Files, Files]:
    """The files of the training images and of the test images. Both have the same classes, at least two."""
    if not folder.is_dir():
        raise InputError(f"--data-dir {folder}: there is no such folder")
    trained, tested = folder / "train", _test_folder(folder)
    if options.val_split:
        if trained.is_dir() and tested is not None:
            raise InputError(
                f"--val-split divides one folder of classes, but {folder} is divided already, into train and "
                f"{tested.name}: omit --val-split"
            )
        return _split(folder, _at_least_two(folder, _find(folder)), options)
    if not trained.is_dir():
        raise InputError(
            f"--data-dir {folder} has no folder train: it must have train/CLASS/*.jpg and val/CLASS/*.jpg; or "
            f"CLASS/*.jpg, with --val-split 0.2 to test on a fifth of the images{_nested(folder)}"
        )
    if tested is None:
        raise InputError(
            f"--data-dir {folder} has a folder train, but no folder val or test for the test images; --data-dir "
            f"{trained} --val-split 0.2 tests on a fifth of the images in train"
        )
    classes, others = _find(trained), _find(tested)
    if classes.keys() != others.keys():
        only = [f"{name} only in {place}" for name, place in _differences(classes, others, tested.name)]
        raise InputError(f"the classes in {trained} and {tested.name} differ: {', '.join(only[:5])}")
    return _at_least_two(trained, classes), others


def _at_least_two(folder: Path, classes: Files) -> Files:
    """The classes; InputError if there is only one, or none."""
    if len(classes) < 2:
        count = plural(len(classes), "folder")
        raise InputError(f"{folder} has {count} with images; at least two classes are needed{_nested(folder)}")
    return classes


def _nested(folder: Path) -> str:
    """A hint if all images are one level too deep, as in an unpacked archive: DIR/photos/CLASS/*.jpg."""
    inside = [entry for entry in _entries(folder) if entry.is_dir()]
    if len(inside) == 1 and any(entry.is_dir() for entry in _entries(inside[0])):
        return f"; did you mean the folders in {inside[0]}?"
    return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return images.visible(folder)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None


def _find(folder: Path) -> Files:
    """The files of each class, by name in Unicode's composed form (NFC), without hidden folders.

    Images beside the class folders have no class: the number of these images is printed. So are the suffixes of files
    that cannot be read as images, such as .heic.
    """
    entries, places = _entries(folder), dict[str, list[Path]]()
    for entry in entries:
        if entry.is_dir():
            places.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry)
    if beside := sum(map(images.is_image, entries)):
        print(f"{folder}: {plural(beside, 'image')} beside the folders of the classes, ignored", file=sys.stderr)
    inside = chain.from_iterable(place.rglob("[!.]*") for place in chain.from_iterable(places.values()))
    files = (path for path in inside if path.is_file() and path.name.lower() not in _OF_WINDOWS)
    others = {path.suffix.lower() or path.name for path in files if not images.is_image(path)}
    if others:
        print(f"{folder}: files that are not images ({', '.join(sorted(others)[:5])}), ignored", file=sys.stderr)
    try:
        return {name: images.find(places[name]) for name in sorted(places)}
    except OSError as error:
        raise InputError(f"cannot read {error.filename or folder}: {error.strerror or error}") from None
    except ValueError as error:  # a class without images
        raise InputError(str(error)) from None


def _differences(train: Mapping[str, Any], test: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """The classes that only one split has, each with the name of this split."""
    return [(c, "train") for c in train if c not in test] + [(c, name) for c in test if c not in train]


def _split(folder: Path, classes: Files, options: Options) -> tuple[Files, Files]:
    """Divide the images of each class at random: training images, and the fraction `val_split` of test images.

    The test images are the files whose names have the smallest digests. The digest depends on the seed and on the name
    relative to `folder` in Unicode's composed form: neither the order of the files nor other files change it.
    """

    def digest(file: Path) -> tuple[bytes, Path]:
        return sha256(f"{options.seed} ".encode() + _name(folder, file)).digest(), file

    train, test = Files(), Files()
    for name, files in classes.items():
        if len(files) == 1:
            raise InputError(f"--val-split needs two images in each class, to train and to test on; {name} has one")
        count = min(max(1, round(options.val_split * len(files))), len(files) - 1)
        tested = set(sorted(files, key=digest)[:count])
        train[name] = [file for file in files if file not in tested]
        test[name] = [file for file in files if file in tested]
    return train, test


def _name(folder: Path, file: Path) -> bytes:
    """The name of a file relative to `folder` in Unicode's composed form."""
    return unicodedata.normalize("NFC", file.relative_to(folder).as_posix()).encode("utf-8", "surrogateescape")


def _names(folder: Path, classes: Files) -> str:
    """A digest of the names of all files, to detect that a split has changed."""
    names = sorted(_name(folder, file) for file in chain.from_iterable(classes.values()))
    return sha256(b"\0".join(names)).hexdigest()


# Reading --------------------------------------------------------------------------------------------------------------


def _read(folder: Path, classes: Files, title: str, options: Options, count: int | None) -> tuple[Split, list[str]]:
    """The first `count` images of a split, and why files are not among them. None means all. The classes alternate."""
    files = [[(file, i) for file in found] for i, found in enumerate(classes.values())]
    in_turn = [entry for entry in chain.from_iterable(zip_longest(*files)) if entry is not None][:count]
    names, labels = [file for file, _ in in_turn], np.array([label for _, label in in_turn], np.int64)
    S, crops = options.img_size, options.random_crop
    side = 2 * S if crops else S
    decode = partial(_decode, side=side, square=not crops, draft=2 * side if options.fast_jpeg else None)
    try:
        read_as = {"side": side, "square": not crops, "draft": options.fast_jpeg}
        cache = reading.cache_file(folder, names, read_as) if options.cache else None
        found = reading.read(names, decode, f"read {title} images", cache)
    except MemoryError:
        raise InputError(f"{len(names):,} images of {side} x {side} do not fit into memory: lower --img-size") from None
    except RuntimeError as error:  # Pillow is not installed
        raise InputError(str(error)) from None
    good = np.delete(labels, list(found.bad))
    if empty := sorted(set(labels.tolist()) - set(good.tolist())):
        reason = next(iter(found.bad.values()))
        raise InputError(f"no {title} image of the class {list(classes)[empty[0]]} can be read: {reason}")
    pixels: Any = in_one_buffer(found.pixels, found.shapes, S) if crops else found.pixels.reshape(-1, 3, S, S)
    return Split(pixels, good), list(found.bad.values())


def _decode(file: Path, side: int, square: bool, draft: int | None) -> np.ndarray:
    """An image as (3, S, S) uint8, S = `side`; or, if not `square`, as (H, W, 3), with a shorter side of at most S."""
    if square:
        return images.decode(file, 3, partial(images.cover, size=(side, side)), draft).transpose(2, 0, 1)
    return images.decode(file, 3, partial(images.shrink, shorter=side), draft)


def _check_bad(bad: list[str], options: Options) -> None:
    """Refuse unreadable files without --skip-bad-images: InputError with the reasons for the first of them."""
    if bad and not options.skip_bad_images:
        more = f"; and {plural(len(bad) - _NAMED, 'more file')}" if len(bad) > _NAMED else ""
        raise InputError(
            f"{'; '.join(bad[:_NAMED])}{more}: repair or delete {'them' if bad[1:] else 'it'}, or add --skip-bad-images"
        )


Colour = tuple[float, float, float]


def _statistics(pixels: Any) -> tuple[Colour, Colour]:
    """Mean and standard deviation, at least 1/255, of each channel over all pixels in [0, 1]."""
    x = pixels.pixels.reshape(-1, 3, 1, 1) if isinstance(pixels, Photos) else pixels  # (N, 3, H, W)
    n, total, squares, step = x[:, 0].size, np.zeros(3), np.zeros(3), max(1, _CHUNK // x[0].size)
    for start in range(0, len(x), step):
        chunk = x[start : start + step].astype(np.float64)
        total += chunk.sum(axis=(0, 2, 3))
        squares += (chunk * chunk).sum(axis=(0, 2, 3))
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean * mean, 1))
    (r, g, b), (r_std, g_std, b_std) = (mean / 255).tolist(), (std / 255).tolist()
    return (r, g, b), (r_std, g_std, b_std)
