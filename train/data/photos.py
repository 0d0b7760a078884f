"""L7: images of different sizes, and the random resized crop, which makes a batch of equal sizes from them.

Pillow crops and resizes on the CPU, in threads, when a batch is made: a CUDA graph cannot contain this transform.
"""

from dataclasses import dataclass, replace

import numpy as np

from minigrad.backend import Array, to_device
from minigrad.backend.random import Generator
from train.data.reading import in_threads

_TRIES = 10  # of a box within the image, as in torchvision


@dataclass(frozen=True)
class Photos:
    """N RGB images of different sizes, uint8 on the CPU. `photos[index]` selects images, without a copy.

    Fields:
        pixels: the images (H, W, 3), one after another.
        shapes: H, W and 3 of each image, (N, 3) int64.
        starts: the index of the first element of each image in `pixels`, (N,) int64.
        size: height and width of the crops.
        device: of the crops.
    """

    pixels: np.ndarray
    shapes: np.ndarray
    starts: np.ndarray
    size: int
    device: str = "cpu"

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: Array | slice) -> "Photos":
        index = index if isinstance(index, slice) else to_device(index, "cpu")
        return replace(self, shapes=self.shapes[index], starts=self.starts[index])

    def image(self, n: int) -> np.ndarray:
        """Image n, (H, W, 3)."""
        start, shape = self.starts[n], self.shapes[n]
        return self.pixels[start : start + shape.prod()].reshape(shape)


def in_one_buffer(pixels: np.ndarray, shapes: np.ndarray, size: int) -> Photos:
    """The images `pixels`, one after another, of the shapes (N, 3)."""
    ends = shapes.prod(axis=1).cumsum()
    return Photos(pixels, shapes, np.concatenate([[0], ends[:-1]]).astype(np.int64), size)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a box of random area, shape and position from each image, and resize the box to the size of the model.

    The area of the box, as a fraction of the image, is uniform in `scale`; log(width / height) is uniform between the
    logarithms of `ratio`; the position is uniform. A box that is larger than the image is sampled again. After ten
    tries the box is the largest in the centre with a ratio within `ratio`.

    `interpolation` is bilinear, bicubic, or random: one of both for each image. The distribution is that of
    torchvision's RandomResizedCrop and timm's RandomResizedCropAndInterpolation. For the same box and filter, the
    pixels equal those of torchvision's `resized_crop` of a Pillow image.

    Szegedy et al. 2014, arXiv:1409.4842.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "random"

    def __call__(self, photos: Photos, generator: Generator) -> Array:
        """N photos -> (N, 3, S, S) uint8 on their device."""
        N, S = len(photos), photos.size
        u = generator.uniform((2 * _TRIES + 3, N), np.float64, axis=1)
        boxes, bicubic = self.boxes(photos.shapes[:, 0], photos.shapes[:, 1], u[:-1]), self.bicubic(u[-1])
        crops = np.empty((N, 3, S, S), np.uint8)

        def crop(n: int) -> None:
            top, left, height, width = boxes[:, n].tolist()
            crops[n] = resized_crop(photos.image(n), top, left, height, width, S, bicubic=bool(bicubic[n]))

        for _ in in_threads(crop, range(N)):
            pass
        return to_device(crops, photos.device)

    def boxes(self, H: np.ndarray, W: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Top, left, height and width of a box for each image, (4, N) int64.

        Args:
            H, W: height and width of the images, (N,).
            u: uniform values in [0, 1): area and ratio of each try, top, left; (2 tries + 2, N) float64.
        """
        (low, high), (low_ratio, high_ratio) = self.scale, self.ratio
        area = H * W * (low + (high - low) * u[:_TRIES])  # (tries, N)
        ratio = np.exp(np.log(low_ratio) + (np.log(high_ratio) - np.log(low_ratio)) * u[_TRIES : 2 * _TRIES])
        height, width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        fits = (height > 0) & (height <= H) & (width > 0) & (width <= W)
        first, N = fits.argmax(axis=0), np.arange(len(H))
        found = fits[first, N]
        # The largest box with a ratio within `ratio`; the whole image, if its ratio is.
        own = W / H
        largest_height = np.where(own < low_ratio, np.rint(W / low_ratio), H).clip(1)
        largest_width = np.where(own > high_ratio, np.rint(H * high_ratio), W).clip(1)
        height = np.where(found, height[first, N], largest_height)
        width = np.where(found, width[first, N], largest_width)
        top = np.where(found, np.minimum(np.floor(u[-2] * (H - height + 1)), H - height), (H - height) // 2)
        left = np.where(found, np.minimum(np.floor(u[-1] * (W - width + 1)), W - width), (W - width) // 2)
        return np.stack([top, left, height, width]).astype(np.int64)

    def bicubic(self, u: np.ndarray) -> np.ndarray:
        """Whether the filter of an image is bicubic, not bilinear, (N,) bool, from uniform u (N,)."""
        return u < {"bilinear": 0.0, "bicubic": 1.0, "random": 0.5}[self.interpolation]


def resized_crop(
    image: np.ndarray, top: int, left: int, height: int, width: int, size: int, *, bicubic: bool
) -> np.ndarray:
    """A box of an image (H, W, 3) uint8, resized by Pillow to (3, size, size)."""
    from PIL import Image

    box = Image.fromarray(image[top : top + height, left : left + width])
    resized = box.resize((size, size), Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)  # (H, W, C) -> (C, H, W)
