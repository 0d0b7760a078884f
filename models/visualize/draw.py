"""L6: what the pictures share: figures, images as matplotlib takes them, sheets of tiles, and heat over images.

Images are (C, H, W) uint8, with one channel or three.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAT, SIGNED = "inferno", "RdBu_r"  # colour maps: from nothing to much; blue below zero, red above it
GREY = "0.35"
PANEL = 1.45  # inches: the side of a small picture
TALL = 0.28  # inches: the height of a line of text


@dataclass(frozen=True)
class Picture:
    """An image as the model sees it, and what to call it above a small picture."""

    name: str
    pixels: np.ndarray  # (C, H, W) uint8


def new_figure(width: float, height: float, title: str, note: str) -> "Figure":
    """An empty figure with a title, and under everything what a reader should know; in inches, without these two.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("drawing needs matplotlib: pip install matplotlib") from None
    lines = textwrap.wrap(note, int(14 * width))  # letters of 9 points in an inch
    figure = Figure(figsize=(width, height + 1.5 * TALL + 0.65 * TALL * len(lines)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9, color=GREY)
    return figure


def bare(axes: "Axes", title: str = "", **style: Any) -> "Axes":
    """Axes without ticks or frame, for an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, parse_math=False, **{"fontsize": 9, "pad": 4} | style)
    return axes


def short(name: str, length: int = 16) -> str:
    """A name that fits above a small picture."""
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= length else name[: length - 1] + "…"


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) of one channel or three -> (H, W, 3)."""
    return np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (n, h, w) or (n, h, w, 3) row by row in one array, NaN in the gaps between them."""
    n, h, w, *rest = tiles.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, *rest), np.nan)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (h + 1), i % columns * (w + 1)
        sheet[y : y + h, x : x + w] = tile
    return sheet


def lay_over(axes: "Axes", pixels: np.ndarray, heat: np.ndarray, norm: Any) -> None:
    """Heat (h, w), NaN where there is none, over an image, of which the grey is left."""
    _, H, W = pixels.shape
    axes.imshow(pixels.mean(0), cmap="gray", vmin=0, vmax=255)
    alpha = np.where(np.isnan(heat), 0, 0.25 + 0.6 * norm(np.nan_to_num(heat)))
    extent = (-0.5, W - 0.5, H - 0.5, -0.5)
    axes.imshow(heat, cmap=HEAT, norm=norm, alpha=alpha, extent=extent, interpolation="nearest")


def scale(most: float, power: float) -> Any:
    """Colours for heat from 0 to `most`, in steps of heat to this power: below 1, little can be told from nothing."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(power, 0, most or 1.0)


def heat_bar(figure: "Figure", norm: Any, axes: np.ndarray, label: str) -> None:
    """What the colours of heat mean."""
    from matplotlib.cm import ScalarMappable

    shrink = min(1.0, 2.5 / len(axes))
    figure.colorbar(ScalarMappable(norm, HEAT), ax=axes, shrink=shrink, aspect=15, label=label)


def heat_sheet(
    title: str, note: str, label: str, pictures: Sequence[Picture], names: Sequence[str],
    heats: Sequence[Sequence[np.ndarray]], power: float = 0.5, columns: int = 8,
) -> "Figure":  # fmt: skip
    """Each image, and beside it the same with each of its heats (h, w) laid over, all on one scale of colours.

    Args:
        title: of the figure.
        note: the sentences under it.
        label: what the colours mean.
        pictures: the images.
        names: of the heats, the same for each image.
        heats: for each image, an array for each name.
        power: see `scale`.
        columns: how many panels are side by side before a new row begins.
    """
    columns = min(columns, 1 + len(names))
    depth = -(-len(names) // (columns - 1))  # rows for an image
    rows = len(pictures) * depth
    figure = new_figure(columns * PANEL + 1.0, rows * (PANEL + TALL), title, note)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        bare(axes)
    norm = scale(max(float(heat.max()) for row in heats for heat in row), power)
    for i, (picture, row) in enumerate(zip(pictures, heats, strict=True)):
        bare(grid[i * depth, 0], picture.name).imshow(channels_last(picture.pixels))
        for j, (name, heat) in enumerate(zip(names, row, strict=True)):
            axes = bare(grid[i * depth + j // (columns - 1), 1 + j % (columns - 1)], name)
            lay_over(axes, picture.pixels, heat, norm)
    heat_bar(figure, norm, grid, label)
    return figure
