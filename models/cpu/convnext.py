"""L6: the block of ConvNeXt and ConvNeXt V2, and their LayerNorm of images.

From block to block, images have the memory order (C, N, H, W). The depthwise convolution computes each channel
separately, so it reads and writes this order without transposing. The rest of a block acts on each pixel, a column of
the matrix X (C, pixels). In the letters of `Block`, with the weights of its `nn.Linear`s, and biases as columns:

    Y = X + γ ⊙ (W₂ GELU(W₁ LN(dwconv(X)) + b₁) + b₂)            in ConvNeXt V2: W₂ GRN(GELU(·))

The loops of NumPy run over the pixels, the long axis: in a channels-last matrix (pixels, C) they would have C steps.
"""

from typing import Any

import numpy as np

from minigrad import Tensor, nn
from minigrad.backend import Array, products
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.activation import gelu_
from minigrad.kernels.cpu.chunks import ones
from minigrad.kernels.cpu.depthwise import Tiles, plan_for
from minigrad.kernels.cpu.depthwise_rows import Rows, rows_cost
from minigrad.ops.windows import Windows
from models import convnextv2
from models.convnext import Block, LayerNorm2d
from models.convnextv2 import GRN
from models.cpu.inference import (
    has_arrays,
    is_array,
    is_identity,
    is_inference,
    is_layer_norm,
    is_linear,
    normalize_columns,
    runs_alone,
    slices,
)


def supports_block(block: Block, x: Tensor) -> bool:
    """True in inference, if the block consists of its original layers, without hooks inside."""
    known = type(block) in (Block, convnextv2.Block) and isinstance(block.pwconv1, nn.Linear)
    if not (is_inference(x) and x.ndim == 4 and known):
        return False
    C, hidden, gamma = x.shape[1], block.pwconv1.out_features, block.gamma
    grn = response_norm(block)
    if grn is not None and not (runs_alone(grn, GRN) and has_arrays(grn, gamma=(hidden,), beta=(hidden,))):
        return False
    mlp = is_layer_norm(block.norm, C) and is_linear(block.pwconv1, C, hidden) and is_linear(block.pwconv2, hidden, C)
    residual = is_identity(block.drop_path, nn.DropPath) and (gamma is None or is_array(gamma, (C,)))
    return mlp and residual and is_depthwise(block.dwconv, C)


def is_depthwise(conv: nn.Conv2d, C: int) -> bool:
    """True for a depthwise convolution of C > 1 channels, with a bias, that keeps H and W."""
    if not (C > 1 and runs_alone(conv, nn.Conv2d) and has_arrays(conv, weight=(C, 1, *conv.kernel_size), bias=(C,))):
        return False
    KH, KW = conv.kernel_size
    same = KH % 2 == KW % 2 == 1 and conv.padding in ((KH // 2, KW // 2), KH // 2 if KH == KW else None)
    stride_1 = conv.stride in (1, (1, 1)) and conv.dilation in (1, (1, 1))
    return same and stride_1 and conv.groups == C and conv.padding_mode == "zeros"


@fast_path_of(Block.forward, supports=supports_block)
def block(block: Block, x: Tensor) -> Tensor:
    """x (N, C, H, W), in any memory order -> y (N, C, H, W), in the memory order (C, N, H, W)."""
    images = np.ascontiguousarray(x.data.transpose(1, 0, 2, 3))  # (N, C, H, W) -> (C, N, H, W)
    output = depthwise(images, block.dwconv.weight.data)
    C = len(images)
    X, Y = images.reshape(C, -1), output.reshape(C, -1)
    W1, W2 = block.pwconv1.weight.data, block.pwconv2.weight.data
    layers: tuple[Any, ...] = block.dwconv, block.pwconv1, block.pwconv2
    bias, b1, b2 = (layer.bias.data[:, None] for layer in layers)
    grn = response_norm(block)
    each = 1 if grn is None else output[0, 0].size  # GRN needs all pixels of an image
    for chunk in slices(Y.shape[1] // each, len(W1), each):
        pixels = slice(chunk.start * each, chunk.stop * each)
        Z, scratch = np.empty((2, *Y[:, pixels].shape), np.float32)
        np.add(Y[:, pixels], bias, out=Z)
        normalize_columns(Z, block.norm, scratch)
        hidden = products.matmul(W1, Z)
        hidden += b1
        gelu_(hidden)
        if grn is not None:
            normalize_responses(hidden.reshape(len(W1), -1, each), grn)
        products.matmul(W2, hidden, out=Z)
        Z += b2
        if block.gamma is not None:
            Z *= block.gamma.data[:, None]
        np.add(X[:, pixels], Z, out=Y[:, pixels])
    return Tensor(output.transpose(1, 0, 2, 3))


def response_norm(block: Any) -> Any:
    """The GRN of ConvNeXt V2's block, or None."""
    return block.grn if type(block) is convnextv2.Block else None


def normalize_responses(x: Array, grn: GRN) -> None:
    """GRN of x (C, n, pixels), n images, in place: x = x + γ ⊙ N ⊙ x + β, in the letters of `models/convnextv2.py`."""
    G = np.sqrt(np.vecdot(x, x))  # (C, n)
    N = G / (ones(len(G)) @ G / len(G) + np.float32(1e-6))
    x *= (1 + grn.gamma.data[:, None] * N)[:, :, None]
    x += grn.beta.data[:, None, None]


def depthwise(images: Array, weight: Array) -> Array:
    """Convolve images (C, N, H, W) with weight (C, 1, KH, KW), to the same shape and memory order; no bias."""
    C, N, H, W = images.shape
    kernel = KH, KW = weight.shape[2:]
    around, y = (KH // 2, KW // 2), np.empty_like(images)
    windows = Windows((KH, KW), (1, 1), (1, 1), around, around, (H, W))
    x, out = images.transpose(1, 2, 3, 0), y.transpose(1, 2, 3, 0)  # (C, N, H, W) -> (N, H, W, C)
    if plan_for(N, H, W, kernel).cost < 1.6 * rows_cost(kernel, W, C):  # Rows also copies to channels-last and back
        Tiles(windows).correlate(x, weight, out)
    else:
        out[...] = Rows(windows).correlate(np.ascontiguousarray(x), weight)
    return y


def supports_norm(norm: LayerNorm2d, x: Tensor) -> bool:
    """True in inference, for the output of `block`, in the memory order (C, N, H, W)."""
    if not (is_inference(x) and x.ndim == 4 and type(norm) is LayerNorm2d):
        return False
    return x.data.transpose(1, 0, 2, 3).flags.c_contiguous and is_layer_norm(norm, x.shape[1], LayerNorm2d)


@fast_path_of(LayerNorm2d.forward, supports=supports_norm)
def layer_norm_2d(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """x (N, C, H, W), in the memory order (C, N, H, W) -> y (N, C, H, W), channels-last, for the next convolution."""
    N, C, H, W = x.shape
    X = x.data.transpose(1, 0, 2, 3).reshape(C, -1)  # (N, C, H, W) -> (C, pixels)
    Y = np.empty((N * H * W, C), np.float32)
    for pixels in slices(len(Y), C):
        Z = X[:, pixels].copy()
        normalize_columns(Z, norm, np.empty_like(Z))
        Y[pixels] = Z.T
    return Tensor(Y.reshape(N, H, W, C).transpose(0, 3, 1, 2))
