"""L7: RandAugment in one kernel: all ops of an image run in one thread block."""

from pathlib import Path

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.fast_paths import fast_path_of
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import Kernel, on_gpu
from minigrad.kernels.cuda.random import has_rows, next_draws, rows_of
from train.data.randaugment import COLOURS, LEVELS, MATRICES, RandAugment

OPS = (*MATRICES, *COLOURS)
THREADS = 256  # of a block: one for each level of a pixel
MAX_PIXELS = 1 << 23  # the sum of the levels of a gray image is an int
KERNEL = Kernel(
    Path(__file__).with_name("randaugment.cu"), "randaugment",
    OPS=",".join(OPS), LEVELS=",".join(str(LEVELS.get(op, 0)) for op in OPS),
)  # fmt: skip


def supports(augment: RandAugment, images: Array, generator: Generator) -> bool:
    """True for images on the GPU that `RandAugment` accepts, of 1 to 2²³ pixels, and at least one op."""
    known = on_gpu(images) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == 3
    fits = known and images.size and images[0, 0].size <= MAX_PIXELS
    return bool(fits and augment.num_ops > 0 and has_rows(generator, len(images)))


@fast_path_of(RandAugment.__call__, supports=supports)
def rand_augment(augment: RandAugment, images: Array, generator: Generator) -> Array:
    """New images, as from `RandAugment.__call__`."""
    xp = array_module(images)
    N, _, H, W = images.shape
    x, rounds = xp.ascontiguousarray(images), augment.num_ops
    y = xp.empty(x.shape, x.dtype)
    spare = xp.empty(x.shape, x.dtype) if rounds > 1 else None
    strength = map(np.float64, (augment.magnitude, augment.prob, augment.std, augment.highest))
    red, green, blue = augment.fill
    KERNEL(
        N, THREADS, x, y, spare, *map(np.int32, (H, W, rounds)), *strength, np.bool_(augment.increasing),
        np.uint32(red | green << 8 | blue << 16), *rows_of(generator, N), *next_draws(generator, 2 * rounds),
    )  # fmt: skip
    return y
