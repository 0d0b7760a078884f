"""L6: from image files to what a model takes.

An image is scaled, keeping its proportions, until it just covers the model's size, and its middle is cut out; one that
has that size already stays as it is. Then x ↦ (x/255 - mean) / std for each channel, as in training.

Every program here reads image files with `read`. Unlike torchvision's and timm's loaders, it turns an image upright by
its EXIF orientation, and puts what is transparent on white instead of dropping the alpha channel.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad.backend import Array, array_module
from models.model import ImageModel

FORMATS = {  # others are not opened: Pillow hands some of them, such as EPS, to other programs
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",), "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm"),
}  # fmt: skip
_SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The files that are meant: a folder stands for the images in it and in the folders below, by name, without hidden
    ones (macOS leaves a `._x.png` beside `x.png`, Jupyter a folder `.ipynb_checkpoints`).

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = list(_within(path))
            if not inside:
                raise ValueError(f"there are no images in the folder {path} ({', '.join(sorted(_SUFFIXES))})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    return found


def _within(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The images in a folder, then those in each folder below; a link to one of the folders `above` ends there."""
    here = folder.resolve()
    if here in above:
        return
    entries = visible(folder)
    yield from filter(is_image, entries)
    for entry in entries:
        if entry.is_dir():
            yield from _within(entry, (*above, here))


def visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden entries."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image format. A link to nothing counts: reading it fails, by name."""
    return path.suffix.lower() in _SUFFIXES and (path.is_file() or not path.exists())


def read(path: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """An image file as (C, H, W) uint8, white 255; of an animation the first picture. What is transparent is white.
    More than 8 bits a channel are scaled to 8; floating-point values must be from 0 to 1, which is white.

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.
        size: (H, W) of the result.
        channels: 3: red, green, blue; 1: grey.

    Raises:
        ValueError: it is no image, or damaged, or too large, or does not say which value is white; or another number of
            channels.
        OSError: it cannot be read.
        RuntimeError: Pillow is not installed.
    """
    if channels not in (1, 3):
        raise ValueError(f"image files have 3 channels, or 1 if they are grey; this model takes {channels}")
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise RuntimeError("reading image files needs Pillow: pip install pillow") from None
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=list(FORMATS)) as image:
                grey = _eight_bits(image, ImageOps.exif_transpose(image))
                image = _opaque(grey).convert("RGB" if channels == 3 else "L")
                pixels = np.asarray(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC))
        except _NoWhiteError as error:
            raise ValueError(f"{path} {error}; save it with 8 or 16 bits a channel") from None
        except UnidentifiedImageError:
            raise ValueError(f"{path} is no image that can be read here ({', '.join(FORMATS)})") from None
        except Exception as error:  # the readers stumble over a damaged file in a dozen ways
            raise ValueError(f"{path} is a damaged or too large image: {error}") from error
    return np.ascontiguousarray(pixels.reshape(*size, channels).transpose(2, 0, 1))  # (H, W, C) -> (C, H, W)


class _NoWhiteError(Exception):
    """An image whose values cannot be scaled to 8 bits."""


def _eight_bits(source: Any, image: Any) -> Any:
    """`image`, made from the file `source`, with 8 bits a channel. Pillow's own conversion clips grey of more bits.

    Raises:
        _NoWhiteError: the file does not say which value is white.
    """
    from PIL import Image

    tiff = getattr(source, "tag_v2", {})
    if image.mode.startswith("I;16") or (image.mode == "I" and source.format in ("PPM", "PNG")):
        bits, white_is_zero = tiff.get(_BITS_PER_SAMPLE, (16,))[0], tiff.get(_PHOTOMETRIC) == 0
        x = np.asarray(image).astype(np.int32)
        x = (2**bits - 1 - x) if white_is_zero else x
        grey = Image.fromarray((x >> (bits - 8)).astype(np.uint8))
        if (transparent := source.info.get("transparency")) is not None:  # one of the 2¹⁶ values
            grey.putalpha(Image.fromarray(np.where(x == transparent, 0, 255).astype(np.uint8)))
        return grey
    if image.mode == "I":
        raise _NoWhiteError("has integers of another type than 8 or 16 bits, and the value of white is unknown")
    if image.mode == "F":
        x = np.asarray(image)
        if not (x.min() >= 0 and x.max() <= 1):  # nor is NaN
            raise _NoWhiteError(f"has floating-point values from {x.min():g} to {x.max():g}, not from 0 to 1")
        return Image.fromarray(np.rint(255 * x).astype(np.uint8))
    return image


_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of a TIFF file


def _opaque(image: Any) -> Any:
    """An image in RGB, on white where it is transparent."""
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")  # grey to RGB and back is exact


def normalize(images: Array, mean: Array | Sequence[float], std: Array | Sequence[float]) -> Array:
    """(B, C, H, W) uint8 -> float32, x ↦ (x/255 - mean) / std for each channel.

    With mean and std where the images are, it may be a part of a captured step.
    """
    xp = array_module(images)
    mean_255, std_255 = (255 * xp.asarray(values, np.float32)[:, None, None] for values in (mean, std))  # (C, 1, 1)
    return (images - mean_255) / std_255


def to_input(images: np.ndarray, model: ImageModel, metadata: dict[str, Any]) -> Tensor:
    """Images (B, C, H, W) uint8 as the model of a checkpoint takes them, where it is."""
    return Tensor(normalize(images, metadata["mean"], metadata["std"]), device=next(model.parameters()).device)
