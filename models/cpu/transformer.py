"""L6: the blocks of ViT, DeiT III, Swin and Swin V2.

Tokens are the rows of a matrix X (tokens, D). In the letters of `models/vit.py`, for the tokens of a few images:

    X = X + λ₁ ⊙ (MSA(LN(X) W_qkv + b_qkv) W_proj + b_proj)
    X = X + λ₂ ⊙ (GELU(LN(X) W₁ + b₁) W₂ + b₂)

The layer scales λ₁ and λ₂ are DeiT III's and DINOv2's. Swin V2 has its LayerNorms after the branches: X + LN(·).

Biases and residual connections are added in place, while the product is in the cache. MSA is the op of the reference
implementation. Swin's MSA runs on all images at once, which share its bias and its mask.
"""

from typing import Any, cast

import numpy as np

from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.backend import Array, products
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.activation import gelu_
from minigrad.kernels.cpu.chunks import is_float32
from models import deit, swinv2
from models.cpu.inference import (
    is_array,
    is_identity,
    is_inference,
    is_layer_norm,
    is_linear,
    normalize_rows,
    runs_alone,
    slices,
)
from models.swin import SwinTransformerBlock, WindowAttention
from models.vit import Attention, Block, Mlp


def supports_vit(block: Block, x: Tensor, tokens: int | None = None) -> bool:
    """True in inference, if the block consists of its original layers, without hooks."""
    if not (is_inference(x) and x.ndim == 3 and type(block) in (Block, deit.Block)):
        return False
    D, known = x.shape[-1], tokens is None or (isinstance(tokens, int) and 0 < tokens <= x.shape[1])
    scaled = all(scale is None or is_array(scale, (D,)) for scale in scales(block))
    return known and scaled and is_original(block, D, Attention) and is_linear(block.attn.qkv, D, 3 * D)


def supports_swin(block: SwinTransformerBlock, x: Tensor) -> bool:
    """As `supports_vit`, for maps that the windows cover without padding."""
    if not (is_inference(x) and x.ndim == 4 and type(block) is SwinTransformerBlock):
        return False
    (_, H, W, C), attn = x.shape, block.attn
    covered = is_original(block, C, WindowAttention) and attn.layout(H, W)[0] == (H, W)
    return covered and is_linear(attn.qkv, C, 3 * C) and is_float32(attn.relative_position_bias_table.data)


def supports_swin_v2(block: swinv2.SwinTransformerBlock, x: Tensor) -> bool:
    """As `supports_swin`."""
    if not (is_inference(x) and x.ndim == 4 and type(block) is swinv2.SwinTransformerBlock):
        return False
    (_, H, W, C), attn = x.shape, block.attn
    covered = is_original(block, C, swinv2.WindowAttention) and attn.layout(H, W)[0] == (H, W)
    return covered and all(is_float32(parameter.data) for parameter in attn.parameters())


def is_original(block: Any, D: int, attention: type[nn.Module]) -> bool:
    """True if a call of the block runs its original layers alone, in float32, without dropout. Does not check qkv."""
    attn, mlp = block.attn, block.mlp
    if not (runs_alone(attn, attention) and runs_alone(mlp, Mlp) and isinstance(mlp.fc1, nn.Linear)):
        return False
    hidden = mlp.fc1.out_features
    linears = [(attn.proj, D, D), (mlp.fc1, D, hidden), (mlp.fc2, hidden, D)]
    drops = [(attn.proj_drop, nn.Dropout), (mlp.drop, nn.Dropout), (block.drop_path, nn.DropPath)]
    return (
        all(is_linear(*layer) for layer in linears)
        and all(is_identity(*drop) for drop in drops)
        and not (attn.training and attn.attn_drop)
        and is_layer_norm(block.norm1, D)
        and is_layer_norm(block.norm2, D)
    )


def scales(block: Any) -> tuple[Any, Any]:
    """The layer scales λ₁ and λ₂ of DeiT III's block, or None and None."""
    return (block.ls1.gamma, block.ls2.gamma) if type(block) is deit.Block else (None, None)


@fast_path_of(deit.Block.forward, supports=supports_vit)
@fast_path_of(Block.forward, supports=supports_vit)
def vit_block(block: Block, x: Tensor, tokens: int | None = None) -> Tensor:
    """x (B, L, D) -> y (B, T, D), for all L tokens, or the first T tokens alone."""
    images = np.ascontiguousarray(x.data)
    B, L, D = images.shape
    T = L if tokens is None else tokens
    output, mlp = np.empty((B, T, D), np.float32), cast(Mlp, block.mlp)
    for chunk in slices(B, mlp.fc1.out_features, each=L):
        heads = attention(images[chunk], T, block)
        add_branches(images[chunk, :T].reshape(-1, D), heads, block, output[chunk].reshape(-1, D))
    return Tensor(output)


def attention(images: Array, T: int, block: Block) -> Array:
    """The output of all heads for the first T tokens of n images, (n, L, D) -> (n·T, D). They attend to all tokens."""
    (n, L, D), attn = images.shape, block.attn
    split = attn.num_heads, D // attn.num_heads
    X = normalize_rows(images.reshape(-1, D), block.norm1)
    if T == L:
        q, k, v = linear(X, attn.qkv).reshape(n, L, 3, *split).transpose(2, 0, 3, 1, 4)  # 3 x (n, heads, L, D_h)
    else:
        first = X.reshape(n, L, D)[:, :T].reshape(-1, D)
        q = linear(first, attn.qkv, rows=slice(D)).reshape(n, T, *split).swapaxes(1, 2)
        k, v = linear(X, attn.qkv, rows=slice(D, None)).reshape(n, L, 2, *split).transpose(2, 0, 3, 1, 4)
    y: Array = F.scaled_dot_product_attention(Tensor(q), Tensor(k), Tensor(v)).data
    return y.swapaxes(1, 2).reshape(-1, D)  # (n, heads, T, D_h) -> (n, T, heads, D_h) -> (n·T, D)


@fast_path_of(SwinTransformerBlock.forward, supports=supports_swin)
def swin_block(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """x (B, H, W, C) -> y (B, H, W, C)."""
    maps = np.ascontiguousarray(x.data)
    heads = window_attention(maps, block)
    output = np.empty_like(maps)
    X, Y = (z.reshape(-1, maps.shape[-1]) for z in (maps, output))
    for chunk in slices(len(X), block.mlp.fc1.out_features):
        add_branches(X[chunk], heads[chunk], block, Y[chunk])
    return Tensor(output)


def window_attention(maps: Array, block: SwinTransformerBlock) -> Array:
    """The output of all heads, (B·H·W, C), for maps (B, H, W, C)."""
    (B, H, W, C), attn = maps.shape, block.attn
    X, qkv = maps.reshape(-1, C), np.empty((B * H * W, 3 * C), np.float32)
    for chunk in slices(len(X), 3 * C):
        linear(normalize_rows(X[chunk], block.norm1), attn.qkv, qkv[chunk])
    packed, shift = Tensor(qkv.reshape(B, H, W, 3 * C)), attn.layout(H, W)[1]
    y: Array = F.window_attention(packed, attn.bias(attn.window_size), attn.num_heads, attn.window_size, shift).data
    return y.reshape(-1, C)


@fast_path_of(swinv2.SwinTransformerBlock.forward, supports=supports_swin_v2)
def swin_v2_block(block: swinv2.SwinTransformerBlock, x: Tensor) -> Tensor:
    """As `swin_block`, with each LayerNorm after its branch."""
    maps, attn = np.ascontiguousarray(x.data), block.attn
    _, H, W, C = maps.shape
    M, (_, shift) = attn.window(H, W), attn.layout(H, W)
    heads: Array = F.window_attention(attn.packed(x), attn.bias(M), attn.num_heads, M, shift).data.reshape(-1, C)
    output = np.empty_like(maps)
    X, Y = maps.reshape(-1, C), output.reshape(-1, C)
    for chunk in slices(len(X), block.mlp.fc1.out_features):
        np.add(X[chunk], normalize_rows(linear(heads[chunk], attn.proj), block.norm1), out=Y[chunk])
        hidden = linear(Y[chunk], block.mlp.fc1)
        gelu_(hidden)
        Y[chunk] += normalize_rows(linear(hidden, block.mlp.fc2), block.norm2)
    return Tensor(output)


def add_branches(x: Array, heads: Array, block: Any, out: Array) -> None:
    """The sum of tokens x (tokens, D), of the projection of all heads, and of the MLP of this sum."""
    scale1, scale2 = scales(block)
    linear(heads, block.attn.proj, out)
    if scale1 is not None:
        out *= scale1.data
    out += x
    hidden = linear(normalize_rows(out, block.norm2), block.mlp.fc1)
    gelu_(hidden)
    y = linear(hidden, block.mlp.fc2)
    if scale2 is not None:
        y *= scale2.data
    out += y


def linear(x: Array, layer: nn.Linear, out: Array | None = None, rows: slice = slice(None)) -> Array:
    """x Wᵀ + b, for these rows of W and b."""
    y: Array = products.matmul(x, layer.weight.data[rows].T, out=out)
    y += layer.bias.data[rows]  # type: ignore[union-attr]
    return y
