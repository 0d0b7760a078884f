"""L6: the blocks of ViT and of Swin.

Tokens are the rows of a matrix X (tokens, D). In the letters of `models/vit.py`, for the tokens of a few images:

    X = X + MSA(LN(X) W_qkv + b_qkv) W_proj + b_proj
    X = X + GELU(LN(X) W₁ + b₁) W₂ + b₂

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
from models.cpu.inference import is_identity, is_inference, is_layer_norm, is_linear, normalize_rows, runs_alone, slices
from models.swin import SwinTransformerBlock, WindowAttention
from models.vit import Attention, Block, Mlp


def supports_vit(block: Block, x: Tensor, *others: Any, **options: Any) -> bool:
    """True in inference, without further arguments, if the block consists of its original layers, without hooks."""
    return (
        not (others or options)
        and is_inference(x)
        and x.ndim == 3
        and type(block) is Block
        and is_original(block, x.shape[-1], Attention)
    )


def supports_swin(block: SwinTransformerBlock, x: Tensor) -> bool:
    """As `supports_vit`, for maps that the windows cover without padding."""
    if not (is_inference(x) and x.ndim == 4 and type(block) is SwinTransformerBlock):
        return False
    (H, W), attn = x.shape[1:3], block.attn
    covered = is_original(block, x.shape[-1], WindowAttention) and attn.layout(H, W)[0] == (H, W)
    return covered and is_float32(attn.relative_position_bias_table.data)


def is_original(block: Any, D: int, attention: type[nn.Module]) -> bool:
    """True if a call of the block runs its original layers alone, in float32, without dropout."""
    attn, mlp = block.attn, block.mlp
    if not (runs_alone(attn, attention) and runs_alone(mlp, Mlp) and isinstance(mlp.fc1, nn.Linear)):
        return False
    hidden = mlp.fc1.out_features
    linears = [(attn.qkv, D, 3 * D), (attn.proj, D, D), (mlp.fc1, D, hidden), (mlp.fc2, hidden, D)]
    drops = [(attn.proj_drop, nn.Dropout), (mlp.drop, nn.Dropout), (block.drop_path, nn.DropPath)]
    return (
        all(is_linear(*layer) for layer in linears)
        and all(is_identity(*drop) for drop in drops)
        and not (attn.training and attn.attn_drop)
        and is_layer_norm(block.norm1, D)
        and is_layer_norm(block.norm2, D)
    )


@fast_path_of(Block.forward, supports=supports_vit)
def vit_block(block: Block, x: Tensor) -> Tensor:
    """x (B, L, D) -> y (B, L, D)."""
    images = np.ascontiguousarray(x.data)
    B, L, D = images.shape
    output, mlp = np.empty_like(images), cast(Mlp, block.mlp)
    for chunk in slices(B, mlp.fc1.out_features, each=L):
        X, Y = images[chunk].reshape(-1, D), output[chunk].reshape(-1, D)
        add_branches(X, attention(X, L, block), block, Y)
    return Tensor(output)


def attention(X: Array, L: int, block: Block) -> Array:
    """The output of all heads, (n·L, D), for n images X (n·L, D)."""
    D, heads = X.shape[1], block.attn.num_heads
    qkv = linear(normalize_rows(X, block.norm1), block.attn.qkv).reshape(-1, L, 3, heads, D // heads)
    q, k, v = map(Tensor, qkv.transpose(2, 0, 3, 1, 4))  # (n, L, 3, heads, D_h) -> 3 x (n, heads, L, D_h)
    y: Array = F.scaled_dot_product_attention(q, k, v).data
    return y.swapaxes(1, 2).reshape(-1, D)  # -> (n, L, heads, D_h) -> (n·L, D)


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


def add_branches(x: Array, heads: Array, block: Any, out: Array) -> None:
    """The sum of tokens x (tokens, D), of the projection of all heads, and of the MLP of this sum."""
    linear(heads, block.attn.proj, out)
    out += x
    hidden = linear(normalize_rows(out, block.norm2), block.mlp.fc1)
    gelu_(hidden)
    out += linear(hidden, block.mlp.fc2)


def linear(x: Array, layer: nn.Linear, out: Array | None = None) -> Array:
    """x Wᵀ + b"""
    y: Array = products.matmul(x, layer.weight.data.T, out=out)
    y += layer.bias.data  # type: ignore[union-attr]
    return y
