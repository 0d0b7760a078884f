"""L7: read many image files, in threads and from a cache.

The result does not depend on the threads: images and errors are in the order of the files. A cache file holds the
decoded images of one list of files; its name is a digest of the names, sizes and times of the files, and of how they
were read. A changed file or option has another digest, so a cache file is never out of date.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minigrad import serialize
from models import images
from models.predict import one_line
from train.output.log import Progress

CACHE = Path("runs/cache")
_LIMIT = 16 << 30  # bytes of all cache files together; beyond, the files used least recently are deleted
_CHUNK = 1024  # images in the queue of the threads
_FORMAT = 1  # part of the digest; to be increased when the same file gives other values

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Images:
    """Images read from files.

    Fields:
        pixels: uint8, one image after another.
        shapes: of each image, (N, 3) int64.
        bad: why a file is not among the images, by the index of the file.
    """

    pixels: np.ndarray
    shapes: np.ndarray
    bad: dict[int, str]


def read(
    files: Sequence[Path],
    decode: Callable[[Path], np.ndarray],
    title: str,
    cache: Path | None = None,
) -> Images:
    """The images that `decode` makes of the files, uint8 with three axes, from the file `cache` if possible.

    `decode` raises OSError or ValueError for a bad file. A new cache file is written.

    Raises:
        RuntimeError: Pillow is not installed.
    """
    with images.pillow_warnings():
        if cache is not None and (found := _load(cache, files, decode)) is not None:
            return found
        pixels, shapes, bad = bytearray(), [], {}
        results = in_threads(partial(_attempt, decode), files)
        with closing(results), Progress(len(files), " images", title) as progress:
            for i, image in enumerate(results):
                if isinstance(image, str):
                    bad[i] = image
                else:
                    pixels += image.data
                    shapes.append(image.shape)
                progress.update(1)
    # (N, 3), with three columns for N = 0 too
    found = Images(np.frombuffer(pixels, np.uint8), np.array(shapes, np.int64).reshape(-1, 3), bad)
    if cache is not None:
        _save(cache, found)
    return found


def _attempt(decode: Callable[[Path], np.ndarray], file: Path) -> np.ndarray | str:
    """The image in a file, C-contiguous, or why there is none. The reason names the file."""
    try:
        return np.ascontiguousarray(decode(file))
    except (OSError, ValueError) as error:
        return one_line(error)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
    """The results of `function` for each of the items, in order, computed by a thread for each core.

    After an error, as after Ctrl-C, no further item is begun.
    """
    pool = ThreadPoolExecutor(_cores())
    try:
        for start in range(0, len(items), _CHUNK):
            yield from pool.map(function, items[start : start + _CHUNK])
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The cache ------------------------------------------------------------------------------------------------------------


def cache_file(folder: Path, files: Sequence[Path], options: dict[str, Any]) -> Path:
    """The path of the cache file for these files in or below `folder`, read with `options`.

    Raises:
        RuntimeError: Pillow is not installed.
    """
    read_as = {**options, "format": _FORMAT, "pillow": images.pillow_version(), "folder": str(folder.resolve())}
    digest = hashlib.sha256(json.dumps(read_as, sort_keys=True).encode())
    for file in files:
        try:
            status = file.stat()
            state = status.st_size, status.st_mtime_ns
        except OSError:  # such as a broken link
            state = 0, 0
        digest.update(f"\0{file.relative_to(folder).as_posix()}\0{state}".encode("utf-8", "surrogateescape"))
    return CACHE / f"{digest.hexdigest()[:16]}.npz"


def _load(path: Path, files: Sequence[Path], decode: Callable[[Path], np.ndarray]) -> Images | None:
    """The images in a cache file; None if there is none, it is damaged, or a bad file has become readable."""
    try:
        arrays, _ = serialize.load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        print(f"cache    {one_line(error)}: the images are read again", file=sys.stderr)
        return None
    pixels, shapes, bad = (arrays.get(name, np.empty(0)) for name in ("pixels", "shapes", "bad"))
    whole = (
        [x.dtype for x in (pixels, shapes, bad)] == [np.uint8, np.int64, np.int64]
        and [x.ndim for x in (pixels, shapes, bad)] == [1, 2, 1]
        and shapes.shape[1] == 3
        and len(shapes) + len(bad) == len(files)
        and (shapes > 0).all()
        and sum(map(prod, shapes.tolist())) == len(pixels)
        and set(bad.tolist()) <= set(range(len(files)))
    )
    if not whole:
        print(f"cache    {path} does not hold the images: they are read again", file=sys.stderr)
        return None
    reasons = {i: _attempt(decode, files[i]) for i in bad.tolist()}
    if not all(isinstance(reason, str) for reason in reasons.values()):
        return None
    with suppress(OSError):
        os.utime(path)  # used last
    return Images(pixels, shapes, {i: str(reason) for i, reason in reasons.items()})


def _save(path: Path, found: Images) -> None:
    """Write a cache file, and say its size. An error is printed: without a cache file, images are decoded each time."""
    arrays = {"pixels": found.pixels, "shapes": found.shapes, "bad": np.array(list(found.bad), np.int64)}
    if found.pixels.nbytes > _LIMIT:
        print(f"cache    none: the images are larger than {_size(_LIMIT)}", file=sys.stderr)
        return
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        serialize.save(path, arrays)
        print(f"cache    {path}, {_size(path.stat().st_size)} (--no-cache writes none)", flush=True)
        _delete_oldest()
    except OSError as error:
        print(f"cache    {one_line(error)}", file=sys.stderr)


def _delete_oldest() -> None:
    """Delete the cache files used least recently, until the others are at most `_LIMIT` bytes together."""
    newest_first = sorted(CACHE.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    total = 0
    for path in newest_first:
        total += path.stat().st_size
        if total > _LIMIT:
            path.unlink(missing_ok=True)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
