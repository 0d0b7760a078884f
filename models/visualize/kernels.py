"""L6: first-layer filters, and ConvNeXt's depthwise kernels.  Arrays here are NumPy arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.visualize.draw import SIGNED, bare, mosaic, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_KERNELS = 64  # shown of each block
MAX_FILTERS = 48  # of more filters, principal components are shown


def principal_filters(weight: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The principal components of filters (D, C, P, P), and their shares of the variance.

    With w̄ the mean filter and W - w̄ = U Σ Vᵀ the SVD of the centered matrix (D, C·P·P), the components are the first
    rows of Vᵀ, with shares σᵢ² / Σσ². The sign of a component is arbitrary; here the element of largest
    absolute value is positive.

    Returns:
        (n, C, P, P) and (n,), with n the smaller of `count` and the number of components.
    """
    flat = weight.reshape(len(weight), -1)  # (D, C, P, P) -> (D, C·P·P)
    _, sigma, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    largest = np.take_along_axis(directions, abs(directions).argmax(1)[:, None], 1)
    directions = directions * np.where(largest < 0, -1.0, 1.0)
    shares = sigma**2 / max((sigma**2).sum(), np.finfo(sigma.dtype).tiny)
    return directions[:count].reshape(-1, *weight.shape[1:]), shares[:count]


# Pictures -------------------------------------------------------------------------------------------------------------


def filters_picture(weight: np.ndarray) -> "Figure":
    """The filters (D, C, P, P) of the first layer, C = 1 or 3; of more than 48, the first 28 principal components."""
    D, (PH, PW) = weight.shape[0], weight.shape[-2:]
    note = f"Filters of {PH} x {PW} pixels. Grey: 0; colour: the input a filter responds to. Each has its own scale. "
    if D > MAX_FILTERS:
        tiles, shares = principal_filters(weight, 28)
        columns, title = 7, f"First layer: principal components of its {D} filters"
        note += f"{len(tiles)} principal components, {100 * shares.sum():.0f} % of the variance. "
    else:
        tiles, columns, title = weight, 8, f"First layer: its {D} filters"
    note += "Uniform areas, edges and stripes are learned; noise remains from the initialization."
    scale = abs(tiles).max((1, 2, 3), keepdims=True)
    colours = 0.5 + 0.5 * tiles / np.maximum(scale, np.finfo(tiles.dtype).tiny)
    colours = np.broadcast_to(colours, (len(tiles), 3, PH, PW)).transpose(0, 2, 3, 1)  # (n, 3, P, P) -> (n, P, P, 3)
    sheet = np.nan_to_num(mosaic(colours, columns), nan=1.0)
    rows = -(-len(tiles) // columns)
    figure = new_figure(6.6, 6.0 * rows / columns, title, note)
    bare(figure.subplots()).imshow(sheet, interpolation="nearest")
    return figure


def kernels_picture(stages: Sequence[tuple[str, np.ndarray]]) -> "Figure":
    """The first 64 depthwise kernels (C, 1, k, k) of each of the given blocks, all on one scale."""
    k = stages[0][1].shape[-1]
    limit = (
        float(np.quantile(np.concatenate([abs(kernels[:MAX_KERNELS]).ravel() for _, kernels in stages]), 0.995)) or 1.0
    )
    note = (
        "Each channel is convolved with its own kernel. Red: positive weights, blue: negative. At most the first "
        f"{MAX_KERNELS} channels of each block; one scale for all."
    )
    title = f"Depthwise kernels of {k} x {k} in the first block of each stage"
    figure = new_figure(3.1 * len(stages) + 1.0, 3.4, title, note)
    grid = figure.subplots(1, len(stages), squeeze=False)
    for axes, (name, kernels) in zip(grid[0], stages, strict=True):
        sheet = mosaic(kernels[:MAX_KERNELS, 0], 8)
        shown = bare(axes, name).imshow(sheet, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_ylim(8 * (k + 1) - 1.5, -0.5)  # the same height for blocks with fewer channels
    figure.colorbar(shown, ax=grid, shrink=0.8, label="weight", extend="both")
    return figure
