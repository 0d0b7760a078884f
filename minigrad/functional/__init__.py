"""L4: functions of Tensors, with the names, argument order and defaults of torch.nn.functional.

Each function checks its arguments and applies an op of `minigrad/ops/`, whose docstring has the gradients. Letters:
N images, C channels, H height, W width, O output channels. A `Pair` is one integer for both axes, or (height, width).

For all functions: arguments of different dtypes are promoted to one, as in PyTorch, but a 16-bit input of
convolutions, norms, attention, residual, cross_entropy or nll_loss gives a 16-bit result, also with float32 weights;
shapes or values that do not fit raise a ValueError; "floating-point" input of another dtype raises a TypeError.
Arguments of PyTorch that a signature lacks are not supported.
"""

from minigrad import absent
from minigrad.functional.activations import (
    celu,
    elu,
    gelu,
    glu,
    gumbel_softmax,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    log_softmax,
    logsigmoid,
    mish,
    prelu,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softmin,
    softplus,
    softshrink,
    softsign,
    tanh,
    tanhshrink,
    threshold,
)
from minigrad.functional.arguments import Pair
from minigrad.functional.attention import (
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
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
    cosine_embedding_loss,
    cross_entropy,
    gaussian_nll_loss,
    hinge_embedding_loss,
    huber_loss,
    kl_div,
    l1_loss,
    margin_ranking_loss,
    mse_loss,
    multilabel_soft_margin_loss,
    nll_loss,
    poisson_nll_loss,
    smooth_l1_loss,
    soft_margin_loss,
    triplet_margin_loss,
)
from minigrad.functional.normalization import (
    batch_norm,
    cosine_similarity,
    global_response_norm,
    group_norm,
    group_norm_relu,
    instance_norm,
    layer_norm,
    normalize,
    pairwise_distance,
    rms_norm,
    standardize_weight,
)
from minigrad.functional.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    avg_pool1d,
    avg_pool2d,
    max_pool1d,
    max_pool2d,
)
from minigrad.functional.resize import (
    channel_shuffle,
    interpolate,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
)

__all__ = [
    "Pair", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "batch_norm",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cat", "celu", "channel_shuffle", "conv1d", "conv2d",
    "conv_transpose2d", "cosine_embedding_loss", "cosine_similarity", "cross_entropy", "drop_path", "dropout",
    "dropout1d", "dropout2d", "einsum", "elu", "embedding", "fold", "gaussian_nll_loss", "gelu", "global_response_norm",
    "glu", "group_norm", "group_norm_relu", "gumbel_softmax", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
    "hinge_embedding_loss", "huber_loss", "instance_norm", "interpolate", "kl_div", "l1_loss", "layer_norm",
    "leaky_relu", "linear", "log_softmax", "logsigmoid", "margin_ranking_loss", "max_pool1d", "max_pool2d", "mish",
    "mse_loss", "multilabel_soft_margin_loss", "nll_loss", "normalize", "one_hot", "pad", "pairwise_distance",
    "pixel_shuffle", "pixel_unshuffle", "poisson_nll_loss", "prelu", "relu", "relu6", "residual", "residual_layer_norm",
    "rms_norm", "scaled_dot_product_attention", "selu", "sigmoid", "silu", "smooth_l1_loss", "soft_margin_loss",
    "softmax", "softmin", "softplus", "softshrink", "softsign", "stack", "standardize_weight", "tanh", "tanhshrink",
    "threshold", "triplet_margin_loss", "unfold", "where", "window_attention",
]  # fmt: skip

__getattr__ = absent.module_getattr(__name__)
