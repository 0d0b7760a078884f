"""L6: a Swin Transformer's windows, their shift and mask, relative position bias and window attention.

Arrays here are NumPy arrays. Axes: windows of N = M·M tokens, on a map of H x W tokens, each of P x P pixels.
"""

from collections.abc import Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.ops.checks import sides
from minigrad.ops.window_attention import Window, shift_mask, window_places
from models.terminal import plural
from models.visualize.draw import (
    GREY,
    LINE,
    PANEL,
    SIGNED,
    Picture,
    bare,
    channels_last,
    heat_bar,
    heat_norm,
    new_figure,
    overlay,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGIONS = ("#ffffff", "#f28e2b", "#4e79a7", "#59a14f")  # colours of the regions 0 to 3 of `regions`
BORDERS = "#e0245e"  # colour of window borders


def regions(size: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """The edge over which the roll wraps each token of the map (H, W): 0: none; 1: left; 2: top; 3: both."""
    rows, columns = (np.arange(length) < offset for length, offset in zip(size, shift, strict=True))
    return 2 * rows[:, None] + columns


def bias_maps(table: np.ndarray, M: Window | None = None) -> np.ndarray:
    """A bias table ((2M - 1)², heads) by the key's offset from the query: (heads, 2M - 1, 2M - 1), where
    [h, M-1 + y, M-1 + x] is the bias of head h for the key y rows below and x columns to the right. (The table itself
    has the query's offset from the key.)
    """
    MH, MW = sides((isqrt(len(table)) + 1) // 2 if M is None else M)  # None: a square window
    return table.T.reshape(-1, 2 * MH - 1, 2 * MW - 1)[:, ::-1, ::-1]


def window_of(token: tuple[int, int], size: tuple[int, int], shift: tuple[int, int], M: Window) -> np.ndarray:
    """The tokens in the window of `token` (row, column), a bool mask (H, W) over the padded map of this size."""
    (row, column), places = token, window_places(*size, M, shift)
    window = places[(places == row * size[1] + column).any(1)]
    return np.isin(np.arange(size[0] * size[1]), window).reshape(size)


# Pictures -------------------------------------------------------------------------------------------------------------


def windows_picture(
    picture: Picture, patch: Window, size: tuple[int, int], shift: tuple[int, int], M: Window
) -> "Figure":
    """Windows, shifted windows, the rolled map, and the masks; `size` is the size of the padded map."""
    (PH, PW), (MH, MW) = sides(patch), sides(M)
    pixels = np.full((3, size[0] * PH, size[1] * PW), 128, np.uint8)  # padding: grey
    _, H, W = picture.pixels.shape
    pixels[:, :H, :W] = picture.pixels
    image, region = channels_last(pixels), regions(size, shift)
    offset, window = (-shift[0] * PH, -shift[1] * PW), (MH * PH, MW * PW)
    title = f"Windows of {MH} x {MW} patches, and the same shifted by {max(shift)}"
    note = (
        "1: attention is computed within each window. 2: the next block shifts the windows across these borders; "
        "windows at the edges are cut off. 3: a cyclic shift (roll) makes all windows full: B, C and D wrap around to "
        "the opposite edge. 4: in windows of several regions, a mask of -100, after softmax 0, keeps attention within "
        "each region."
    )
    figure = new_figure(13.2, 3.9, title, note)
    axes = figure.subplots(1, 4)
    names = ["1. windows", "2. shifted windows", "3. cyclic shift (roll)", "4. masks of the four corners"]
    for panel, name in zip(axes, names, strict=True):
        bare(panel, name, fontsize=11)
    axes[0].imshow(image)
    _draw_grid(axes[0], pixels.shape[1:], window)
    axes[1].imshow(image)
    _draw_regions(axes[1], region, (PH, PW))
    _draw_grid(axes[1], pixels.shape[1:], window, start=(shift[0] * PH, shift[1] * PW))
    axes[2].imshow(np.roll(image, offset, (0, 1)))
    _draw_regions(axes[2], np.roll(region, (-shift[0], -shift[1]), (0, 1)), (PH, PW))
    _draw_grid(axes[2], pixels.shape[1:], window)
    _draw_masks(axes[3], shift_mask(*size, M, shift)[:, 0], size[1] // MW)
    return figure


def _draw_grid(axes: "Axes", size: Sequence[int], window: tuple[int, int], start: tuple[int, int] = (0, 0)) -> None:
    """Draw the window borders on a map of `size` pixels."""
    H, W = size
    for draw, first, length, side in zip((axes.axhline, axes.axvline), start, size, window, strict=True):
        for place in range(first % side, length + 1, side):
            draw(min(max(place, 0), length) - 0.5, color=BORDERS, linewidth=1.6)
    axes.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))


def _draw_regions(axes: "Axes", region: np.ndarray, patch: tuple[int, int]) -> None:
    """Colour the regions that wrap around, and label all regions with letters."""
    from matplotlib.colors import to_rgba
    from matplotlib.patheffects import withStroke

    colours = np.array([to_rgba(colour, 0.6 if i else 0.0) for i, colour in enumerate(REGIONS)])
    H, W = (side * pixels for side, pixels in zip(region.shape, patch, strict=True))
    axes.imshow(colours[region], extent=(-0.5, W - 0.5, H - 0.5, -0.5), interpolation="nearest")
    for i, letter in enumerate("ABCD"):
        place = np.argwhere(region == i)
        if len(place):
            y, x = (place.mean(0) + 0.5) * np.array(patch) - 0.5
            outline = [withStroke(linewidth=3, foreground="white")]
            axes.text(x, y, letter, ha="center", va="center", fontsize=13, weight="bold", path_effects=outline)


def _draw_masks(axes: "Axes", mask: np.ndarray, columns: int) -> None:
    """The masks (N, N) of the four corner windows, each in its corner."""
    names = ("top left", "top right", "bottom left", "bottom right")
    for i, (corner, name) in enumerate(zip(mask[[0, columns - 1, -columns, -1]], names, strict=True)):
        inset = axes.inset_axes((0.52 * (i % 2), 0.53 - 0.53 * (i // 2), 0.46, 0.41))
        inset.imshow(corner, cmap="gray", vmin=-100, vmax=0)
        bare(inset, name, fontsize=10, pad=2, color=GREY).spines[:].set_visible(True)
    axes.set_box_aspect(1)
    axes.set_xlabel("rows: queries, columns: keys;\nwhite: 0, black: -100", fontsize=10, color=GREY)


def bias_picture(blocks: Sequence[tuple[str, np.ndarray]]) -> "Figure":
    """The bias maps (heads, 2M - 1, 2M - 1) of the given blocks, in one or more rows each, all on one scale."""
    columns = min(12, max(len(maps) for _, maps in blocks))
    rows = [(name, maps[i : i + columns], i) for name, maps in blocks for i in range(0, len(maps), columns)]
    limit = max(float(abs(maps).max()) for _, maps in blocks) or 1.0
    reach_y, reach_x = (side // 2 for side in blocks[0][1].shape[-2:])  # the largest windows
    note = (
        "The bias that a head adds to the score of a key, by the key's offset from the query (dot), up to "
        f"{plural(reach_y, 'row')} and {plural(reach_x, 'column')}. Red increases attention, blue decreases it."
    )
    size = max(columns * 1.15 + 1.6, 7), len(rows) * (1.15 + LINE)
    figure = new_figure(*size, "Relative position bias", note)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    shown: Any = None
    for line, (name, maps, first) in zip(grid, rows, strict=True):
        for axes in line:
            bare(axes)
        for i, (axes, values) in enumerate(zip(line, maps, strict=False)):
            y, x = (side // 2 for side in values.shape)
            extent = (-x - 0.5, x + 0.5, y + 0.5, -y - 0.5)
            bare(axes, f"head {first + i + 1}")
            shown = axes.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit, extent=extent)
            axes.plot(0, 0, ".", color="black", markersize=4)
        line[0].set_ylabel(name if first == 0 else "", fontsize=9)
    figure.colorbar(shown, ax=grid, shrink=min(1.0, 2 / len(rows)), label="added to the score")
    return figure


def heads_in_a_row(heads: Sequence[int]) -> int:
    """The number of columns that leaves the fewest panels empty, for blocks with these numbers of heads: from 4 to 8,
    or fewer if no block has 4 heads."""

    def empty(columns: int) -> int:
        return sum(-(-n // columns) * (1 + columns) - n - 1 for n in heads)  # each row starts with an image or a gap

    most = min(8, max(heads))
    return min(range(min(4, most), most + 1), key=lambda columns: (empty(columns), -columns))


def query_picture(picture: Picture, blocks: Sequence[tuple[str, np.ndarray, np.ndarray, tuple[int, int]]]) -> "Figure":
    """The attention of one token to its window, in each head.

    Args:
        picture: the image.
        blocks: for each block, the name; the attention of the token (heads, H, W), NaN outside the window and where the
            mask excludes it; the mask of the window (H, W); and the position of the token, (row, column).
    """
    columns = 1 + heads_in_a_row([len(attention) for _, attention, _, _ in blocks])
    depth = [-(-len(attention) // (columns - 1)) for _, attention, _, _ in blocks]
    rows = sum(depth)
    note = (
        "Left: one patch (cross) and its window (outline), in some of the blocks. Right: the attention of the patch to "
        "each patch of the window in each head; the sum is 100 %. The colours span the shares of a block, the numbers "
        "below its name."
    )
    name = picture.name.replace("\n", " ").replace("$", r"\$")
    title = f"Window attention of one patch of {name}"
    figure = new_figure(columns * PANEL + 1.3, rows * (PANEL + LINE), title, note)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        bare(axes)
    row = 0
    for (name, attention, inside, query), lines in zip(blocks, depth, strict=True):
        _, H, W = picture.pixels.shape
        patch = H / inside.shape[0], W / inside.shape[1]
        low, high = 100 * float(np.nanmin(attention)), 100 * float(np.nanmax(attention))
        norm = heat_norm(high, 1.0, low)
        start = bare(grid[row, 0], f"{name}\n{low:.1f} to {high:.1f} %")
        start.imshow(channels_last(picture.pixels))
        _mark(start, inside, query, patch)
        for i, head in enumerate(attention):
            axes = bare(grid[row + i // (columns - 1), 1 + i % (columns - 1)], f"head {i + 1}")
            overlay(axes, picture.pixels, 100 * head, norm)
            _mark(axes, inside, query, patch)
            y, x = np.nonzero(inside)
            axes.set_xlim((x.min() - 0.3) * patch[1] - 0.5, (x.max() + 1.3) * patch[1] - 0.5)
            axes.set_ylim((y.max() + 1.3) * patch[0] - 0.5, (y.min() - 0.3) * patch[0] - 0.5)
        row += lines
    bar = heat_bar(figure, heat_norm(1.0, 1.0), grid, "share of the attention")
    bar.set_ticks([0, 1], labels=["smallest\nof block", "largest\nof block"])
    return figure


def _mark(axes: "Axes", inside: np.ndarray, query: tuple[int, int], patch: tuple[float, float]) -> None:
    """Draw the outline of a window and a cross on one token, in pixels; `patch` is the size of a token."""
    from matplotlib.patches import Rectangle

    y, x = np.nonzero(inside)
    corner = x.min() * patch[1] - 0.5, y.min() * patch[0] - 0.5
    size = (np.ptp(x) + 1) * patch[1], (np.ptp(y) + 1) * patch[0]
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=BORDERS, linewidth=1.6))
    place = (query[1] + 0.5) * patch[1] - 0.5, (query[0] + 0.5) * patch[0] - 0.5
    axes.plot(*place, "+", color="#39ff14", markersize=7, markeredgewidth=1.6)
