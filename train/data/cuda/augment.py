"""L7: flip, crop, cutout and random erasing in one kernel each, mixup and CutMix in two."""

from math import ceil, log
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.fast_paths import fast_path_of
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import MAX_GRID, Kernel, on_gpu
from minigrad.kernels.cuda.random import next_draws
from train.data.augment import Cutout, Flip, Mix, RandomErasing, ShiftedCrop

THREADS = 256  # of a block
FILE = Path(__file__).with_name("augment.cu")
FLIP, CROP, CUTOUT, ERASE, MIX_WEIGHTS, MIX = (
    Kernel(FILE, name) for name in ("flip", "crop", "cutout", "erase", "mix_weights", "mix")
)


def fits(images: Array, dtype: Any) -> bool:
    """True for images (N, C, H, W) of this dtype on the GPU, which are not empty."""
    return bool(on_gpu(images) and images.dtype == dtype and images.ndim == 4 and 0 < images.size < len(images) << 30)


def run(kernel: Kernel, images: Array, *arguments: Any) -> Array:
    """Launch a kernel with one block for each image. Returns the new images."""
    xp = array_module(images)
    x, y = xp.ascontiguousarray(images), xp.empty(images.shape, images.dtype)
    kernel(len(x), THREADS, x, y, np.int32(x[0].size), *arguments)
    return y


def sides(images: Array) -> tuple[np.int32, np.int32]:
    """H and W."""
    return np.int32(images.shape[2]), np.int32(images.shape[3])


@fast_path_of(Flip.__call__, supports=lambda flip, images, generator: fits(images, np.uint8))
def flip(flip: Flip, images: Array, generator: Generator) -> Array:
    """New images, as from `Flip.__call__`."""
    return run(FLIP, images, np.int32(images.shape[3]), np.float32(flip.prob), *next_draws(generator, 1))


def can_crop(crop: ShiftedCrop, images: Array, generator: Generator) -> bool:
    """True for uint8 images on the GPU and a known padding mode. The reference raises the error of a reflection that is
    too wide."""
    known = crop.padding_mode == "constant" or (crop.padding_mode == "reflect" and crop.padding < min(images.shape[2:]))
    return fits(images, np.uint8) and known


@fast_path_of(ShiftedCrop.__call__, supports=can_crop)
def crop(crop: ShiftedCrop, images: Array, generator: Generator) -> Array:
    """New images, as from `ShiftedCrop.__call__`."""
    reflect = np.bool_(crop.padding_mode == "reflect")
    return run(CROP, images, *sides(images), np.int32(crop.padding), reflect, *next_draws(generator, 1))


@fast_path_of(Cutout.__call__, supports=lambda cutout, images, generator: fits(images, np.float32))
def cutout(cutout: Cutout, images: Array, generator: Generator) -> Array:
    """New images, as from `Cutout.__call__`."""
    return run(CUTOUT, images, *sides(images), np.int32(cutout.size), *next_draws(generator, 1))


@fast_path_of(RandomErasing.__call__, supports=lambda erasing, images, generator: fits(images, np.float32))
def erase(erasing: RandomErasing, images: Array, generator: Generator) -> Array:
    """New images, as from `RandomErasing.__call__`."""
    N, C, H, W = images.shape
    stop = erasing.prob * N
    (area, most), (ratio, highest) = erasing.area, map(log, erasing.aspect)
    ranges = map(np.float32, (area, most - area, ratio, highest - ratio))
    noise = {"pixel": C * H * W, "rand": C, "const": 0}[erasing.mode]  # samples for an image
    draws = next_draws(generator, 3 if noise else 2)
    return run(
        ERASE, images, *sides(images), np.float64(stop), np.int32(min(ceil(stop), N)), *ranges, np.int32(noise), *draws
    )


def can_mix(mix: Mix, images: Array, targets: Array, generator: Generator) -> bool:
    """True for float32 images and targets (N, K) on the GPU."""
    fit = fits(images, np.float32) and on_gpu(targets) and targets.dtype == np.float32 and targets.ndim == 2
    return bool(fit and len(images) == len(targets) <= MAX_GRID[1])


@fast_path_of(Mix.__call__, supports=can_mix)
def mix(mix: Mix, images: Array, targets: Array, generator: Generator) -> tuple[Array, Array]:
    """New images and targets, as from `Mix.__call__`."""
    xp, (N, C, H, W), K = array_module(images), images.shape, targets.shape[1]
    x, t = map(xp.ascontiguousarray, (images, targets))
    y, s, weights = (xp.empty(shape, np.float32) for shape in (x.shape, t.shape, (6,)))
    options = map(np.float64, (mix.mixup or 1, mix.cutmix or 1, mix.cut_prob, mix.prob))
    MIX_WEIGHTS(1, 1, weights, *sides(x), *options, *next_draws(generator, 1))
    sizes = map(np.int32, (N, C * H * W, H, W, K))
    MIX((ceil((C * H * W + K) / THREADS), ceil(N / 2)), THREADS, x, t, weights, y, s, *sizes)
    return y, s
