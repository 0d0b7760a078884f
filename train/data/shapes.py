"""L7: the dataset `shapes`: ten classes of 32 x 32 colour images, generated from formulas, without download.

Each class is a figure with a signed distance function d(u, v): negative inside, positive outside. For antialiasing, a
pixel is blended with the figure's colour by the covered fraction of the pixel, 1/2 - d for a straight edge at a
distance of d pixels. Position, size, rotation and colours are random and independent of the class. The figure is always
lighter than the background, and rotations are small: otherwise a small transformer needs several times as many images.
"""

from collections.abc import Callable

import numpy as np

from minigrad.backend.random import Generator
from train.data.dataset import Dataset, Split

SIZE = 32
TRAIN, TEST = 10_000, 2_000  # images
TRAIN_SEED, TEST_SEED = 2**63, 2**63 + 1  # constant, and different from the seeds of every run

Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""d(u, v) in the coordinates of the figure: u to the right, v upwards, the figure within the unit circle."""


def load(train: int = TRAIN, test: int = TEST) -> Dataset:
    """The first `train` and `test` images. The classes alternate, so that every prefix is balanced."""
    return Dataset(
        name="shapes",
        train=draw(train, Generator(TRAIN_SEED)),
        test=draw(test, Generator(TEST_SEED)),
        classes=tuple(FIGURES),
        mean=(0.375, 0.375, 0.375),
        std=(0.236, 0.236, 0.236),
    )


def draw(count: int, generator: Generator) -> Split:
    """`count` images, image i of class i mod 10. A larger `count` appends images: the generator is counter-based."""

    def between(low: float, high: float, *shape: int) -> np.ndarray:
        return low + (high - low) * generator.uniform((count, *shape))

    labels = np.arange(count) % len(FIGURES)
    radius = between(8.5, 13.0)  # in pixels
    angle = between(-0.4, 0.4)
    margin = SIZE / 2 - 1 - radius  # maximum offset of the centre with the entire figure in the image
    centre = between(-1, 1, 2) * margin[:, None]
    # Figure and background have the colours middle ± contrast / 2.
    middle, direction = between(0.3, 0.7, 3), between(0.2, 1, 3)
    contrast = between(0.35, 0.8)[:, None] * direction / direction.max(axis=1, keepdims=True)
    ramp = between(-0.2, 0.2, 2)  # linear brightness gradient: the increase from the centre to the right and top edges
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)

    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x, y = axis, -axis[:, None]  # pixel centres relative to the image centre, y upwards; they broadcast to (H, W)
    for label, figure in enumerate(FIGURES.values()):
        n = np.arange(label, count, len(FIGURES))
        scale, cos, sin = (a[n, None, None] for a in (radius, np.cos(angle), np.sin(angle)))
        dx, dy = x - centre[n, 0, None, None], y - centre[n, 1, None, None]
        u, v = (cos * dx + sin * dy) / scale, (cos * dy - sin * dx) / scale
        cover = (0.5 - scale * figure(u, v)).clip(0, 1)  # (n, H, W)
        light = (ramp[n, 0, None, None] * x + ramp[n, 1, None, None] * y) / (SIZE / 2)
        # (n, 3, 1, 1) + (n, 1, H, W) · (n, 3, 1, 1) + (n, 1, H, W) -> (n, 3, H, W)
        colour = middle[n, :, None, None] + (cover - 0.5)[:, None] * contrast[n, :, None, None] + light[:, None]
        colour += 0.15 * (generator.uniform(colour.shape) - 0.5)  # noise
        images[n] = (255 * colour.clip(0, 1) + 0.5).astype(np.uint8)
    return Split(images, labels)


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A disc of radius 1."""
    return np.hypot(u, v) - 1


def ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A ring of radii 0.56 to 1."""
    return abs(np.hypot(u, v) - 0.78) - 0.22


def star(u: np.ndarray, v: np.ndarray, points: int = 5, inner: float = 0.45) -> np.ndarray:
    """A star with its points on the unit circle and its notches at radius `inner`.

    By symmetry one wedge of angle π/points suffices. In this wedge the outline is a straight line from the point
    P = (1, 0) to the notch Q = inner · (cos π/points, sin π/points).
    """
    wedge = np.pi / points
    from_point = abs((np.arctan2(u, v) + wedge) % (2 * wedge) - wedge)  # the angle to the axis of the nearest point
    radius = np.hypot(u, v)
    along, across = radius * np.cos(from_point) - 1, radius * np.sin(from_point)  # relative to P
    q_along, q_across = inner * np.cos(wedge) - 1, inner * np.sin(wedge)
    return (along * q_across - across * q_along) / np.hypot(q_along, q_across)


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """An equilateral triangle: a three-pointed star with its notches on the edges."""
    return star(u, v, 3, np.cos(np.pi / 3))


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A square with its corners on the unit circle."""
    return np.maximum(abs(u), abs(v)) - np.sqrt(0.5)


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A cross of two bars of equal length."""
    u, v = abs(u), abs(v)
    return np.maximum(np.minimum(u, v) - 0.27, np.maximum(u, v) - 0.96)


def heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A square rotated by 45°, with a half disc on each of its two upper sides."""
    u, v, half = abs(u), v + 0.25, 0.75  # the square is |u| + |v| ≤ half
    corner = (u + abs(v) - half) * np.sqrt(0.5)
    lobe = np.hypot(u - half / 2, v - half / 2) - half * np.sqrt(0.5)
    return np.minimum(corner, lobe)


def crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A disc minus a smaller disc across its right edge."""
    return np.maximum(disc(u, v), 0.8 - np.hypot(u - 0.5, v))


def stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Three horizontal bars within a square."""
    return np.maximum(square(u, v), bands(v, 5))


def checkerboard(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """4 x 4 squares within a square."""
    column, row = bands(u, 4), bands(v, 4)
    exclusive_or = np.maximum(np.minimum(column, row), -np.maximum(column, row))
    return np.maximum(square(u, v), exclusive_or)


def bands(t: np.ndarray, count: int) -> np.ndarray:
    """`count` bands of equal width across the square, alternately inside and outside, starting inside."""
    width = 2 * np.sqrt(0.5) / count
    from_first = (t + np.sqrt(0.5)) / width - 0.5  # in band widths, from the middle of the first band
    return width * (abs((from_first + 1) % 2 - 1) - 0.5)


FIGURES: dict[str, Figure] = {
    "disc": disc, "ring": ring, "square": square, "triangle": triangle, "cross": cross,
    "star": star, "heart": heart, "crescent": crescent, "stripes": stripes, "checkerboard": checkerboard,
}  # fmt: skip
