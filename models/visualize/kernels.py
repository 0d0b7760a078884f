"""L6: the filters of first layers, and ConvNeXt's depthwise kernels.  Arrays here are NumPy's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.visualize.draw import SIGNED, bare, mosaic, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 64  # kernels of a block that are shown
MOST_FILTERS = 48  # that are shown as they are


def principal_filters(weight: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The directions in which filters (D, C, P, P) differ most, and the share of their variance along each.

    With w̄ the mean filter and W - w̄ = U Σ Vᵀ the matrix (D, C·P·P) of the rest, they are the first rows of Vᵀ, with
    shares σᵢ² / Σσ². The sign, which is free, is such that the largest entry of each is positive.

    Returns:
        (count, C, P, P) and (count,), or fewer if there are no more.
    """
    flat = weight.reshape(len(weight), -1)  # (D, C, P, P) -> (D, C·P·P)
    _, sigma, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    largest = np.take_along_axis(directions, abs(directions).argmax(1)[:, None], 1)
    directions = directions * np.where(largest < 0, -1.0, 1.0)
    shares = sigma**2 / max((sigma**2).sum(), np.finfo(sigma.dtype).tiny)
    return directions[:count].reshape(-1, *weight.shape[1:]), shares[:count]


# Pictures -------------------------------------------------------------------------------------------------------------


def filters_picture(weight: np.ndarray) -> "Figure":
    """The filters (D, C, P, P) of the first layer, C = 1 or 3, or of more than 48 the first 28 principal components."""
    D, (PH, PW) = weight.shape[0], weight.shape[-2:]
    note = f"Each looks at {PH} x {PW} pixels. Grey is 0; a colour is what it answers to; each is scaled by itself. "
    if D > MOST_FILTERS:
        tiles, shares = principal_filters(weight, 28)
        columns, title = 7, f"First layer: how its {D} filters differ most"
        note += f"{len(tiles)} principal components, {100 * shares.sum():.0f} % of the variance. "
    else:
        tiles, columns, title = weight, 8, f"First layer: its {D} filters"
    note += "Even areas, edges and stripes were learned; noise is left from before training."
    scale = abs(tiles).max((1, 2, 3), keepdims=True)
    colours = 0.5 + 0.5 * tiles / np.maximum(scale, np.finfo(tiles.dtype).tiny)
    colours = np.broadcast_to(colours, (len(tiles), 3, PH, PW)).transpose(0, 2, 3, 1)  # (n, 3, P, P) -> (n, P, P, 3)
    sheet = np.nan_to_num(mosaic(colours, columns), nan=1.0)
    rows = -(-len(tiles) // columns)
    figure = new_figure(6.6, 6.0 * rows / columns, title, note)
    bare(figure.subplots()).imshow(sheet, interpolation="nearest")
    return figure


def kernels_picture(stages: Sequence[tuple[str, np.ndarray]]) -> "Figure":
    """The depthwise kernels (C, 1, k, k) of some blocks, of each the first 64, all on one scale."""
    k = stages[0][1].shape[-1]
    most = float(np.quantile(np.concatenate([abs(kernels[:MOST]).ravel() for _, kernels in stages]), 0.995)) or 1.0
    note = (
        "A kernel for each channel: it looks around in its own channel and at no other. Red: added, blue: "
        f"subtracted. Of each block the first {MOST} channels, if it has more; one scale for all."
    )
    title = f"Depthwise kernels of {k} x {k} in the first block of each stage"
    figure = new_figure(3.1 * len(stages) + 1.0, 3.4, title, note)
    grid = figure.subplots(1, len(stages), squeeze=False)
    for axes, (name, kernels) in zip(grid[0], stages, strict=True):
        sheet = mosaic(kernels[:MOST, 0], 8)
        shown = bare(axes, name).imshow(sheet, cmap=SIGNED, vmin=-most, vmax=most, interpolation="nearest")
        axes.set_ylim(8 * (k + 1) - 1.5, -0.5)  # as high as the others, if there are fewer
    figure.colorbar(shown, ax=grid, shrink=0.8, label="weight", extend="both")
    return figure
