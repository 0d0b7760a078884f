"""L6: drawing helpers: figures, images in matplotlib's layout, mosaics of tiles, and heatmaps over images.

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

HEAT, SIGNED = "inferno", "RdBu_r"  # colormaps: sequential; diverging, blue for negative and red for positive
GREY = "0.35"
PANEL = 1.45  # inches: the side of a panel
LINE = 0.28  # inches: the height of a line of text


@dataclass(frozen=True)
class Picture:
    """An image as the model receives it, and its title."""

    name: str
    pixels: np.ndarray  # (C, H, W) uint8


def new_figure(width: float, height: float, title: str, note: str) -> "Figure":
    """An empty figure with a title above and a note below; width and height in inches, without title and note.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("drawing needs matplotlib: pip install matplotlib") from None
    lines = textwrap.wrap(note, int(14 * width))  # characters of 9-point text per inch
    figure = Figure(figsize=(width, height + 1.5 * LINE + 0.65 * LINE * len(lines)), layout="constrained")
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


def short(name: str, length: int = 16, lines: int = 2) -> str:
    """A name in at most `lines` lines of `length` characters. A longer name loses its middle: the names of files often
    differ in the last characters."""
    kept, cut = length * lines, name
    while len(wrapped := textwrap.wrap(cut, length, break_on_hyphens=False)) > lines:
        kept -= 1
        cut = f"{name[: kept - kept // 3]}…{name[len(name) - kept // 3 :]}"
    return "\n".join(wrapped)


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) with C = 1 or 3 -> (H, W, 3)."""
    return np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (n, h, w) or (n, h, w, 3) in one array, row by row, with NaN between tiles."""
    n, h, w, *rest = tiles.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, *rest), np.nan)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (h + 1), i % columns * (w + 1)
        sheet[y : y + h, x : x + w] = tile
    return sheet


def overlay(axes: "Axes", pixels: np.ndarray, heat: np.ndarray, norm: Any) -> None:
    """A heatmap (h, w), transparent where NaN, over the greyscale image."""
    _, H, W = pixels.shape
    axes.imshow(pixels.mean(0), cmap="gray", vmin=0, vmax=255)
    alpha = np.where(np.isnan(heat), 0, 0.25 + 0.6 * norm(np.nan_to_num(heat)))
    extent = (-0.5, W - 0.5, H - 0.5, -0.5)
    axes.imshow(heat, cmap=HEAT, norm=norm, alpha=alpha, extent=extent, interpolation="nearest")


def heat_norm(maximum: float, power: float, minimum: float = 0.0) -> Any:
    """Normalization of heat from `minimum` to `maximum` by a power law: a power below 1 separates small values."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(power, minimum, maximum if maximum > minimum else minimum + 1.0)


def heat_bar(figure: "Figure", norm: Any, axes: np.ndarray, label: str) -> Any:
    """Draw the colorbar of the heatmaps, and return it."""
    from matplotlib.cm import ScalarMappable

    shrink = min(1.0, 2.5 / len(axes))
    return figure.colorbar(ScalarMappable(norm, HEAT), ax=axes, shrink=shrink, aspect=15, label=label)


def heat_sheet(
    title: str, note: str, label: str, pictures: Sequence[Picture], names: Sequence[str],
    heats: Sequence[Sequence[np.ndarray]], power: float = 0.5, columns: int = 8,
) -> "Figure":  # fmt: skip
    """Each image beside overlays of its heatmaps (h, w), all on one color scale.

    Args:
        title: the title of the figure.
        note: the text below the figure.
        label: the label of the colorbar.
        pictures: the images.
        names: the names of the heatmaps, the same for all images.
        heats: for each image, a heatmap for each name.
        power: see `heat_norm`.
        columns: the maximum number of panels in a row.
    """
    columns = min(columns, 1 + len(names))
    depth = -(-len(names) // (columns - 1))  # rows per image
    rows = len(pictures) * depth
    figure = new_figure(columns * PANEL + 1.0, rows * (PANEL + LINE), title, note)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        bare(axes)
    norm = heat_norm(max(float(heat.max()) for row in heats for heat in row), power)
    for i, (picture, row) in enumerate(zip(pictures, heats, strict=True)):
        bare(grid[i * depth, 0], picture.name).imshow(channels_last(picture.pixels))
        for j, (name, heat) in enumerate(zip(names, row, strict=True)):
            axes = bare(grid[i * depth + j // (columns - 1), 1 + j % (columns - 1)], name)
            overlay(axes, picture.pixels, heat, norm)
    heat_bar(figure, norm, grid, label)
    return figure
