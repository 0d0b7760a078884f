"""L7: data augmentation of batches.

The transforms, in the order of timm and torchvision. A value of 0 switches a transform off:

    pixels, uint8           random resized crop (photos.py), flip, shifted crop, RandAugment (randaugment.py),
                            colour jitter (colorjitter.py)
    normalised, float32     cutout, random erasing
    images and targets      mixup or CutMix

The random numbers come from a Generator on the device of the images, and are the same on CPU and GPU. No transform
synchronizes with the GPU, has a data-dependent shape, or writes to its input: a CUDA graph can contain all of them,
except for the random resized crop, which runs on the CPU.

With `generator.rows`, the images are a part of a batch: each is transformed as in the whole batch. On the CPU, the
shapes in random erasing and RandAugment of a part depend on the data.

The code below is the reference implementation. On a GPU, each transform but colour jitter is one kernel, `Mix` two:
train/data/cuda/.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np

from minigrad.backend import Array, array_module, device_of, sliding_windows
from minigrad.backend.fast_paths import with_fast_paths
from minigrad.backend.random import Generator
from train.data.colorjitter import ColorJitter, color_jitter
from train.data.photos import Photos, RandomResizedCrop
from train.data.randaugment import RandAugment, StratifiedAssignment, normal, over_pixels, rand_augment


@dataclass(frozen=True)
class Flip:
    """Flip each image horizontally with probability `prob`."""

    prob: float = 0.5

    @with_fast_paths
    def __call__(self, images: Array, generator: Generator) -> Array:
        """(N, C, H, W), any dtype -> new images."""
        flipped = generator.uniform((len(images),), device=device_of(images), axis=0) < self.prob
        return array_module(images).where(over_pixels(flipped), images[..., ::-1], images)


@dataclass(frozen=True)
class ShiftedCrop:
    """Pad each image by `padding` pixels on all sides, and crop it to its original size at a uniform random position.

    `padding_mode` is "constant" (zeros) or "reflect", as in torchvision's RandomCrop.
    """

    padding: int = 4
    padding_mode: str = "constant"

    @with_fast_paths
    def __call__(self, images: Array, generator: Generator) -> Array:
        """(N, C, H, W), any dtype -> new images.

        Raises:
            ValueError: "reflect" with padding not smaller than the image.
        """
        xp, P = array_module(images), self.padding
        N, _, H, W = images.shape
        if self.padding_mode == "reflect" and min(H, W) <= P:
            raise ValueError(f"reflection padding by {P} pixels needs images larger than {P}, got {H} x {W}; pad less")
        top, left = _integers(generator.uniform((2, N), device=device_of(images), axis=1), 2 * P + 1)
        padded = xp.pad(images, ((0, 0), (0, 0), (P, P), (P, P)), mode=self.padding_mode)
        # (N, C, H+2P, W+2P) -> every crop (N, C, 2P+1, 2P+1, H, W) -> one for each image (N, C, H, W)
        crops = sliding_windows(padded, (H, W), (2, 3))
        return crops[xp.arange(N), :, top, left]


@dataclass(frozen=True)
class Cutout:
    """Set a square of `size` x `size` pixels to 0, centred on a uniform random pixel: part of it may lie outside.

    In normalised images, as in the paper, 0 is the mean colour; in uint8 images, 0 is black.

    DeVries and Taylor 2017, arXiv:1708.04552.
    """

    size: int

    @with_fast_paths
    def __call__(self, images: Array, generator: Generator) -> Array:
        """(N, C, H, W), any dtype -> new images."""
        _, _, H, W = images.shape
        u = generator.uniform((2, len(images)), device=device_of(images), axis=1)
        top, left = _integers(u[0], H) - self.size // 2, _integers(u[1], W) - self.size // 2
        cut = _boxes(top, left, top + self.size, left + self.size, H, W)
        return array_module(images).where(cut, images.dtype.type(0), images)


@dataclass(frozen=True)
class RandomErasing:
    """Erase a rectangle of each image with probability `prob`.

    The area, as a fraction of the image, is uniform in `area`; log(height / width) is uniform between the logarithms of
    `aspect`. A rectangle larger than the image is cropped to the image; timm samples again up to ten times.
    The position of the rectangle is uniform within the image. A `StratifiedAssignment` samples the images to erase.

    `mode`, as in timm, is the fill: "pixel", normal noise; "rand", one normal value per channel; "const", zeros.

    Zhong, Zheng, Kang, Li, Yang 2017, arXiv:1708.04896.
    """

    prob: float
    mode: str = "pixel"
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    @with_fast_paths
    def __call__(self, images: Array, generator: Generator) -> Array:
        """Normalised images (N, C, H, W) floating-point -> new images."""
        xp = array_module(images)
        N, _, H, W = images.shape
        assignment = StratifiedAssignment(N, generator, device_of(images))
        rows, selected = assignment.interval(0, self.prob)
        u = assignment.uniform(4)[:, rows]
        area = H * W * (self.area[0] + (self.area[1] - self.area[0]) * u[0])
        ratio = xp.exp(log(self.aspect[0]) + (log(self.aspect[1]) - log(self.aspect[0])) * u[1])
        height = xp.minimum(xp.sqrt(area * ratio) + 0.5, H).astype(np.int64)
        width = xp.minimum(xp.sqrt(area / ratio) + 0.5, W).astype(np.int64)
        top, left = _integers(u[2], H - height + 1), _integers(u[3], W - width + 1)
        erased = _boxes(top, left, top + height, left + width, H, W) & over_pixels(selected)

        permuted = assignment.permute(images)
        permuted[rows] = xp.where(erased, self._noise(permuted[rows], assignment), permuted[rows])
        return assignment.unpermute(permuted)

    def _noise(self, images: Array, assignment: StratifiedAssignment) -> Array:
        """The fill of the rectangles, which broadcasts to the images and has their dtype."""
        _, C, H, W = images.shape
        if self.mode == "const":
            return array_module(images).zeros((1, 1, 1, 1), images.dtype)
        shape = (C, 1, 1) if self.mode == "rand" else (C, H, W)
        return normal(assignment.uniform(2, self.prob, shape)).astype(images.dtype)


@dataclass(frozen=True)
class Mix:
    """Mixup and CutMix: image and target i of a batch are mixed with image and target N - 1 - i.

    One λ ~ Beta(α, α) for the batch, with a weight w for each pixel, and x̄, t̄ the batch in reverse:

        x' = w x + (1 - w) x̄           t' = λ t + (1 - λ) t̄

        mixup    w = λ everywhere;  α is `mixup`
        CutMix   w = 0 in a box, 1 elsewhere;  α is `cutmix`. Height and width of the box are √(1 - λ) of the image's,
                 the centre of the box is a uniform random pixel. After clipping to the image, λ = 1 - box area / (H W)

    If both α > 0, a batch gets CutMix with probability `switch_prob`, else mixup. A batch stays unmixed with
    probability 1 - `prob`. `Mix` equals timm's Mixup in mode "batch". A part of a batch must be `mirrored`.

    Zhang et al. 2017, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    @property
    def cut_prob(self) -> float:
        """The probability of CutMix for a batch that is mixed."""
        return self.switch_prob if self.mixup and self.cutmix else float(bool(self.cutmix))

    @with_fast_paths
    def __call__(self, images: Array, targets: Array, generator: Generator) -> tuple[Array, Array]:
        """Images (N, C, H, W) floating-point and targets (N, K), as from `one_hot` -> new images and targets.

        Raises:
            ValueError: `generator.rows` is a part without the images N - 1 - i, or in another order.
        """
        if generator.rows is not None and not generator.rows.mirrored:
            raise ValueError(
                "Mix: a part of a batch must have image N - 1 - i for each image i, in reverse order: "
                f"split(N, parts, mirrored=True), got the images {generator.rows.ranges} of N = {generator.rows.count}"
            )
        H, W = images.shape[2:]
        weight, share = self.weights(H, W, generator, device_of(images))
        return blend(images, weight), blend(targets, share)

    def weights(self, H: int, W: int, generator: Generator, device: str) -> tuple[Array, Array]:
        """w (H, W) and λ (), float32, sampled on the device: reading them would synchronize."""
        u = generator.uniform((8,), device=device).astype(np.float64)
        xp = array_module(u)
        cut = u[0] < self.cut_prob
        kept = beta(xp.where(cut, self.cutmix or 1.0, self.mixup or 1.0), u[1:5])
        side = xp.sqrt(1 - kept)
        height, width = (side * H).astype(np.int64), (side * W).astype(np.int64)
        y, x = _integers(u[5], H), _integers(u[6], W)
        top, left = (y - height // 2).clip(0, H), (x - width // 2).clip(0, W)
        bottom, right = (y + (height + 1) // 2).clip(0, H), (x + (width + 1) // 2).clip(0, W)
        row, column = xp.arange(H)[:, None], xp.arange(W)
        box = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        outside = 1 - (bottom - top) * (right - left) / (H * W)

        mixed = u[7] < self.prob
        weight, share = xp.where(cut, ~box, kept), xp.where(cut, outside, kept)
        return xp.where(mixed, weight, 1).astype(np.float32), xp.where(mixed, share, 1).astype(np.float32)


def blend(x: Array, weight: Array) -> Array:
    """w x + (1 - w) x̄, with x̄ the batch in reverse; w broadcasts to x."""
    return (weight * x + (1 - weight) * x[::-1]).astype(x.dtype, copy=False)


def beta(alpha: Array, u: Array) -> Array:
    """Samples of Beta(α, α), α > 0, from uniform u (4, ...) in [0, 1), without rejection: four uniforms a sample.

        B = ½ + ½ √(1 - v₀^{1/(α+½)}) cos 2πu₁               ~ Beta(α+1, α+1):  the projection of a point in a disc
        λ = B v₂^{1/α} / (B v₂^{1/α} + (1 - B) v₃^{1/α})     ~ Beta(α, α),      vᵢ = 1 - uᵢ

    The second line applies Gamma(α) = Gamma(α+1) · v^{1/α} to X and Y in Beta = X / (X + Y). λ is computed with
    logarithms in float64: for small α the powers underflow.

    Devroye 1986, "Non-Uniform Random Variate Generation", chapter IX; the disc is from Ulrich 1984.
    """
    xp = array_module(u)
    v = 1 - u
    B = 0.5 + 0.5 * xp.sqrt(1 - v[0] ** (1 / (alpha + 0.5))) * xp.cos(2 * np.pi * u[1])
    log_odds = xp.log(B) - xp.log(1 - B) + (xp.log(v[2]) - xp.log(v[3])) / alpha
    return 1 / (1 + xp.exp((-log_odds).clip(-700, 700)))


def one_hot(labels: Array, classes: int, smoothing: float = 0.0) -> Array:
    """Labels (N,) as probabilities (N, K) float32, K = `classes`: 1 - s + s / K at the label, s / K elsewhere."""
    xp = array_module(labels)
    return ((labels[:, None] == xp.arange(classes)) * (1 - smoothing) + smoothing / classes).astype(np.float32)


def _integers(u: Array, stop: Array | int) -> Array:
    """Uniform integers from 0 to `stop` - 1, int64, from uniform u in [0, 1)."""
    xp = array_module(u)
    return xp.minimum(u * stop, stop - 1).astype(np.int64)  # u · stop may round up to `stop`


def _boxes(top: Array, left: Array, bottom: Array, right: Array, H: int, W: int) -> Array:
    """Masks of the pixels inside one box per image, four bounds (N,) -> (N, 1, H, W) bool."""
    xp = array_module(top)
    y, x = xp.arange(H)[:, None], xp.arange(W)
    top, left, bottom, right = map(over_pixels, (top, left, bottom, right))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


@dataclass(frozen=True)
class Augment:
    """All transforms of a run. A field has the name of its flag. 0 and None switch a transform off.

    Fields:
        hflip: probability of a horizontal flip.
        crop_padding, crop_padding_mode: see `ShiftedCrop`.
        aa: RandAugment in timm's notation, such as "rand-m9-mstd0.5-inc1".
        color_jitter: see `color_jitter` in colorjitter.py. With `aa`, both are applied; timm omits the jitter then.
        cutout: side of the square, in pixels.
        reprob, remode: see `RandomErasing`.
        mixup, cutmix, mixup_prob, mixup_switch_prob: see `Mix`.
        smoothing: label smoothing of the probabilities that `mixed` returns.
        mean: of each channel of the training images, with pixels in [0, 1]; the fill colour of RandAugment.
        scale, ratio, train_interpolation: of photos, see `RandomResizedCrop`.

    Raises:
        ValueError: a field is out of its range.
    """

    hflip: float = 0.5
    crop_padding: int = 4
    crop_padding_mode: str = "constant"
    aa: str | None = None
    color_jitter: str = "0"
    cutout: int = 0
    reprob: float = 0.0
    remode: str = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    smoothing: float = 0.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    train_interpolation: str = "random"

    def __post_init__(self) -> None:
        for name in ("hflip", "reprob", "mixup_prob", "mixup_switch_prob", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("crop_padding", "cutout", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be at least 0 (0: off), got {getattr(self, name)}")
        for name, known in (
            ("crop_padding_mode", ("constant", "reflect")),
            ("remode", ("pixel", "rand", "const")),
            ("train_interpolation", ("bilinear", "bicubic", "random")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        _ = self._rand_augment, self._color_jitter  # raises now if the notation is wrong

    @cached_property
    def _rand_augment(self) -> RandAugment | None:
        r, g, b = (min(255, round(255 * level)) for level in self.mean)
        return rand_augment(self.aa, (r, g, b)) if self.aa else None

    @cached_property
    def _color_jitter(self) -> ColorJitter | None:
        jitter = color_jitter(self.color_jitter)
        return None if jitter == ColorJitter() else jitter

    @property
    def mixes(self) -> bool:
        """True if mixup or CutMix is on: targets are probabilities then."""
        return bool(self.mixup or self.cutmix)

    def pixels(self, images: Array | Photos, generator: Generator) -> Array:
        """Images (N, C, H, W) uint8 -> images of the same shape and dtype; `aa` and `color_jitter` need C = 3.

        Photos become images of one size, by random resized crops.
        """
        if isinstance(images, Photos):
            images = RandomResizedCrop(self.scale, self.ratio, self.train_interpolation)(images, generator)
        if self.hflip:
            images = Flip(self.hflip)(images, generator)
        if self.crop_padding:
            images = ShiftedCrop(self.crop_padding, self.crop_padding_mode)(images, generator)
        if self._rand_augment:
            images = self._rand_augment(images, generator)
        if self._color_jitter:
            images = self._color_jitter(images, generator)
        return images

    def normalized(self, images: Array, generator: Generator) -> Array:
        """Normalised images (N, C, H, W) float32 -> images of the same shape and dtype."""
        if self.cutout:
            images = Cutout(self.cutout)(images, generator)
        if self.reprob:
            images = RandomErasing(self.reprob, self.remode)(images, generator)
        return images

    def mixed(self, images: Array, labels: Array, classes: int, generator: Generator) -> tuple[Array, Array]:
        """Images (N, C, H, W) float32 and labels (N,) int64 -> images, and probabilities (N, classes) float32."""
        targets = one_hot(labels, classes, self.smoothing)
        if not self.mixes:
            return images, targets
        return Mix(self.mixup, self.cutmix, self.mixup_prob, self.mixup_switch_prob)(images, targets, generator)


@dataclass(frozen=True)
class Transform:
    """The images and labels of a batch -> inputs and targets of the model: augmentation and normalisation.

    Fields:
        augment: the transforms.
        normalize: images (N, C, H, W) uint8 -> float32, from `Dataset.normalizer`.
        classes: the number of classes.
        generator: random numbers.
    """

    augment: Augment
    normalize: Callable[[Array], Array]
    classes: int
    generator: Generator

    def __call__(self, images: Array | Photos, labels: Array) -> tuple[Array, Array]:
        """Images (N, C, H, W) uint8, or photos, and labels (N,) int64 -> images (N, C, H, W) float32 and targets.

        The targets are the labels or, with mixup or CutMix, probabilities (N, classes) float32.
        """
        images = self.augment.pixels(images, self.generator)
        images = self.augment.normalized(self.normalize(images), self.generator)
        if not self.augment.mixes:
            return images, labels
        return self.augment.mixed(images, labels, self.classes, self.generator)
