"""L4: functions of Tensors, with the names, argument order and defaults of torch.nn.functional.

Each function checks its arguments and applies an op of `minigrad/ops/`, whose docstring has the gradients. Letters:
N images, C channels, H height, W width, O output channels. A `Pair` is one integer for both axes, or (height, width).

For all functions: arguments of different dtypes are promoted to one, as in PyTorch, but a 16-bit input of conv2d,
norms, attention, residual or cross_entropy gives a 16-bit result, whatever float32 arguments it meets; shapes or values
that do not fit raise a ValueError; "floating-point" input of another dtype raises a TypeError. Arguments of PyTorch
that a signature lacks are not supported.
"""

from minigrad.functional.activations import gelu, log_softmax, relu, silu, softmax
from minigrad.functional.arguments import Pair
from minigrad.functional.attention import (
    drop_path,
    dropout,
    residual,
    residual_layer_norm,
    scaled_dot_product_attention,
    window_attention,
)
from minigrad.functional.conv import conv2d, linear
from minigrad.functional.embeddings import one_hot
from minigrad.functional.joining import cat, einsum, stack, where
from minigrad.functional.losses import cross_entropy, mse_loss
from minigrad.functional.normalization import batch_norm, group_norm, layer_norm, normalize, standardize_weight
from minigrad.functional.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minigrad.functional.resize import interpolate, pad

__all__ = [
    "Pair", "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "cat", "conv2d", "cross_entropy", "drop_path", "dropout",
    "einsum", "gelu", "group_norm", "interpolate", "layer_norm", "linear", "log_softmax", "max_pool2d", "mse_loss",
    "normalize", "one_hot", "pad", "relu", "residual", "residual_layer_norm", "scaled_dot_product_attention", "silu",
    "softmax", "stack", "standardize_weight", "where", "window_attention",
]  # fmt: skip
