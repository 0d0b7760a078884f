"""L7: flip, crop, cutout and random erasing in one kernel each, mixup and CutMix in two."""

from math import ceil, log
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.fast_paths import fast_path_of
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import MAX_GRID, Kernel, on_gpu
from minigrad.kernels.cuda.random import has_rows, next_draws, rows_of
from train.data.augment import Cutout, Flip, Mix, RandomErasing, ShiftedCrop

THREADS = 256  # of a block
FILE = Path(__file__).with_name("augment.cu")
FLIP, CROP, CUTOUT, ERASE, MIX_WEIGHTS, MIX = (
    Kernel(FILE, name) for name in ("flip", "crop", "cutout", "erase", "mix_weights", "mix")
)


def fits(images: Array, dtype: Any, generator: Generator) -> bool:
    """True for images (N, C, H, W) of this dtype on the GPU, which are not empty, and random numbers for N images."""
    known = on_gpu(images) and images.dtype == dtype and images.ndim == 4
    return bool(known and 0 < images.size < len(images) << 30 and has_rows(generator, len(images)))


def run(kernel: Kernel, images: Array, *arguments: Any, generator: Generator, draws: int = 1) -> Array:
    """Launch a kernel with one block for each image, and the generator's next draws. Returns the new images."""
    xp = array_module(images)
    x, y = xp.ascontiguousarray(images), xp.empty(images.shape, images.dtype)
    part = rows_of(generator, len(x))
    kernel(len(x), THREADS, x, y, np.int32(x[0].size), *arguments, *part, *next_draws(generator, draws))
    return y


def sides(images: Array) -> tuple[np.int32, np.int32]:
    """H and W."""
    return np.int32(images.shape[2]), np.int32(images.shape[3])


@fast_path_of(Flip.__call__, supports=lambda flip, images, generator: fits(images, np.uint8, generator))
def flip(flip: Flip, images: Array, generator: Generator) -> Array:
    """New images, as from `Flip.__call__`."""
    return run(FLIP, images, np.int32(images.shape[3]), np.float32(flip.prob), generator=generator)


def can_crop(crop: ShiftedCrop, images: Array, generator: Generator) -> bool:
    """True for uint8 images on the GPU and a known padding mode. The reference raises the error of a reflection that is
    too wide."""
    known = crop.padding_mode == "constant" or (crop.padding_mode == "reflect" and crop.padding < min(images.shape[2:]))
    return fits(images, np.uint8, generator) and known


@fast_path_of(ShiftedCrop.__call__, supports=can_crop)
def crop(crop: ShiftedCrop, images: Array, generator: Generator) -> Array:
    """New images, as from `ShiftedCrop.__call__`."""
    reflect = np.bool_(crop.padding_mode == "reflect")
    return run(CROP, images, *sides(images), np.int32(crop.padding), reflect, generator=generator)


@fast_path_of(Cutout.__call__, supports=lambda cutout, images, generator: fits(images, np.float32, generator))
def cutout(cutout: Cutout, images: Array, generator: Generator) -> Array:
    """New images, as from `Cutout.__call__`."""
    return run(CUTOUT, images, *sides(images), np.int32(cutout.size), generator=generator)


@fast_path_of(RandomErasing.__call__, supports=lambda erasing, images, generator: fits(images, np.float32, generator))
def erase(erasing: RandomErasing, images: Array, generator: Generator) -> Array:
    """New images, as from `RandomErasing.__call__`."""
    (N, C, H, W), rows = images.shape, generator.rows
    count = N if rows is None else rows.count
    stop = erasing.prob * count
    (area, most), (ratio, highest) = erasing.area, map(log, erasing.aspect)
    ranges = map(np.float32, (area, most - area, ratio, highest - ratio))
    noise = {"pixel": C * H * W, "rand": C, "const": 0}[erasing.mode]  # samples for an image
    return run(
        ERASE, images, *sides(images), np.float64(stop), np.int32(min(ceil(stop), count)), *ranges, np.int32(noise),
        generator=generator, draws=3 if noise else 2,
    )  # fmt: skip


def can_mix(mix: Mix, images: Array, targets: Array, generator: Generator) -> bool:
    """True for float32 images and targets (N, K) on the GPU: a batch, or a part that has the partner of each image."""
    fit = fits(images, np.float32, generator) and on_gpu(targets) and targets.dtype == np.float32 and targets.ndim == 2
    partners = generator.rows is None or generator.rows.mirrored
    return bool(fit and partners and len(images) == len(targets) <= MAX_GRID[1])


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
