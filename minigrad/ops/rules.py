"""L2: tables of type promotion, autocast and 16-bit arithmetic for all ops; `minigrad/autograd/dispatch.py` uses them.

PyTorch's tables: "Tensor Attributes" for promotion, "Automatic Mixed Precision" for autocast.
"""

from functools import partial
from typing import Any

from minigrad.autograd.dispatch import RULES, Rule
from minigrad.autograd.function import Function
from minigrad.backend import promote, promote_and_wrap, promote_to_float
from minigrad.ops.activation import LogSoftmax, Softmax, Softplus
from minigrad.ops.attention import ScaledDotProductAttention
from minigrad.ops.conv import Conv2d, ConvTranspose2d, promote_images
from minigrad.ops.einsum import Einsum
from minigrad.ops.elementwise import (
    Acos,
    Add,
    Asin,
    Atan,
    Atan2,
    Cast,
    Cos,
    Cosh,
    Div,
    Erf,
    Exp,
    Expm1,
    Log,
    Log1p,
    Log2,
    Log10,
    Maximum,
    Minimum,
    Mul,
    Pow,
    Rsqrt,
    Sigmoid,
    Sin,
    Sinh,
    Sqrt,
    Sub,
    Tan,
    Tanh,
    Where,
    promote_branches,
    promote_entries,
    promote_power,
)  # fmt: skip
from minigrad.ops.indexing import Embedding, Gather, GetItem, Scatter, ScatterAdd, promote_source
from minigrad.ops.loss import (
    BCELoss,
    BCEWithLogits,
    CrossEntropy,
    HuberLoss,
    KLDiv,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)  # fmt: skip
from minigrad.ops.matmul import Linear, MatMul
from minigrad.ops.norm import BatchNorm, GroupNorm, GroupNormReLU, LayerNorm
from minigrad.ops.reduction import Amax, Amin, CumProd, CumSum, LogSumExp, Mean, Norm, Prod, Std, Sum, Var
from minigrad.ops.residual import Residual, ResidualLayerNorm
from minigrad.ops.response_norm import GlobalResponseNorm
from minigrad.ops.rounding import FloorDivide, Fmod, Remainder, TruncDivide
from minigrad.ops.shape import Cat, Clone, Diagonal, Expand, Flip, Pad, Permute, Reshape, Roll, Unbind
from minigrad.ops.window_attention import WindowAttention

ALL = 1_000_000  # more than the number of inputs of any op

PROMOTION: dict[Any, list[type[Function]]] = {
    promote: [MatMul, Linear, Einsum, Cat, MSELoss, L1Loss, HuberLoss, SmoothL1Loss, BCELoss, BCEWithLogits, KLDiv],
    # A Python integer wraps to the dtype of the array, as in PyTorch.
    promote_and_wrap: [Add, Sub, Mul, FloorDivide, TruncDivide, Remainder, Fmod],
    promote_power: [Pow],
    partial(promote_entries, op="maximum"): [Maximum],
    partial(promote_entries, op="minimum"): [Minimum],
    promote_branches: [Where],
    promote_source: [Scatter, ScatterAdd],
    # Of integers, the result is float32.
    promote_to_float: [
        Div,
        Exp,
        Expm1,
        Log,
        Log1p,
        Log2,
        Log10,
        Sqrt,
        Rsqrt,
        Tanh,
        Sigmoid,
        Erf,
        Sin,
        Cos,
        Tan,
        Asin,
        Acos,
        Atan,
        Atan2,
        Sinh,
        Cosh,
    ],
    partial(promote_images, op="conv2d"): [Conv2d],
    partial(promote_images, op="conv_transpose2d"): [ConvTranspose2d],
}

AUTOCAST: dict[int | str, list[type[Function]]] = {
    # Matrix products: 16-bit inputs, sums in float32. Residual connections: 16-bit inputs.
    ALL: [Einsum],
    3: [Linear, Conv2d, ConvTranspose2d, ScaledDotProductAttention],  # all inputs but the attention mask
    2: [MatMul, Residual, ResidualLayerNorm],  # both factors; x and the branch, not the parameters
    1: [WindowAttention],  # qkv, not the relative position bias
    # Norms: the input keeps its dtype; statistics and parameters are float32.
    0: [LayerNorm, GroupNorm, GroupNormReLU, BatchNorm, GlobalResponseNorm],
    # Ops that lose too much precision in 16 bits.
    "float32": [
        Pow, Exp, Expm1, Log, Log1p, Log2, Log10, Rsqrt, Tan, Asin, Acos, Sinh, Cosh, Softmax, LogSoftmax, Softplus,
        CrossEntropy, NLLLoss, MSELoss, L1Loss, HuberLoss, SmoothL1Loss, BCELoss, BCEWithLogits, KLDiv,
        Sum, Mean, Var, Std, Prod, Amax, Amin, LogSumExp, Norm, CumSum, CumProd,
    ],
}  # fmt: skip

# Ops that compute on 16-bit arrays: matrix products, whose sums are in float32; ops that change no value; and sums and
# differences, which are rounded once, as if computed in float32.
HALF = [
    MatMul, Linear, Cast, Clone, GetItem, Gather, Embedding, Reshape, Permute, Expand, Cat, Unbind, Roll, Flip, Pad,
    Diagonal, Add, Sub,
]  # fmt: skip


def _by_op(groups: dict[Any, list[type[Function]]]) -> dict[type[Function], Any]:
    return {op: key for key, ops in groups.items() for op in ops}


_promotion, _autocast = _by_op(PROMOTION), _by_op(AUTOCAST)
for _op in {*_promotion, *_autocast, *HALF}:
    RULES[_op] = Rule(_promotion.get(_op), _autocast.get(_op, "follow"), _op in HALF)
