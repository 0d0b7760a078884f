"""L7: colour jitter of batches: random brightness, contrast, saturation and hue, in random order.

The ops and ranges are those of torchvision's ColorJitter, which timm uses. Each op equals torchvision's op on a Pillow
image bit for bit; on a tensor of uint8, torchvision rounds differently.

Each image has its own order of the four ops. In a batch, every op would have to run at each of the four positions, on
all images. But brightness, contrast and saturation are blends with another image, and a blend with factor 1 is the
identity. So for all orders together, three blends, one change of hue and three more blends suffice: a blend that
belongs to the other side of the change of hue gets the factor 1.

No shape depends on the data, and nothing synchronizes with the GPU: a CUDA graph can contain colour jitter.
"""

from dataclasses import dataclass

import numpy as np

from minigrad.backend import Array, array_module, device_of
from minigrad.backend.random import Generator
from train.data.randaugment import blend, gray, over_pixels, require_rgb


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue of each image by random amounts, in random order.

    The factors of brightness, contrast and saturation are uniform in [max(0, 1 - s), 1 + s], with s the field; the hue
    is shifted by a uniform fraction of the colour circle in [-hue, hue]. 0 switches an op off. The 24 orders have the
    same probability.

    Raises:
        ValueError: a field is negative or infinite, or `hue` is above 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"colour jitter: {name} must be at least 0 (0: off), got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"colour jitter: hue must be from 0 (off) to 0.5, half the colour circle, got {self.hue}")

    def __call__(self, images: Array, generator: Generator) -> Array:
        """(N, 3, H, W) uint8 -> new images.

        Raises:
            ValueError: the images are not (N, 3, H, W) uint8.
        """
        require_rgb(images, "ColorJitter")
        u = generator.uniform((5, len(images)), device=device_of(images), axis=1).astype(np.float64)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [1 + s * u[i] - min(s, 1) * (1 - u[i]) for i, s in enumerate(strengths)]
        order = (24 * u[4]).astype(np.int64)
        return jitter(images, factors, self.hue * (2 * u[3] - 1) if self.hue else None, order)


def jitter(images: Array, factors: list[Array], shift: Array | None, order: Array) -> Array:
    """Images (N, 3, H, W) uint8 with the ops of `ColorJitter` in a given order -> new images.

    Args:
        factors: of brightness, contrast and saturation, each (N,) float64.
        shift: the fraction of the colour circle by which the hue is shifted, (N,) float64; None: unchanged.
        order: (N,) int64, 0 to 23. The hue changes after ⌊order / 6⌋ of the blends, whose order is
            `permutation(order % 6)`.
    """
    xp, before = array_module(images), order // 6
    ops = permutation(order % 6)
    blends = list(zip(ops, xp.take_along_axis(xp.stack(factors), xp.stack(ops), axis=0), strict=True))
    for i, (op, factor) in enumerate(blends):
        images = blend_with(op, images, factor if shift is None else xp.where(i < before, factor, 1))
    if shift is None:
        return images
    images = shift_hue(images, shift)
    for i, (op, factor) in enumerate(blends):
        images = blend_with(op, images, xp.where(i < before, 1, factor))
    return images


def permutation(index: Array) -> tuple[Array, Array, Array]:
    """Permutation number `index`, 0 to 5, of 0, 1, 2 in lexicographic order."""
    first, second = index // 2, index % 2
    second = second + (second >= first)  # of the two that are left
    return first, second, 3 - first - second


def blend_with(op: Array, images: Array, factor: Array) -> Array:
    """Blend with black (`op` 0: brightness), with the rounded mean of the gray image (1: contrast), or with the gray
    image (2: saturation); op and factor (N,)."""
    xp, grays = array_module(images), gray(images)
    mean = grays.sum(axis=(1, 2, 3), keepdims=True) / max(images.shape[2] * images.shape[3], 1)
    op = over_pixels(op)
    return blend(xp.where(op == 2, grays, xp.where(op == 1, (mean + 0.5).astype(np.int32), 0)), images, factor)


def shift_hue(images: Array, shift: Array) -> Array:
    """Shift the hue by a fraction of the colour circle, (N,) float64 from -0.5 to 0.5, in steps of 1/255."""
    h, s, v = rgb_to_hsv(images)
    steps = (shift * 255).astype(np.int64)[:, None, None]
    return hsv_to_rgb(((h + steps) % 256).astype(np.uint8), s, v)


def rgb_to_hsv(images: Array) -> tuple[Array, Array, Array]:
    """(N, 3, H, W) uint8 -> hue, saturation and value, each (N, H, W) uint8.  Smith 1978.

        v = max(r, g, b),   c = v - min(r, g, b),   s = ⌊255 c / v⌋
        h = ⌊255 · (k/6 mod 1)⌋,    k = (g - b)/c if v = r;  2 + (b - r)/c if v = g;  4 + (r - g)/c if v = b

    Types and order of the operations are Pillow's, and so are the rounding errors.
    """
    xp = array_module(images)
    v = images.max(axis=1)
    chroma = (v - images.min(axis=1)).astype(np.float32)
    r, g, b = ((v - images[:, c]) / xp.maximum(chroma, 1) for c in range(3))  # (v - r) / c, float32
    k = xp.where(r == 0, b - g, xp.where(g == 0, 2 + r.astype(np.float64) - b, 4 + g.astype(np.float64) - r))
    turn = ((k.astype(np.float32).astype(np.float64) / 6 + 1) % 1).astype(np.float32)
    h, s = ((255 * x.astype(np.float64)).astype(np.uint8) for x in (turn, chroma / xp.maximum(v, np.uint8(1))))
    return h, s, v


def hsv_to_rgb(h: Array, s: Array, v: Array) -> Array:
    """Hue, saturation and value, each (N, H, W) uint8 -> (N, 3, H, W) uint8.  Smith 1978, with Pillow's rounding.

    With 6 h / 255 = i + f and σ = s / 255:  p = v (1 - σ), q = v (1 - σ f), t = v (1 - σ (1 - f)), and

        (r, g, b) = (v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)    for i = 0, ..., 5
    """
    xp = array_module(h)
    sixths = h * 6.0 / 255.0
    i = sixths.astype(np.int64)
    f, sigma = ((x.astype(np.float32).astype(np.float64)) for x in (sixths - i, s / 255.0))
    p, q, t = ((v * (1 - sigma * x) + 0.5).astype(np.uint8) for x in (1, f, 1 - f))
    entries = xp.stack([(i + first) % 6 for first in (0, 4, 2)], axis=1)  # of r, g and b in the table
    return xp.take_along_axis(xp.stack([v, q, p, p, t, v], axis=1), entries, axis=1)


def color_jitter(text: str) -> ColorJitter:
    """Parse timm's argument: one number for brightness, contrast and saturation, or three or four separated by commas,
    the fourth for hue: `0.4` or `0.4,0.4,0.4,0.1`.

    Raises:
        ValueError: the text is something else, or a number is out of range.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3, 4):
        raise ValueError(
            "color_jitter must be one number for brightness, contrast and saturation, as in 0.4, or three or four, "
            f'the fourth for hue, as in 0.4,0.4,0.4,0.1, got "{text}"'
        )
    return ColorJitter(*(numbers * 3 if len(numbers) == 1 else numbers))
