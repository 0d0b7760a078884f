"""L6: what the pictures share: figures, images as matplotlib takes them, sheets of tiles, and heat over images.

Images are (C, H, W) uint8, with one channel or three.
"""

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
    """An empty figure, in inches, with a title, and under everything what a reader should know.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("drawing needs matplotlib: pip install 'minigrad[train]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=GREY)
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


def lay_over(axes: "Axes", pixels: np.ndarray, heat: np.ndarray, most: float) -> Any:
    """Heat (h, w) from 0 to `most` over an image, of which the grey is left; returns what a colour bar needs."""
    _, H, W = pixels.shape
    axes.imshow(pixels.mean(0), cmap="gray", vmin=0, vmax=255)
    return axes.imshow(heat, cmap=HEAT, vmin=0, vmax=most, alpha=0.65, extent=(-0.5, W - 0.5, H - 0.5, -0.5))


def heat_sheet(
    title: str, note: str, label: str, pictures: Sequence[Picture], names: Sequence[str],
    heats: Sequence[Sequence[np.ndarray]], columns: int = 8,
) -> "Figure":  # fmt: skip
    """Each image, and beside it the same with each of its heats (h, w) laid over, all on one scale of colours.

    Args:
        title: of the figure.
        note: the sentences under it.
        label: what the colours mean.
        pictures: the images.
        names: of the heats, the same for each image.
        heats: for each image, an array for each name.
        columns: how many panels are side by side before a new row begins.
    """
    columns = min(columns, 1 + len(names))
    depth = -(-len(names) // (columns - 1))  # rows for an image
    rows = len(pictures) * depth
    height = rows * (PANEL + TALL) + (3 + note.count("\n")) * TALL
    figure = new_figure(columns * PANEL + 1.0, height, title, note)
    grid = figure.subplots(rows, columns, squeeze=False)
    most = max(float(heat.max()) for row in heats for heat in row) or 1.0
    shown = None
    for axes in grid.flat:
        bare(axes)
    for i, (picture, row) in enumerate(zip(pictures, heats, strict=True)):
        start = bare(grid[i * depth, 0], picture.name)
        start.imshow(channels_last(picture.pixels))
        for j, (name, heat) in enumerate(zip(names, row, strict=True)):
            axes = bare(grid[i * depth + j // (columns - 1), 1 + j % (columns - 1)], name)
            shown = lay_over(axes, picture.pixels, heat, most)
    bar = figure.colorbar(shown, ax=grid, shrink=min(1.0, 2.5 / rows), aspect=15, label=label)  # type: ignore[arg-type]
    bar.solids.set_alpha(1)  # type: ignore[union-attr]
    return figure
