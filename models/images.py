"""L6: from image files to model inputs: resize, center crop, normalize.

An image is resized, with its aspect ratio kept, to just cover the model's input size, then center-cropped; an image of
the input size is unchanged. For published weights, a `Crop` resizes as timm does in their evaluation. Normalization is
x ↦ (x/255 - mean) / std per channel, as in training.

All programs here read image files with `read`. Unlike torchvision's and timm's loaders, `read` applies the EXIF
orientation, and composites transparent pixels onto white instead of dropping the alpha channel.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad.backend import Array, array_module
from models.model import ImageModel

FORMATS = {  # only these are opened: Pillow runs external programs for some other formats, such as EPS
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",), "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm"),
}  # fmt: skip
_SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The files for these paths: a folder is replaced by the images in it and its subfolders, sorted by name, without
    hidden files and folders (macOS adds `._x.png` beside `x.png`, Jupyter adds `.ipynb_checkpoints`).

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder has no images.
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
    """The images in a folder, then in each subfolder; a symbolic link to one of the folders `above` is not followed."""
    here = folder.resolve()
    if here in above:
        return
    entries = visible(folder)
    yield from filter(is_image, entries)
    for entry in entries:
        if entry.is_dir():
            yield from _within(entry, (*above, here))


def visible(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image format. A broken link counts too, so that `read` reports the link."""
    return path.suffix.lower() in _SUFFIXES and (path.is_file() or not path.exists())


_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Crop:
    """timm's resizing in evaluation: to the input size divided by `crop_pct`, then a center crop of the input size.

    Attributes:
        crop_pct: the fraction of the shorter side that the crop keeps.
        crop_mode: `center`: the aspect ratio is kept; `squash`: it is not.
        interpolation: the name of a filter of Pillow, such as `bicubic`.
    """

    crop_pct: float
    crop_mode: str
    interpolation: str

    def __post_init__(self) -> None:
        if self.crop_mode not in ("center", "squash"):
            raise ValueError(f"crop_mode must be center or squash, got {self.crop_mode!r}")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}")

    def __call__(self, image: Any, size: tuple[int, int]) -> Any:
        """A Pillow image, resized and cropped to `size`, (H, W)."""
        from PIL import Image

        H, W = size
        scaled_H, scaled_W = (floor(side / self.crop_pct) for side in size)
        if self.crop_mode == "center":  # enlarge the target along the longer side, to the image's aspect ratio
            w, h = image.size
            if w * scaled_H >= h * scaled_W:
                scaled_W = int(scaled_H * w / h)
            else:
                scaled_H = int(scaled_W * h / w)
        image = image.resize((scaled_W, scaled_H), Image.Resampling[self.interpolation.upper()])
        top, left = round((scaled_H - H) / 2), round((scaled_W - W) / 2)
        return image.crop((left, top, left + W, top + H))


def read(path: Path, size: tuple[int, int], channels: int, crop: Crop | None = None) -> np.ndarray:
    """An image file as (C, H, W) uint8, resized and center-cropped. Animations give the first frame; transparent pixels
    become white. Channels of more than 8 bits are scaled to 8; floating-point values must be in [0, 1].

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.
        size: (H, W) of the result.
        channels: 3: RGB; 1: greyscale.
        crop: how to resize and crop; None: cover `size`, and crop the rest.

    Raises:
        ValueError: the file is not an image, is damaged or too large, or has values of unknown range; or `channels` is
            neither 3 nor 1.
        OSError: the file cannot be opened.
        RuntimeError: Pillow is not installed.
    """
    with pillow_warnings():
        pixels = decode(path, channels, partial(cover if crop is None else crop, size=size))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (H, W, C) -> (C, H, W)


def decode(path: Path, channels: int, resize: Callable[[Any], Any], draft: int | None = None) -> np.ndarray:
    """An image file as (H, W, C) uint8, as `read`, which lists the errors, resized by a function of Pillow images.

    Call `decode` within `pillow_warnings`. Several threads may decode at once: Pillow releases the GIL.

    Args:
        draft: decode a JPEG at 1/2, 1/4 or 1/8 of its size, with sides of at least `draft` pixels: faster, with other
            values than at full size. None: at full size.
    """
    if channels not in (1, 3):
        raise ValueError(f"image files have 3 channels, or 1 in greyscale; this model needs {channels}")
    from PIL import Image, ImageOps, UnidentifiedImageError

    with open(path, "rb") as file:
        try:
            with Image.open(file, formats=list(FORMATS)) as image:
                if draft is not None:
                    image.draft(None, (draft, draft))
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                opaque = _opaque(_eight_bits(image))
                resized = resize(opaque if channels == 3 else opaque.convert("L"))
                pixels = np.asarray(resized).reshape(resized.height, resized.width, channels)
        except _UnknownRangeError as error:
            raise ValueError(f"{path} {error}; save the image with 8 or 16 bits per channel") from None
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not an image in a supported format ({', '.join(FORMATS)})") from None
        except Exception as error:  # Pillow raises many types for a damaged file
            raise ValueError(f"{path} is a damaged or too large image: {error}") from error
    return pixels


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Within the block, an image of too many pixels is an error, and Pillow's other warnings are ignored.

    Warning filters are shared by all threads: enter the block in one thread, before other threads decode.

    Raises:
        RuntimeError: Pillow is not installed.
    """
    pillow_version()  # raises an error that says what to install
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def pillow_version() -> str:
    """The version of Pillow, on which the values of decoded images depend.

    Raises:
        RuntimeError: Pillow is not installed.
    """
    try:
        import PIL
    except ImportError:
        raise RuntimeError("reading image files needs Pillow: pip install pillow") from None
    return str(PIL.__version__)


def cover(image: Any, size: tuple[int, int]) -> Any:
    """A Pillow image, resized to just cover `size`, (H, W), with its aspect ratio kept, then center-cropped."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)


def shrink(image: Any, shorter: int) -> Any:
    """A Pillow image, resized to a shorter side of `shorter` pixels, with its aspect ratio kept; an image whose shorter
    side is at most `shorter` is unchanged."""
    from PIL import Image

    short = min(image.size)
    if short <= shorter:
        return image
    w, h = (round(side * shorter / short) for side in image.size)
    return image.resize((w, h), Image.Resampling.BICUBIC)


class _UnknownRangeError(Exception):
    """The value of white is unknown, so the image cannot be scaled to 8 bits."""


def _eight_bits(image: Any) -> Any:
    """The image of a file with 8 bits per channel. (Pillow's own conversion clips greyscale of more bits.)

    Raises:
        _UnknownRangeError: the file does not define the value of white.
    """
    from PIL import Image

    tiff = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        bits, white_is_zero = tiff.get(_BITS_PER_SAMPLE, (16,))[0], tiff.get(_PHOTOMETRIC) == 0
        x = np.asarray(image).astype(np.int32)
        x = (2**bits - 1 - x) if white_is_zero else x
        grey = Image.fromarray((x >> (bits - 8)).astype(np.uint8))
        if (transparent := image.info.get("transparency")) is not None:  # one of the 2¹⁶ values
            grey.putalpha(Image.fromarray(np.where(x == transparent, 0, 255).astype(np.uint8)))
        return grey
    if image.mode == "I":
        raise _UnknownRangeError("has integers other than unsigned 8 or 16 bits, and the value of white is unknown")
    if image.mode == "F":
        x = np.asarray(image)
        if not (x.min() >= 0 and x.max() <= 1):  # also if NaN
            raise _UnknownRangeError(f"has floating-point values from {x.min():g} to {x.max():g}, not from 0 to 1")
        return Image.fromarray(np.rint(255 * x).astype(np.uint8))
    return image


_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of a TIFF file


def _opaque(image: Any) -> Any:
    """The image in RGB, composited onto white."""
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # greyscale to RGB and back is exact


def normalize(images: Array, mean: Array | Sequence[float], std: Array | Sequence[float]) -> Array:
    """(B, C, H, W) uint8 -> float32, x ↦ (x/255 - mean) / std per channel.

    With mean and std on the device of the images, the function can be captured in a CUDA graph.
    """
    xp = array_module(images)
    mean_255, std_255 = (255 * xp.asarray(values, np.float32)[:, None, None] for values in (mean, std))  # (C, 1, 1)
    return (images - mean_255) / std_255


def to_input(images: np.ndarray, model: ImageModel, metadata: dict[str, Any]) -> Tensor:
    """Images (B, C, H, W) uint8 normalized with the mean and std of a checkpoint, on the model's device."""
    return Tensor(normalize(images, metadata["mean"], metadata["std"]), device=next(model.parameters()).device)
