"""L7: RandAugment of batches: `num_ops` random ops per image, from a list of fifteen.

Cubuk, Zoph, Shlens, Le 2019, arXiv:1909.13719, with the ops, ranges and notation of timm, such as
`rand-m9-mstd0.5-inc1`. On uint8, each op equals the Pillow op that timm calls, bit for bit.

One image at a time, as in other libraries, is too slow in NumPy and on a GPU; every op on every image is fifteen times
the work. Here each op runs on a subset of the batch of known size: see `StratifiedAssignment`. No shape depends on the
data, except in a part of a batch, and nothing synchronizes with the GPU: a CUDA graph can contain RandAugment.

The code below is the reference implementation. On a GPU, RandAugment is one kernel: train/data/cuda/randaugment.cu.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf, pi
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, device_of, scatter_add, to_device
from minigrad.backend.batch import Rows
from minigrad.backend.fast_paths import with_fast_paths
from minigrad.backend.random import Generator


class StratifiedAssignment:
    """Stratified random assignment of operations to the N images of a batch.

    Independent sampling per image would make the number of images of an op random, and with it the shape of every
    array. So the images are permuted at random, and row r of the permuted batch gets the value (r + u) / N, with one
    uniform u in [0, 1) for the batch. The value of each image is uniform in [0, 1): it lies in the interval [s, t) with
    probability t - s. But the rows with a value in [s, t) are among the rows ⌊sN⌋ to ⌈tN⌉ - 1, known in advance.

    With `generator.rows`, a part of the batch, the whole batch is assigned, so that each image gets the same op in any
    division. The n images of the part are permuted among themselves, in the order of their rows r in the permuted
    batch. The number of images of an op in a part is random: the reference implementation has data-dependent shapes.

    Args:
        images: n, the number of images: of the part, or N.

    Raises:
        ValueError: the part has another number of images.
    """

    def __init__(self, images: int, generator: Generator, device: str) -> None:
        part = Rows(images, ((0, images),)) if generator.rows is None else generator.rows
        if len(part) != images:
            raise ValueError(f"generator.rows are {len(part)} images of a batch, but the transform got {images} images")
        self.N, self.generator, self.device = part.count, generator, device
        self.whole = images == self.N
        u = generator.uniform((self.N + 1,), device=device)
        xp = array_module(u)
        index = xp.arange(self.N)
        keys = (u[: self.N] * 2**24).astype(np.int64) * self.N + index  # unique
        own = keys if self.whole else keys[to_device(part.index, device)]
        row = (own[:, None] > keys).sum(axis=1)  # (n,): r, the rank; a CUDA graph cannot contain CuPy's sort
        self.row = row if self.whole else (own[:, None] > own).sum(axis=1)  # (n,): the row in the permuted part
        self.batch_row = index if self.whole else self.permute(row)  # (n,): r of the rows of the permuted part
        self.value = self.batch_row + u[self.N].astype(np.float64)  # (n,): r + u

    def interval(self, start: float, stop: float) -> tuple[slice, Array]:
        """The slice of rows that may have a value in [start, stop), and the mask of those that have, (rows,) bool."""
        rows = slice(self._rows_below(floor(start * self.N)), self._rows_below(ceil(stop * self.N)))
        value = self.value[rows]
        return rows, (value >= start * self.N) & (value < stop * self.N)

    def _rows_below(self, r: int) -> int:
        """The number of rows of this part that are below row r of the permuted batch."""
        return r if self.whole else int((self.batch_row < r).sum())

    def uniform(self, k: int, stop: float = 1.0, shape: tuple[int, ...] = ()) -> Array:
        """Uniform values for the rows that may have a value in [0, stop), (k, rows, *shape) float32."""
        generator, rows = self.generator, ceil(stop * self.N)
        if self.whole:
            return generator.uniform((k, rows, *shape), device=self.device)
        own = self.batch_row[: self._rows_below(rows)]
        if not shape:
            return generator.uniform((k, rows), device=self.device)[:, own]
        # Noise: draw for these rows only, as for the images of a part of a batch of `rows` images.
        generator = Generator(generator.seed, generator.next_draw())
        generator.rows = Rows(rows, tuple((r, r + 1) for r in own.tolist()))
        return generator.uniform((k, len(own), *shape), device=self.device, axis=1)

    def permute(self, images: Array) -> Array:
        """A permuted copy of the images."""
        permuted = array_module(images).empty(images.shape, images.dtype)
        permuted[self.row] = images
        return permuted

    def unpermute(self, permuted: Array) -> Array:
        """A copy in the original order."""
        return permuted[self.row]


def require_rgb(images: Array, transform: str) -> None:
    """Raise ValueError unless the images are (N, 3, H, W) uint8."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{transform}: images must be (N, 3, H, W) uint8, RGB from 0 to 255, "
            f"got {images.shape} {images.dtype}; apply {transform} before normalisation"
        )


def over_pixels(x: Array) -> Array:
    """(N,) -> (N, 1, 1, 1): one value per image, which broadcasts over channels and pixels."""
    return x[:, None, None, None]


def normal(u: Array) -> Array:
    """Standard normal samples from uniform u, (2, ...) -> (...): √(-2 ln(1 - u₀)) · cos 2πu₁ (Box, Muller 1958)."""
    xp = array_module(u)
    return xp.sqrt(-2 * xp.log(1 - u[0])) * xp.cos(2 * pi * u[1])


# Colour ops: images (N, 3, H, W) uint8 and one value per image, (N,) -> new images. -----------------------------------


def invert(images: Array) -> Array:
    """255 - x."""
    return 255 - images


def solarize(images: Array, threshold: Array) -> Array:
    """255 - x where x ≥ `threshold`, which is 0 to 256."""
    return array_module(images).where(images < over_pixels(threshold), images, 255 - images)


def solarize_add(images: Array, summand: Array) -> Array:
    """min(x + `summand`, 255) where x < 128; the summand is an integer from 0 to 128."""
    xp = array_module(images)
    brighter = xp.minimum(images + over_pixels(summand), 255).astype(np.uint8)
    return xp.where(images < 128, brighter, images)


def posterize(images: Array, bits: Array) -> Array:
    """Keep the `bits` (0 to 8) highest bits."""
    return images & over_pixels(256 - (1 << (8 - bits))).astype(np.uint8)


def autocontrast(images: Array) -> Array:
    """⌊255 (x - min) / (max - min)⌋ per channel; a constant channel is unchanged."""
    xp = array_module(images)
    low, high = (f(axis=(2, 3), keepdims=True).astype(np.int64) for f in (images.min, images.max))
    scale = 255.0 / xp.maximum(high - low, 1)
    stretched = (images * scale + -low * scale).clip(0, 255).astype(np.uint8)  # this order rounds as Pillow does
    return xp.where(high > low, stretched, images)


def equalize(images: Array) -> Array:
    """Histogram equalization of each channel.

    With h_v pixels of value v, n pixels in all, and v* the largest value:  step = ⌊(n - h_v*) / 255⌋, and

        x ↦ min(⌊(⌊step / 2⌋ + Σ_{v<x} h_v) / step⌋, 255);   x ↦ x if step = 0
    """
    xp = array_module(images)
    N, C, H, W = images.shape
    x = images.reshape(N, C, H * W)  # (N, C, H, W) -> (N, C, pixels)
    h = _histogram(x)
    below = h.cumsum(axis=2) - h
    step = (H * W - (images == images.max(axis=(2, 3), keepdims=True)).sum(axis=(2, 3)))[..., None] // 255  # (N, C, 1)
    table = xp.minimum((step // 2 + below) // xp.maximum(step, 1), 255)
    table = xp.where(step > 0, table, xp.arange(256)).astype(np.uint8)
    return xp.take_along_axis(table, x.astype(np.int64), axis=2).reshape(images.shape)


def _histogram(x: Array) -> Array:
    """The histogram of each channel, (N, C, pixels) uint8 -> (N, C, 256) int32."""
    xp = array_module(x)
    N, C, _ = x.shape
    channel = xp.arange(N * C).reshape(N, C, 1)
    counts = xp.zeros((N * C * 256,), np.int32)
    scatter_add(counts, (channel * 256 + x).reshape(-1), xp.ones((x.size,), np.int32))
    return counts.reshape(N, C, 256)


def blend(degenerate: Array, images: Array, factor: Array) -> Array:
    """⌊d + factor · (x - d)⌋, clipped to [0, 255]: d = `degenerate`, x = `images`. Factors above 1 extrapolate."""
    d = degenerate.astype(np.float32)
    return (d + over_pixels(factor).astype(np.float32) * (images - d)).clip(0, 255).astype(np.uint8)


def gray(images: Array) -> Array:
    """ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, in 16-bit fixed point: (N, 3, H, W) -> (N, 1, H, W)."""
    r, g, b = (images[:, c : c + 1].astype(np.int32) for c in range(3))
    return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16


def brightness(images: Array, factor: Array) -> Array:
    """Blend with black."""
    return blend(array_module(images).zeros((1, 1, 1, 1), np.uint8), images, factor)


def contrast(images: Array, factor: Array) -> Array:
    """Blend with the rounded mean of the gray image."""
    mean = gray(images).sum(axis=(1, 2, 3), keepdims=True) / max(images.shape[2] * images.shape[3], 1)
    return blend((mean + 0.5).astype(np.int64), images, factor)


def color(images: Array, factor: Array) -> Array:
    """Blend with the gray image: saturation."""
    return blend(gray(images), images, factor)


def sharpness(images: Array, factor: Array) -> Array:
    """Blend with the image smoothed by the 3 x 3 kernel (1 1 1, 1 5 1, 1 1 1) / 13; border pixels are unchanged."""
    x = images.astype(np.int16)
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[..., 1:-1, 1:-1]
    smooth = images.copy()
    smooth[..., 1:-1, 1:-1] = (sums + 6) // 13  # rounds to nearest; 13 is odd, so there are no ties
    return blend(smooth, images, factor)


# Geometric ops: one value per image (N,) -> matrices for `warp`, (N, 2, 3). -------------------------------------------


def warp(images: Array, matrix: Array, fill: tuple[int, ...]) -> Array:
    """Affine transform of each image: the output pixel with centre (x, y) is the input at A·(x, y, 1).

    Bilinear interpolation, rounded down; outside the image `fill`, one value per channel.
    Coordinates are in pixels from the top left corner, x to the right, y downwards.

    Shapes: images (N, C, H, W) uint8; matrix (N, 2, 3) float64, one A per image.
    """
    xp = array_module(images)
    N, C, H, W = images.shape
    a = matrix[..., None, None]  # (N, 2, 3, 1, 1)
    X, Y = xp.arange(W) + 0.5, xp.arange(H)[:, None] + 0.5
    x, y = (a[:, i, 0] * X + a[:, i, 1] * Y + a[:, i, 2] for i in range(2))  # (N, H, W)
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)

    x, y = (x - 0.5).clip(0, W - 1), (y - 0.5).clip(0, H - 1)  # pixel centres become integers
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, bottom = xp.minimum(left + 1, W - 1), xp.minimum(top + 1, H - 1)
    dx, dy = x - left, y - top
    image = xp.arange(N)[:, None, None] * (H * W)
    corners = [image + (row * W + column) for row in (top, bottom) for column in (left, right)]

    warped = xp.empty(images.shape, np.uint8)
    for c in range(C):  # one channel at a time fits into the CPU cache
        plane = images[:, c].reshape(-1).astype(np.float64)
        v00, v01, v10, v11 = (xp.take(plane, corner) for corner in corners)
        above, below = v00 + (v01 - v00) * dx, v10 + (v11 - v10) * dx
        warped[:, c] = xp.where(inside, (above + (below - above) * dy).astype(np.uint8), np.uint8(fill[c]))
    return warped


def _matrix(like: Array, *entries: Any) -> Array:
    """Six entries, each a scalar or (N,) -> (N, 2, 3)."""
    xp = array_module(like)
    return xp.stack([xp.zeros_like(like) + entry for entry in entries], axis=1).reshape(len(like), 2, 3)


def shear_x(factor: Array, H: int, W: int) -> Array:
    """Shift each row in proportion to y."""
    return _matrix(factor, 1, factor, 0, 0, 1, 0)


def shear_y(factor: Array, H: int, W: int) -> Array:
    """Shift each column in proportion to x."""
    return _matrix(factor, 1, 0, 0, factor, 1, 0)


def translate_x(share: Array, H: int, W: int) -> Array:
    """Shift to the left by a fraction of the width."""
    return _matrix(share, 1, 0, share * W, 0, 1, 0)


def translate_y(share: Array, H: int, W: int) -> Array:
    """Shift upwards by a fraction of the height."""
    return _matrix(share, 1, 0, 0, 0, 1, share * H)


def rotate(degrees: Array, H: int, W: int) -> Array:
    """Rotate counter-clockwise about the centre. As in Pillow, the angle is mod 360°, and sin 30° is exactly ½."""
    xp = array_module(degrees)
    cos, sin = (f(degrees % 360 * (pi / 180)).round(15) for f in (xp.cos, xp.sin))
    cx, cy = W / 2, H / 2
    return _matrix(degrees, cos, -sin, -cos * cx + sin * cy + cx, sin, cos, -sin * cx - cos * cy + cy)


MATRICES: dict[str, Callable[..., Array]] = {
    "Rotate": rotate,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
}
COLOURS: dict[str, Callable[..., Array]] = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
"""The ops, by timm's names."""


LEVELS: dict[str, float] = {
    "Rotate": 30,  # degrees
    "ShearX": 0.3,
    "ShearY": 0.3,
    "TranslateXRel": 0.45,  # of the width
    "TranslateYRel": 0.45,  # of the height
    "Posterize": 4,  # bits
    "Solarize": 256,
    "SolarizeAdd": 110,
    "Color": 0.9,
    "Contrast": 0.9,
    "Brightness": 0.9,
    "Sharpness": 0.9,
}
"""How much the argument of an op changes from magnitude 0 to 10, for the ops with an argument."""


def arguments(op: str, m: Array, sign: Array, increasing: bool) -> tuple[Array, ...]:
    """The arguments of an op besides the images, at magnitude 10 m, (N,) float64; `sign` (N,) is -1 or 1.

    With `increasing`, each op gets stronger with m. Without: the factors of colour ops are 1, no change, at m = 1/2,
    and posterize and solarize are strongest at m = 0. Geometric ops get stronger with m in both cases.
    """
    xp, level = array_module(m), LEVELS.get(op, 0)
    match op:
        case "AutoContrast" | "Equalize" | "Invert":
            return ()
        case "Posterize":
            bits = xp.minimum((m * level).astype(np.int64), 8)
            return (xp.maximum(level - bits, 0) if increasing else bits,)
        case "Solarize":
            threshold = xp.minimum((m * level).astype(np.int64), level)
            return (level - threshold if increasing else threshold,)
        case "SolarizeAdd":
            return (xp.minimum((m * level).astype(np.int64), 128),)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return (xp.maximum(1 + sign * (m * level), 0.1) if increasing else m * (2 * level) + 0.1,)
    return (sign * (m * level),)


@dataclass(frozen=True)
class RandAugment:
    """Images (N, 3, H, W) uint8 -> images of the same shape and dtype, with random ops applied to each.

    Fields, with their letters in timm's notation:
        magnitude (m): strength of the ops, usually 0 to 10.
        num_ops (n): number of ops per image, one after another.
        prob (p): probability of applying each op.
        std (mstd): standard deviation of the magnitude; inf (above 100 in the notation): uniform from 0 to magnitude.
        highest (mmax): the magnitude is clipped to 0 to `highest`.
        increasing (inc): all ops get stronger with the magnitude.
        fill: colour outside the image; in timm the mean colour of the training images.

    Differences from timm: ops are assigned to the batch by `StratifiedAssignment`; interpolation is always bilinear,
    where timm's training script chooses bilinear or bicubic at random.
    """

    magnitude: float = 10
    num_ops: int = 2
    prob: float = 0.5
    std: float = 0.0
    highest: float = 10
    increasing: bool = False
    fill: tuple[int, int, int] = (128, 128, 128)

    @with_fast_paths
    def __call__(self, images: Array, generator: Generator) -> Array:
        """New images.

        Raises:
            ValueError: the images are not (N, 3, H, W) uint8.
        """
        require_rgb(images, "RandAugment")
        for _ in range(self.num_ops):
            images = self._once(images, generator)
        return images

    def _once(self, images: Array, generator: Generator) -> Array:
        """Apply one op or none to each image."""
        xp = array_module(images)
        N, _, H, W = images.shape
        assignment = StratifiedAssignment(N, generator, device_of(images))
        m, sign = self._strength(assignment.uniform(3))
        permuted = assignment.permute(images)
        p = self.prob / (len(MATRICES) + len(COLOURS))  # of each op

        warped, _ = assignment.interval(0, p * len(MATRICES))
        matrix = shear_x(0 * m[warped], H, W)  # the identity
        for k, (name, entries) in enumerate(MATRICES.items()):
            rows, selected = assignment.interval(k * p, (k + 1) * p)
            changed = entries(*arguments(name, m[rows], sign[rows], self.increasing), H, W)
            matrix[rows] = xp.where(selected[:, None, None], changed, matrix[rows])
        permuted[warped] = warp(permuted[warped], matrix, self.fill)

        for k, (name, op) in enumerate(COLOURS.items(), len(MATRICES)):
            rows, selected = assignment.interval(k * p, (k + 1) * p)
            changed = op(permuted[rows], *arguments(name, m[rows], sign[rows], self.increasing))
            permuted[rows] = xp.where(over_pixels(selected), changed, permuted[rows])
        return assignment.unpermute(permuted)

    def _strength(self, u: Array) -> tuple[Array, Array]:
        """Magnitudes / 10 and signs, (N,) float64, from uniform u (3, N)."""
        xp, u = array_module(u), u.astype(np.float64)
        magnitude = u[1] * self.magnitude if self.std == inf else self.magnitude + self.std * normal(u[1:])
        return magnitude.clip(0, self.highest) / 10, xp.where(u[0] < 0.5, -1.0, 1.0)


_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "m": ("magnitude", float),
    "n": ("num_ops", int),
    "p": ("prob", float),
    "mstd": ("std", lambda text: inf if float(text) > 100 else float(text)),
    "mmax": ("highest", float),
    "inc": ("increasing", lambda text: bool(("0", "1").index(text))),
}


def rand_augment(text: str, fill: tuple[int, int, int] = (128, 128, 128)) -> RandAugment:
    """Parse timm's notation: `rand`, then parts in any order, such as `rand-m9-n2-mstd0.5-inc1`.

    Raises:
        ValueError: a part is unknown, given twice, or its value is out of range.
    """
    head, *parts = text.split("-")
    if head != "rand":
        raise ValueError(f'the augmentation must begin with "rand", as in "rand-m9-mstd0.5-inc1", got "{text}"')
    given: dict[str, Any] = {}
    for part in parts:
        key, number = re.fullmatch(r"([a-z]*)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if key not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise ValueError(f'"{part}" in "{text}": a part is one of {known} with its value, as in "m9"')
        field, read = _FIELDS[key]
        if field in given:
            raise ValueError(f'"{text}" has {key} twice')
        try:
            given[field] = read(number)
        except ValueError:
            kind = {"n": "a whole number", "inc": "0 or 1"}.get(key, "a number")
            raise ValueError(f'"{part}" in "{text}": {key} must be followed by {kind}') from None
    result = RandAugment(**given, fill=fill)
    ranges = {
        "m, the magnitude, must be from 0 to mmax, by default 10": 0 <= result.magnitude <= result.highest,
        "mmax must be from 0 to 100": 0 <= result.highest <= 100,
        "n, the number of ops per image, must be from 0 to 100": 0 <= result.num_ops <= 100,
        "p, a probability, must be from 0 to 1": 0 <= result.prob <= 1,
        "mstd must not be negative": result.std >= 0,
    }
    for requirement, holds in ranges.items():
        if not holds:
            raise ValueError(f'"{text}": {requirement}')
    return result
