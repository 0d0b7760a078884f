"""L6: a Vision Transformer's attention maps, attention rollout and position embeddings.

Arrays here are NumPy's. Axes: B images; L = n + N tokens: first n prefix tokens, of these the class token first (n = 1
in ViT; DeiT has a distillation token too, DINOv2 registers); N = h·w patches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.visualize.draw import LINE, SIGNED, Picture, bare, heat_sheet, mosaic, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUERIES = {"token": "the class token", "avg": "the average patch"}


def pooled_attention(attention: np.ndarray, pool: str = "token", num_prefix_tokens: int = 1) -> np.ndarray:
    """The attention to each patch from the tokens that the head pools: (..., L, L) -> (..., N).

    The query is the class token, or with the pool "avg" the mean over all patches.
    """
    n = num_prefix_tokens
    rows = attention[..., :1, :] if pool == "token" else attention[..., n:, :]
    return rows.mean(-2)[..., n:]


def rollout(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Attention rollout: the share of each input token in each token after each block, (B, L, L).

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928. The residual connection and
    the attention, averaged over the heads, count half each:

        R₀ = I,    R_l = (½ mean_heads(A_l) + ½ I) R_{l-1}

    Rows sum to 1 if the rows of A do. Rollout is an approximation: values and MLPs are ignored.

    Args:
        maps: A of each block, (B, heads, L, L), in forward order.
    """
    flows: list[np.ndarray] = []
    for attention in maps:
        eye = np.eye(attention.shape[-1], dtype=attention.dtype)
        step = 0.5 * attention.mean(1) + 0.5 * eye  # (B, L, L)
        flows.append(step @ flows[-1] if flows else step)
    return flows


def position_similarity(pos_embed: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cosine similarity of the embeddings (h·w, D) of all pairs of positions of a grid: (h, w, h, w)."""
    unit = pos_embed / np.maximum(np.linalg.norm(pos_embed, axis=1, keepdims=True), 1e-12)
    return (unit @ unit.T).reshape(*grid, *grid)  # (N, N) -> (h, w, h, w)


# Pictures -------------------------------------------------------------------------------------------------------------


def attention_picture(
    pictures: Sequence[Picture], attention: np.ndarray, pool: str, num_prefix_tokens: int = 1
) -> "Figure":
    """Heatmaps of each head over each image; `attention` (B, heads, h, w) is `pooled_attention` of the last block."""
    query = QUERIES[pool]
    heads = attention.shape[1]
    names = ["mean of the heads", *(f"head {head}" for head in range(1, heads + 1))]
    heats = [[100 * image.mean(0), *(100 * head for head in image)] for image in attention]
    note = (
        f"Attention of {query} to each patch in the last block. Evenly spread, a patch would get "
        f"{100 / (num_prefix_tokens + attention[0, 0].size):.1f} %."
    )
    return heat_sheet(f"Attention of {query}", note, "share of the attention, %", pictures, names, heats)


def rollout_picture(pictures: Sequence[Picture], flows: np.ndarray, pool: str, num_prefix_tokens: int = 1) -> "Figure":
    """Heatmaps after each block over each image; `flows` (blocks, B, h, w) is `pooled_attention` of the rollout."""
    names = [f"after block {block}" for block in range(1, len(flows) + 1)]
    note = (
        "Attention rollout (arXiv:2005.00928): the product of the blocks' attention matrices, each averaged with the "
        "identity for the residual connection. The remainder to 100 % is the share of "
        + (
            "the class token itself."
            if num_prefix_tokens == 1
            else f"the {num_prefix_tokens} tokens before the patches."
        )
    )
    heats = [[100 * flow[i] for flow in flows] for i in range(len(pictures))]
    title, label = f"Attention rollout to {QUERIES[pool]}", "share of the patch, %"
    return heat_sheet(title, note, label, pictures, names, heats, power=1.0)


def position_picture(similarity: np.ndarray) -> "Figure":
    """A map for each position of the grid: the similarity of its embedding to all others."""
    h, w = similarity.shape[:2]
    side = 5.2 / max(h, w)
    note = (
        "A map for each patch: cosine similarity of its position embedding to the embeddings of all patches. "
        "The similarity of neighbouring patches is learned, not built in (arXiv:2010.11929, figure 7)."
    )
    figure = new_figure(w * side + 1.6, h * side + LINE, "Similarity of position embeddings", note)
    axes = figure.subplots()
    shown = axes.imshow(mosaic(similarity.reshape(h * w, h, w), w), cmap=SIGNED, vmin=-1, vmax=1)
    bare(axes)
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    for ticks, count, size in ((axes.set_xticks, w, w + 1), (axes.set_yticks, h, h + 1)):
        numbers = range(0, count, -(-count // 14))  # at most 14 ticks
        ticks([i * size + (size - 2) / 2 for i in numbers], [str(i + 1) for i in numbers])
    axes.tick_params(length=0, labelsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="cosine similarity")
    return figure
