"""L4: functions of Tensors, with the names, argument order and defaults of torch.nn.functional.

Each function checks its arguments and applies an op of `minigrad/ops/`, whose docstring has the gradients. Letters:
N images, C channels, H height, W width, O output channels. A `Pair` is one integer for both axes, or (height, width).

For all functions: arguments of different dtypes are promoted to one, as in PyTorch, but a 16-bit input of
convolutions, norms, attention, residual, cross_entropy or nll_loss gives a 16-bit result, whatever float32 arguments it
meets; shapes or values that do not fit raise a ValueError; "floating-point" input of another dtype raises a TypeError.
Arguments of PyTorch that a signature lacks are not supported.
"""

import sys
from typing import Any

from minigrad import absent
from minigrad.functional.activations import (
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    leaky_relu,
    log_softmax,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from minigrad.functional.arguments import Pair
from minigrad.functional.attention import (
    drop_path,
    dropout,
    residual,
    residual_layer_norm,
    scaled_dot_product_attention,
    window_attention,
)
from minigrad.functional.conv import conv1d, conv2d, conv_transpose2d, fold, linear, unfold
from minigrad.functional.embeddings import embedding, one_hot
from minigrad.functional.joining import cat, einsum, stack, where
from minigrad.functional.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from minigrad.functional.normalization import (
    batch_norm,
    cosine_similarity,
    group_norm,
    group_norm_relu,
    layer_norm,
    normalize,
    standardize_weight,
)
from minigrad.functional.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minigrad.functional.resize import interpolate, pad

__all__ = [
    "Pair", "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "cat", "conv1d", "conv2d", "conv_transpose2d", "cosine_similarity",
    "cross_entropy", "drop_path", "dropout", "einsum", "elu", "embedding", "fold", "gelu", "group_norm",
    "group_norm_relu", "hardsigmoid", "hardswish", "huber_loss", "interpolate", "kl_div", "l1_loss", "layer_norm",
    "leaky_relu", "linear", "log_softmax", "max_pool2d", "mse_loss", "nll_loss", "normalize", "one_hot", "pad",
    "relu", "residual", "residual_layer_norm", "scaled_dot_product_attention", "sigmoid", "silu", "smooth_l1_loss",
    "softmax", "softplus", "stack", "standardize_weight", "tanh", "unfold", "where", "window_attention",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Explain the names of `torch.nn.functional` that do not exist here."""
    absent.refuse(sys.modules[__name__], "module 'minigrad.functional'", name)
