"""L7: RandAugment for whole batches: each image has `num_ops` ops done to it, drawn from fifteen.

Cubuk, Zoph, Shlens, Le 2019, arXiv:1909.13719, with the ops, their ranges and the notation of timm, such as
`rand-m9-mstd0.5-inc1`. Each op equals Pillow's on uint8, of which timm's are made, bit for bit.

One image at a time, as libraries do it, is too slow for NumPy and for a GPU; every op on every image does fifteen
times the work. Here each op works on a few images of the batch: see `Deal`. All shapes are known beforehand and nothing
waits for the device, so a CUDA graph can contain it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf, pi
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, device_of, scatter_add
from minigrad.random import Generator


class Deal:
    """Who in a batch of N is given what: each by lot, and the batch as a whole in even shares.

    The images are put in random order. The one at place r gets the position (r + u) / N, with one u for the batch,
    uniform in [0, 1). So every position is uniform in [0, 1): what goes to the positions from s to t goes to each image
    with probability t - s. But how many get it is known beforehand, to one: their places are among ⌊sN⌋ to ⌈tN⌉ - 1.
    Lots drawn for each image by itself would leave that number open, and with it the shape of every array.
    """

    def __init__(self, N: int, generator: Generator, device: str) -> None:
        lots = generator.uniform((N + 1,), device=device)
        xp = array_module(lots)
        number = xp.arange(N)
        keys = (lots[:N] * 2**24).astype(np.int64) * N + number  # no two are alike
        self.N = N
        self.place = (keys[:, None] > keys).sum(axis=1)  # (N,): a sort, which CuPy cannot do in a graph
        self.count = number + lots[N].astype(np.float64)  # (N,): r + u

    def slots(self, start: float, stop: float) -> tuple[slice, Array]:
        """The places that may have a position from `start` to `stop`, and which of them have one, (places,) bool."""
        places = slice(floor(start * self.N), ceil(stop * self.N))
        count = self.count[places]
        return places, (count >= start * self.N) & (count < stop * self.N)

    def put(self, images: Array) -> Array:
        """A copy of the images in the order of their places."""
        dealt = array_module(images).empty(images.shape, images.dtype)
        dealt[self.place] = images
        return dealt

    def back(self, dealt: Array) -> Array:
        """A copy in the order from which they came."""
        return dealt[self.place]


def over_pixels(x: Array) -> Array:
    """(N,) -> (N, 1, 1, 1): a number for each image, against its pixels."""
    return x[:, None, None, None]


def normal(u: Array) -> Array:
    """Standard normal numbers from uniform ones, (2, ...) -> (...): √(-2 ln(1 - u₀)) · cos 2πu₁ (Box, Muller 1958)."""
    xp = array_module(u)
    return xp.sqrt(-2 * xp.log(1 - u[0])) * xp.cos(2 * pi * u[1])


# Ops on colour: images (N, 3, H, W) uint8 and a number for each, (N,) -> new images. ----------------------------------


def invert(images: Array) -> Array:
    """255 - x."""
    return 255 - images


def solarize(images: Array, threshold: Array) -> Array:
    """255 - x where x is `threshold` or more, which is 0 to 256."""
    return array_module(images).where(images < over_pixels(threshold), images, 255 - images)


def solarize_add(images: Array, summand: Array) -> Array:
    """x + `summand`, at most 255, where x is below 128; the summand is an integer from 0 to 128."""
    xp = array_module(images)
    brighter = xp.minimum(images + over_pixels(summand), 255).astype(np.uint8)
    return xp.where(images < 128, brighter, images)


def posterize(images: Array, bits: Array) -> Array:
    """Only the highest `bits` bits of x, 0 to 8."""
    return images & over_pixels(256 - (1 << (8 - bits))).astype(np.uint8)


def autocontrast(images: Array) -> Array:
    """Each channel stretched: ⌊255 (x - least) / (greatest - least)⌋; one of a single level stays as it is."""
    xp = array_module(images)
    least, greatest = (f(axis=(2, 3), keepdims=True).astype(np.int64) for f in (images.min, images.max))
    scale = 255.0 / xp.maximum(greatest - least, 1)
    stretched = (images * scale + -least * scale).clip(0, 255).astype(np.uint8)  # in this order, as Pillow rounds
    return xp.where(greatest > least, stretched, images)


def equalize(images: Array) -> Array:
    """Each channel with levels that are about equally frequent.

    With h_v pixels at level v, n in all, and the greatest level v*:  step = ⌊(n - h_v*) / 255⌋, and

        x ↦ ⌊(⌊step / 2⌋ + Σ_{v<x} h_v) / step⌋, at most 255;   where step is 0, x stays as it is
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
    """How often each level occurs in each channel, (N, C, pixels) uint8 -> (N, C, 256) int32."""
    xp = array_module(x)
    N, C, _ = x.shape
    channel = xp.arange(N * C).reshape(N, C, 1)
    counts = xp.zeros((N * C * 256,), np.int32)
    scatter_add(counts, (channel * 256 + x).reshape(-1), xp.ones((x.size,), np.int32))
    return counts.reshape(N, C, 256)


def blend(degenerate: Array, images: Array, factor: Array) -> Array:
    """⌊d + factor · (x - d)⌋ within 0 to 255: 0 is all d, 1 is the image, more goes beyond it. In float32."""
    d = degenerate.astype(np.float32)
    return (d + over_pixels(factor).astype(np.float32) * (images - d)).clip(0, 255).astype(np.uint8)


def gray(images: Array) -> Array:
    """ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, in 16-bit fractions and rounded: (N, 3, H, W) -> (N, 1, H, W)."""
    r, g, b = (images[:, c : c + 1].astype(np.int32) for c in range(3))
    return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16


def brightness(images: Array, factor: Array) -> Array:
    """A blend with black."""
    return blend(array_module(images).zeros((1, 1, 1, 1), np.uint8), images, factor)


def contrast(images: Array, factor: Array) -> Array:
    """A blend with the mean of the gray image, rounded."""
    mean = gray(images).sum(axis=(1, 2, 3), keepdims=True) / max(images.shape[2] * images.shape[3], 1)
    return blend((mean + 0.5).astype(np.int64), images, factor)


def color(images: Array, factor: Array) -> Array:
    """A blend with the gray image: saturation."""
    return blend(gray(images), images, factor)


def sharpness(images: Array, factor: Array) -> Array:
    """A blend with a smoothed image: weights 5 at the centre and 1 around it, over 13; pixels at the border stay."""
    x = images.astype(np.int16)
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[..., 1:-1, 1:-1]
    smooth = images.copy()
    smooth[..., 1:-1, 1:-1] = (sums + 6) // 13  # rounded; there are no ties
    return blend(smooth, images, factor)


# Ops on the place of pixels: a number for each image (N,) -> matrices for `warp`, (N, 2, 3). --------------------------


def warp(images: Array, matrix: Array, fill: tuple[int, ...]) -> Array:
    """Affine maps, all images in one go: the pixel whose centre is (x, y) shows the image at A·(x, y, 1).

    Between four pixels by their distances, ⌊·⌋; outside the image `fill`, a level for each channel.
    Coordinates are in pixels from the corner at the top left, x to the right, y downwards.

    Shapes: images (N, C, H, W) uint8; matrix (N, 2, 3) float64, one A for each image.
    """
    xp = array_module(images)
    N, C, H, W = images.shape
    a = matrix[..., None, None]  # (N, 2, 3, 1, 1)
    X, Y = xp.arange(W) + 0.5, xp.arange(H)[:, None] + 0.5
    x, y = (a[:, i, 0] * X + a[:, i, 1] * Y + a[:, i, 2] for i in range(2))  # (N, H, W)
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)

    x, y = (x - 0.5).clip(0, W - 1), (y - 0.5).clip(0, H - 1)  # between the centres of pixels
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, bottom = xp.minimum(left + 1, W - 1), xp.minimum(top + 1, H - 1)
    dx, dy = x - left, y - top
    image = xp.arange(N)[:, None, None] * (H * W)
    corners = [image + (row * W + column) for row in (top, bottom) for column in (left, right)]

    moved = xp.empty(images.shape, np.uint8)
    for c in range(C):  # a plane at a time stays in the cache of a CPU
        plane = images[:, c].reshape(-1).astype(np.float64)
        v00, v01, v10, v11 = (xp.take(plane, corner) for corner in corners)
        above, below = v00 + (v01 - v00) * dx, v10 + (v11 - v10) * dx
        moved[:, c] = xp.where(inside, (above + (below - above) * dy).astype(np.uint8), np.uint8(fill[c]))
    return moved


def _matrix(like: Array, *entries: Any) -> Array:
    """Six entries, each a number or (N,) -> (N, 2, 3)."""
    xp = array_module(like)
    return xp.stack([xp.zeros_like(like) + entry for entry in entries], axis=1).reshape(len(like), 2, 3)


def shear_x(factor: Array, H: int, W: int) -> Array:
    """Rows slide, the more the further down."""
    return _matrix(factor, 1, factor, 0, 0, 1, 0)


def shear_y(factor: Array, H: int, W: int) -> Array:
    """Columns slide, the more the further right."""
    return _matrix(factor, 1, 0, 0, factor, 1, 0)


def translate_x(share: Array, H: int, W: int) -> Array:
    """To the left by a share of the width."""
    return _matrix(share, 1, 0, share * W, 0, 1, 0)


def translate_y(share: Array, H: int, W: int) -> Array:
    """Upwards by a share of the height."""
    return _matrix(share, 1, 0, 0, 0, 1, share * H)


def rotate(degrees: Array, H: int, W: int) -> Array:
    """Counter-clockwise about the centre. As in Pillow the angle is from 0° to 360°, and sin 30° exactly ½."""
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


def arguments(op: str, m: Array, sign: Array, increasing: bool) -> tuple[Array, ...]:
    """What an op is given beside the images at magnitude 10 m, (N,) float64; `sign` (N,) is -1 or 1.

    Not `increasing`: a factor of 1, which changes nothing, is at m = 1/2, and posterising and solarising are strongest
    at 0. Increasing: from nothing at 0 to the strongest at 1. (Translations, shears and rotations increase anyway.)
    """
    xp = array_module(m)
    match op:
        case "Rotate":
            return (sign * (m * 30),)  # degrees
        case "ShearX" | "ShearY":
            return (sign * (m * 0.3),)
        case "TranslateXRel" | "TranslateYRel":
            return (sign * (m * 0.45),)  # of the width or height
        case "Posterize":
            bits = xp.minimum((m * 4).astype(np.int64), 8)
            return (xp.maximum(4 - bits, 0) if increasing else bits,)
        case "Solarize":
            threshold = xp.minimum((m * 256).astype(np.int64), 256)
            return (256 - threshold if increasing else threshold,)
        case "SolarizeAdd":
            return (xp.minimum((m * 110).astype(np.int64), 128),)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return (xp.maximum(1 + sign * (m * 0.9), 0.1) if increasing else m * 1.8 + 0.1,)
    return ()


@dataclass(frozen=True)
class RandAugment:
    """Images (N, 3, H, W) uint8 -> the same with ops done to them; they are drawn anew for every image.

    Fields, with their letters in timm's notation:
        magnitude (m): how strong the ops are; 10 is their end.
        num_ops (n): so many ops for each image, one after another.
        prob (p): each is done with this probability.
        std (mstd): of the normal noise on the magnitude of each op; infinite (above 100): uniform from 0 to magnitude.
        highest (mmax): the noise does not lead above this, nor below 0.
        increasing (inc): every op is stronger at higher magnitudes.
        fill: the colour of what comes from outside the image; in timm the mean of the training images.

    Unlike timm's, the ops are dealt to the batch in even shares (`Deal`), and what is between pixels is always
    bilinear, where timm's training script draws between that and bicubic.
    """

    magnitude: float = 10
    num_ops: int = 2
    prob: float = 0.5
    std: float = 0.0
    highest: float = 10
    increasing: bool = False
    fill: tuple[int, int, int] = (128, 128, 128)

    def __call__(self, images: Array, generator: Generator) -> Array:
        """New images.

        Raises:
            ValueError: they are not (N, 3, H, W) uint8.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                "RandAugment: images must be (N, 3, H, W) uint8, red, green, blue from 0 to 255, "
                f"got {images.shape} {images.dtype}; it comes before normalisation"
            )
        for _ in range(self.num_ops):
            images = self._once(images, generator)
        return images

    def _once(self, images: Array, generator: Generator) -> Array:
        """One op for each image, or none."""
        xp = array_module(images)
        N, _, H, W = images.shape
        deal = Deal(N, generator, device_of(images))
        m, sign = self._strength(N, generator, device_of(images))
        dealt = deal.put(images)
        share = self.prob / (len(MATRICES) + len(COLOURS))

        moved, _ = deal.slots(0, share * len(MATRICES))
        matrix = shear_x(0 * m[moved], H, W)  # of no shear: where images stay
        for k, (name, entries) in enumerate(MATRICES.items()):
            places, mine = deal.slots(k * share, (k + 1) * share)
            changed = entries(*arguments(name, m[places], sign[places], self.increasing), H, W)
            matrix[places] = xp.where(mine[:, None, None], changed, matrix[places])
        dealt[moved] = warp(dealt[moved], matrix, self.fill)

        for k, (name, op) in enumerate(COLOURS.items(), len(MATRICES)):
            places, mine = deal.slots(k * share, (k + 1) * share)
            changed = op(dealt[places], *arguments(name, m[places], sign[places], self.increasing))
            dealt[places] = xp.where(over_pixels(mine), changed, dealt[places])
        return deal.back(dealt)

    def _strength(self, N: int, generator: Generator, device: str) -> tuple[Array, Array]:
        """Magnitudes over 10 and signs, (N,) float64."""
        u = generator.uniform((3, N), device=device).astype(np.float64)
        xp = array_module(u)
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
    """RandAugment in timm's notation: `rand`, then parts in any order, such as `rand-m9-n2-mstd0.5-inc1`.

    Raises:
        ValueError: a part is unknown, given twice, or its number is out of range.
    """
    head, *parts = text.split("-")
    if head != "rand":
        raise ValueError(f'the augmentation must begin with "rand", as in "rand-m9-mstd0.5-inc1", got "{text}"')
    given: dict[str, Any] = {}
    for part in parts:
        key, number = re.fullmatch(r"([a-z]*)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if key not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise ValueError(f'"{part}" in "{text}": a part is one of {known} with its number, as in "m9"')
        field, read = _FIELDS[key]
        if field in given:
            raise ValueError(f'"{text}" says {key} twice')
        try:
            given[field] = read(number)
        except ValueError:
            kind = {"n": "a whole number", "inc": "0 or 1"}.get(key, "a number")
            raise ValueError(f'"{part}" in "{text}": after {key} comes {kind}') from None
    result = RandAugment(**given, fill=fill)
    ranges = {
        "m, the magnitude, is from 0 to mmax, which is 10 if not given": 0 <= result.magnitude <= result.highest,
        "mmax is from 0 to 100": 0 <= result.highest <= 100,
        "n, ops for each image, is from 0 to 100": 0 <= result.num_ops <= 100,
        "p is a probability, from 0 to 1": 0 <= result.prob <= 1,
        "mstd is not negative": result.std >= 0,
    }
    for statement, holds in ranges.items():
        if not holds:
            raise ValueError(f'"{text}": {statement}')
    return result
