"""L6: from image files to what a model takes.

An image is scaled, keeping its proportions, until it just covers the model's size, and its middle is cut out; one that
has that size already stays as it is. Then x ↦ (x/255 - mean) / std for each channel, as in training.
"""

import warnings
from collections.abc import Iterable, Sequence
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
    """The files that are meant: a folder stands for the images in it, by name, without those in folders below.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
            if not inside:
                raise ValueError(f"there are no images in the folder {path} ({', '.join(sorted(_SUFFIXES))})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    return found


def read(path: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """An image file as (C, H, W) uint8, white 255; of an animation the first picture. What is transparent is white.

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.
        size: (H, W) of the result.
        channels: 3: red, green, blue; 1: grey.

    Raises:
        ValueError: it is no image, or damaged, or too large; or another number of channels.
        OSError: it cannot be read.
        RuntimeError: Pillow is not installed.
    """
    if channels not in (1, 3):
        raise ValueError(f"image files have 3 channels, or 1 if they are grey; this model takes {channels}")
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise RuntimeError("reading image files needs Pillow: pip install 'minigrad[train]'") from None
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=list(FORMATS)) as image:
                image = _flat(ImageOps.exif_transpose(image), "RGB" if channels == 3 else "L")
                pixels = np.asarray(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC))
        except UnidentifiedImageError:
            raise ValueError(f"{path} is no image that can be read here ({', '.join(FORMATS)})") from None
        except Exception as error:  # the readers stumble over a damaged file in a dozen ways
            raise ValueError(f"{path} is a damaged or too large image: {error}") from error
    return np.ascontiguousarray(pixels.reshape(*size, channels).transpose(2, 0, 1))  # (H, W, C) -> (C, H, W)


def _flat(image: Any, mode: str) -> Any:
    """An image in 8 bits, without transparency."""
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would cut at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


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
