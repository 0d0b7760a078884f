"""L6: where a Vision Transformer looks, and what it knows of positions.

Arrays here are NumPy's. Axes: B images; L = N + 1 tokens, the class token first; N = h·w patches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.visualize.draw import SIGNED, TALL, Picture, bare, heat_sheet, mosaic, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READERS = {"token": "the class token", "avg": "the average patch"}


def readers(attention: np.ndarray, pool: str = "token") -> np.ndarray:
    """How much each patch is looked at by what the head reads: (..., L, L) -> (..., N).

    That is the class token, or with the pool "avg" the mean of the patches.
    """
    rows = attention[..., :1, :] if pool == "token" else attention[..., 1:, :]
    return rows.mean(-2)[..., 1:]


def rollout(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Attention rollout: how much of each token of the input is in each token after each block, (B, L, L).

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928: a block passes on half of
    what a token was, and half of what it looked at, over the mean of the heads,

        R₀ = I,    R_l = (½ mean_heads(A_l) + ½ I) R_{l-1}

    Rows sum to 1 if those of A do. It is a way of looking, not what the network computes: values and MLPs are left out.

    Args:
        maps: A of each block, (B, heads, L, L), in the order of the forward.
    """
    flows: list[np.ndarray] = []
    for attention in maps:
        eye = np.eye(attention.shape[-1], dtype=attention.dtype)
        step = 0.5 * attention.mean(1) + 0.5 * eye  # (B, L, L)
        flows.append(step @ flows[-1] if flows else step)
    return flows


def position_similarity(pos_embed: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cosine of the angle between the embeddings (h·w, D) of any two positions of a grid: (h, w, h, w)."""
    unit = pos_embed / np.maximum(np.linalg.norm(pos_embed, axis=1, keepdims=True), 1e-12)
    return (unit @ unit.T).reshape(*grid, *grid)  # (N, N) -> (h, w, h, w)


# Pictures -------------------------------------------------------------------------------------------------------------


def attention_picture(pictures: Sequence[Picture], attention: np.ndarray, pool: str) -> "Figure":
    """`attention` (B, heads, h, w): what `readers` found in the last block."""
    reader = READERS[pool]
    heads = attention.shape[1]
    names = ["mean of the heads", *(f"head {head}" for head in range(1, heads + 1))]
    heats = [[100 * image.mean(0), *(100 * head for head in image)] for image in attention]
    note = (
        f"Attention of {reader} to each patch in the last block. Evenly spread, a patch would get "
        f"{100 / (1 + attention[0, 0].size):.1f} %."
    )
    return heat_sheet(f"Where {reader} looks", note, "share of the attention, %", pictures, names, heats)


def rollout_picture(pictures: Sequence[Picture], flows: np.ndarray, pool: str) -> "Figure":
    """`flows` (blocks, B, h, w): what `readers` found in the rollout after each block."""
    names = [f"after block {block}" for block in range(1, len(flows) + 1)]
    note = (
        "Attention rollout (arXiv:2005.00928): attention multiplied up through the blocks, each of which passes on "
        "half of what a token was. What is missing to 100 % is the class token's own."
    )
    heats = [[100 * flow[i] for flow in flows] for i in range(len(pictures))]
    title, label = f"What has reached {READERS[pool]}", "share of the patch in it, %"
    return heat_sheet(title, note, label, pictures, names, heats, power=1.0)


def position_picture(similarity: np.ndarray) -> "Figure":
    """A small map for each position of the grid: how alike its embedding is to those of all the others."""
    h, w = similarity.shape[:2]
    side = 5.2 / max(h, w)
    note = (
        "A small map for each patch: how alike its position embedding is to that of each patch (cosine similarity). "
        "That patches near each other are alike was learned, not built in (arXiv:2010.11929, figure 7)."
    )
    figure = new_figure(w * side + 1.6, h * side + TALL, "What positions are alike", note)
    axes = figure.subplots()
    shown = axes.imshow(mosaic(similarity.reshape(h * w, h, w), w), cmap=SIGNED, vmin=-1, vmax=1)
    bare(axes)
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    for ticks, count, size in ((axes.set_xticks, w, w + 1), (axes.set_yticks, h, h + 1)):
        numbers = range(0, count, -(-count // 14))  # not more than there is room for
        ticks([i * size + (size - 2) / 2 for i in numbers], [str(i + 1) for i in numbers])
    axes.tick_params(length=0, labelsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="cosine similarity")
    return figure
