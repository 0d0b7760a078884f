"""L6: one HTML page to explore what a model sees in some images: `python -m models.visualize ... --html`.

The page needs no network and no other file: `page/` has its HTML, CSS and JavaScript, `page` fills in the data. For
each block and image these are

    attention    softmax(...) of each head, from some or all patches; in Swin, to the patches of the window only
    rollout      see `attention.rollout`
    norms        see `token_norms`
    colours      see `principal_colours`
    kernels      the depthwise kernels of a ConvNeXt block; see also `receptive_fields`

as base64 of uint8 arrays. A row of attention is quantised separately: the largest element is 255, and its value stands
in a float32 array of scales, so the error is at most 1/510 of the largest element.
"""

import base64
import hashlib
import html
import inspect
import json
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from minigrad import no_grad
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.checks import sides
from minigrad.ops.conv import Conv2d
from minigrad.ops.window_attention import WindowAttention, map_places, window_places
from models.convnext import ConvNeXt
from models.images import to_input
from models.model import ImageModel
from models.predict import probabilities, top
from models.swin import SwinTransformer
from models.visualize import attention
from models.vit import VisionTransformer

LIMIT = 5_000_000  # bytes of a page
MAX_SIDE = 256  # pixels; larger images are reduced for display
MAX_KERNELS = 64  # of each block


def page(model: ImageModel, metadata: dict[str, Any], names: Sequence[str], pixels: np.ndarray) -> str:
    """The page for images (B, C, H, W) uint8 with these names.

    Raises:
        ValueError: the page would be larger than `LIMIT`, with the attention from one patch alone.
    """
    return _assemble(f"{metadata['model']['name']}: what the model sees", collect(model, metadata, names, pixels))


def collect(model: ImageModel, metadata: dict[str, Any], names: Sequence[str], pixels: np.ndarray) -> dict[str, Any]:
    """The data of the page, to be written as JSON. `page.js` explains the fields where it reads them."""
    best: list[list[tuple[str, float]]] = [[] for _ in names]
    if model.num_classes:
        best = [top(each, metadata["classes"], 5) for each in probabilities(model, metadata, pixels)]
    x = to_input(pixels, model, metadata)
    with no_grad():
        outputs = [output.numpy() for output in model.forward_intermediates(x)[1]]  # each (B, D, h, w)
    docs: list[dict[str, str]] = []
    layers = [
        _layer(name, block, output, pixels.shape[2:], docs)
        for (name, block), output in zip(model.blocks_by_name().items(), outputs, strict=True)
    ]
    if isinstance(model, ConvNeXt):
        for layer, block, field in zip(layers, model.blocks_by_name().values(), receptive_fields(model), strict=True):
            layer["cell"] = [field[0], field[0]]
            _add_view(layer, docs, "kernels", type(block), Conv2d, receptive_fields)
            layer["field"], layer["kernels"] = field, _kernels(block.dwconv.weight.detach().numpy())  # type: ignore[attr-defined]
    data = {
        "model": metadata["model"]["name"],
        "size": list(pixels.shape[2:]),
        "tokens": [],
        "layers": layers,
        "docs": docs,
        "images": [
            {"name": name, "prediction": [[c, round(p, 6)] for c, p in prediction], **_shown(image)}
            for name, prediction, image in zip(names, best, pixels, strict=True)
        ],
    }
    room = LIMIT - len(_assemble("", data).encode()) - 40_000  # bytes for attention; 40,000 for names and shapes
    if isinstance(model, VisionTransformer) and len(model.blocks):
        _add_attention(model, x, data, room)
    if isinstance(model, SwinTransformer):
        _add_window_attention(model, x, data, room)
    return data


def _layer(
    name: str, block: Any, output: np.ndarray, size: Sequence[int], docs: list[dict[str, str]]
) -> dict[str, Any]:
    """What all blocks have: norms and colours of the output (B, D, h, w)."""
    norms, colours = token_norms(output), principal_colours(output)
    low, high = float(norms.min()), float(norms.max())
    steps = np.rint((norms - low) / ((high - low) or 1) * 255)
    layer: dict[str, Any] = {
        "name": name, "kind": type(block).__name__, "grid": list(output.shape[2:]), "views": [], "docs": {},
        "cell": [side / cells for side, cells in zip(size, output.shape[2:], strict=True)],  # pixels
        "norms": [low, high],
        "images": [{"norms": _text(n), "colours": _text(c)} for n, c in zip(steps, colours, strict=True)],
    }  # fmt: skip
    _add_view(layer, docs, "norms", type(block), token_norms)
    _add_view(layer, docs, "colours", type(block), principal_colours)
    return layer


def token_norms(features: np.ndarray) -> np.ndarray:
    """The Euclidean norm of each token of a block's output: (B, D, h, w) -> (B, h, w).

        n[b,i,j] = √(Σ_d  x[b,d,i,j]²)

    Tokens with an unusually large norm often hold information on the whole image, not on their patch (Darcet et al.
    2023, "Vision Transformers Need Registers", arXiv:2309.16588).
    """
    return np.sqrt((features.astype(np.float64) ** 2).sum(1))


def principal_colours(features: np.ndarray) -> np.ndarray:
    """The first three principal components of the tokens of all images as red, green and blue: (B, h, w, 3) uint8.

        X - x̄ = U Σ Vᵀ,    colours = (X - x̄) V[:, :3],    X (B·h·w, D) the tokens, x̄ their mean

    Each component is scaled from its 2nd to its 98th percentile to 0 ... 255. Patches of one colour have similar
    features (Oquab et al. 2023, "DINOv2", arXiv:2304.07193, figure 1). The sign of a component is arbitrary.
    """
    B, D, h, w = features.shape
    X = features.transpose(0, 2, 3, 1).reshape(-1, D).astype(np.float64)  # (B, D, h, w) -> (B·h·w, D)
    X -= X.mean(0)
    _, V = np.linalg.eigh(X.T @ X)  # eigenvalues in ascending order: the last are the first components
    V = V[:, ::-1][:, :3]
    V = V * np.where(np.take_along_axis(V, abs(V).argmax(0)[None], 0) < 0, -1, 1)  # largest element positive
    Y = np.zeros((len(X), 3))
    Y[:, : V.shape[1]] = X @ V
    low, high = np.quantile(Y, (0.02, 0.98), axis=0)
    return np.rint(255 * np.clip((Y - low) / np.maximum(high - low, 1e-12), 0, 1)).astype(np.uint8).reshape(B, h, w, 3)


def receptive_fields(model: ConvNeXt) -> list[tuple[int, int, int]]:
    """The receptive field after each block: (jump, before, after).

    Row i of the feature map depends on the rows i · jump - before to i · jump + after of the image; columns likewise. A
    convolution with kernel size k, stride s and padding p on a map with jump j changes them to

        jump' = s · j,    before' = before + p · j,    after' = after + (k - 1 - p) · j
    """
    jump, before, after, fields = 1, 0, 0, []
    for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
        merging = next(module for module in downsample.modules() if hasattr(module, "kernel_size"))
        for block, conv in [(None, merging), *((block, block.dwconv) for block in stage)]:
            k, s, p = conv.kernel_size[0], sides(conv.stride)[0], sides(conv.padding)[0]
            before, after = before + p * jump, after + (k - 1 - p) * jump
            jump *= s
            if block is not None:
                fields.append((jump, before, after))
    return fields


def sampled(grid: Sequence[int], room: float, tokens: int, row: int) -> dict[str, list[int]]:
    """The rows and columns of the patches whose attention is stored: evenly spaced, and as many as fit into `room`
    bytes of base64, with `tokens` further queries and `row` bytes for each query."""
    longest = max(grid)
    for count in range(longest, 0, -1):
        counts = [-(-side * count // longest) for side in grid]
        if (tokens + counts[0] * counts[1]) * row * 4 / 3 <= room:
            rows, columns = ([(2 * i + 1) * s // (2 * n) for i in range(n)] for s, n in zip(grid, counts, strict=True))
            return {"rows": rows, "columns": columns}
    raise ValueError(f"the page would be larger than {LIMIT:,} bytes: give fewer images, or a smaller model")


# Attention ------------------------------------------------------------------------------------------------------------


def _add_attention(model: VisionTransformer, x: Any, data: dict[str, Any], room: int) -> None:
    """Attention and rollout of a ViT, (heads + 1, queries, L): the rollout is stored as one more head. The queries are
    the tokens without a position, then the sampled patches row by row; the keys are all L tokens."""
    n, average = model.num_prefix_tokens, model.global_pool == "avg"
    data["tokens"] = [*(["the average patch"] if average else []), *_prefix_names(model)]
    data["prefix"] = n
    blocks, layers = model.blocks, data["layers"][-len(model.blocks) :]
    for layer, block in zip(layers, blocks, strict=True):
        (h, w), heads = layer["grid"], block.attn.num_heads
        row, share = (heads + 1) * (n + h * w + 4), room / (len(x) * len(layers))
        layer |= {"heads": heads, **sampled((h, w), share, len(data["tokens"]), row)}
        _add_view(layer, data["docs"], "rollout", attention.rollout)
        _add_view(layer, data["docs"], "attention", type(block), type(block.attn), ScaledDotProductAttention)
    for b in range(len(x)):
        maps = [A.numpy() for A in model.attention_maps(x[b : b + 1])]  # blocks x (1, heads, L, L)
        for layer, A, flow in zip(layers, maps, attention.rollout(maps), strict=True):
            A = np.concatenate([A[0], flow])  # (heads + 1, L, L)
            patches = (np.array(layer["rows"])[:, None] * layer["grid"][1] + layer["columns"]).reshape(-1)
            rows = [A[:, n:].mean(1, keepdims=True)] if average else []
            layer["images"][b] |= _quantised(np.concatenate([*rows, A[:, :n], A[:, n + patches]], 1))


def _add_window_attention(model: SwinTransformer, x: Any, data: dict[str, Any], room: int) -> None:
    """Attention of a Swin, (heads, queries, N): of the sampled patches, to the N = MH·MW patches of their window."""
    blocks: list[Any] = list(model.blocks_by_name().values())
    for layer, block in zip(data["layers"], blocks, strict=True):
        (h, w), heads = layer["grid"], block.attn.num_heads
        M = sides(block.attn.window(h, w))
        padded, shift = block.attn.layout(h, w)
        row, share = heads * (M[0] * M[1] + 4), room / (len(x) * len(blocks))
        layer |= {"heads": heads, **sampled((h, w), share, 0, row)}
        layer["window"] = {"size": M, "padded": padded, "shift": shift}
        stage = int(layer["name"].split(".")[1])
        layer["cell"] = [side * 2**stage for side in sides(model.patch_embed.patch_size)]
        _add_view(layer, data["docs"], "attention", type(block), type(block.attn), WindowAttention)
    for b in range(len(x)):
        for layer, A in zip(data["layers"], model.attention_maps(x[b : b + 1]), strict=True):
            layer["images"][b] |= _quantised(window_rows(A.numpy()[0], layer))


def window_rows(A: np.ndarray, layer: dict[str, Any]) -> np.ndarray:
    """The attention (heads, H·W, H·W) of the sampled patches to their windows: (heads, queries, N); padding gets 0."""
    (H, W), (Hp, Wp) = layer["grid"], layer["window"]["padded"]
    A = A.reshape(len(A), H, W, H, W)
    A = np.pad(A, ((0, 0), (0, 0), (0, 0), (0, Hp - H), (0, Wp - W))).reshape(len(A), H, W, Hp * Wp)
    places = window_places(Hp, Wp, layer["window"]["size"], layer["window"]["shift"])  # (windows, N)
    window = map_places(Hp, Wp, layer["window"]["size"], layer["window"]["shift"]).reshape(Hp, Wp) // places.shape[1]
    rows = [A[:, i, j, places[window[i, j]]] for i in layer["rows"] for j in layer["columns"]]  # each (heads, N)
    return np.stack(rows, 1)


def _prefix_names(model: VisionTransformer) -> list[str]:
    names = ["the class token", *(["the distillation token"] if hasattr(model, "dist_token") else [])]
    return names + [f"register {i}" for i in range(1, model.num_prefix_tokens - len(names) + 1)]


def _quantised(rows: np.ndarray) -> dict[str, str]:
    """Rows of attention as uint8, and the value of 255 in each."""
    scales = rows.max(-1, keepdims=True)
    steps = np.rint(255 * rows / np.maximum(scales, np.finfo(rows.dtype).tiny))
    return {"attention": _text(steps), "scales": base64.b64encode(scales.astype("<f4").tobytes()).decode()}


# The page -------------------------------------------------------------------------------------------------------------


def _kernels(weight: np.ndarray) -> dict[str, Any]:
    """The first kernels of a depthwise convolution (C, 1, k, k): 128 is 0, and 255 the largest magnitude."""
    weight = weight[:MAX_KERNELS, 0]
    scale = float(abs(weight).max())
    steps = np.rint(128 + 127 * weight / (scale or 1))
    return {"count": len(weight), "side": weight.shape[-1], "scale": scale, "data": _text(steps)}


def _shown(pixels: np.ndarray) -> dict[str, Any]:
    """An image (C, H, W) as RGB, reduced to at most MAX_SIDE pixels by averaging."""
    _, H, W = pixels.shape
    k = -(-max(H, W) // MAX_SIDE)
    pixels = np.pad(pixels, ((0, 0), (0, -H % k), (0, -W % k)), mode="edge")
    h, w = pixels.shape[1] // k, pixels.shape[2] // k
    means = pixels.reshape(-1, h, k, w, k).mean((2, 4))  # (C, h·k, w·k) -> (C, h, w)
    rgb = np.broadcast_to(means, (3, h, w)).transpose(1, 2, 0)  # C = 1 or 3 -> (h, w, 3)
    return {"shape": [h, w], "extent": [h * k, w * k], "rgb": _text(np.rint(rgb))}


def _add_view(layer: dict[str, Any], docs: list[dict[str, str]], view: str, *parts: Callable[..., Any]) -> None:
    """Offer a view of the layer, first in the list, with the documentation of these classes or functions."""
    layer["views"].insert(0, view)
    layer["docs"][view] = []
    for part in parts:
        doc = {
            "name": part.__qualname__,
            "file": str(PurePosixPath(*part.__module__.split(".")).with_suffix(".py")),
            "text": inspect.getdoc(part) or "",
        }
        if doc not in docs:
            docs.append(doc)
        layer["docs"][view].append(docs.index(doc))


def _text(values: np.ndarray) -> str:
    """base64 of values from 0 to 255."""
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def _assemble(title: str, data: dict[str, Any]) -> str:
    """The HTML. Names of classes and files come from others: they are data in JSON, where `<`, `>` and `&` are escaped
    so that none ends the script element, and the browser runs only the script with the hash in the page's policy."""
    source = files("models.visualize").joinpath("page")
    style, script = (source.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    fields = {
        "title": html.escape(title), "style": style, "script": script, "data": text,
        "style-hash": _hash(style), "script-hash": _hash(script),
    }  # fmt: skip
    whole = source.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub("@([a-z-]+)@", lambda match: fields[match[1]], whole)  # once: a field is not searched for others


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
