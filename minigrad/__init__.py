"""minigrad: a deep-learning framework on NumPy and CuPy, written to be read.

README.md in this folder is a course through the code. Each file states its level, L0 to L5, in its first line, and
imports only files of the same level or lower levels.
"""

import builtins
import importlib
import math
import sys
from typing import Any

import numpy as np

from minigrad import (
    _tensor,
    absent,
    autograd,
    functional,
    kernels,  # noqa: F401 (its import registers the fast paths)
)
from minigrad._tensor import Tensor, from_dlpack
from minigrad.autograd import function
from minigrad.autograd.anomaly import detect_anomaly
from minigrad.autograd.autocast import autocast
from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from minigrad.backend import Device as device  # noqa: N813 (PyTorch's name)
from minigrad.backend import cublas, cuda_is_available, dtypes, random
from minigrad.backend.dtypes import finfo
from minigrad.backend.fast_paths import without_fast_paths
from minigrad.backend.random import Generator, manual_seed, use_generator
from minigrad.backend.tune import tune_cpu
from minigrad.creation import (
    arange,
    as_tensor,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    linspace,
    logspace,
    meshgrid,
    ones,
    ones_like,
    tensor,
    tril_indices,
    triu_indices,
    zeros,
    zeros_like,
)
from minigrad.functional import (
    avg_pool1d,
    cat,
    celu,
    conv1d,
    conv2d,
    conv_transpose2d,
    cosine_similarity,
    dropout,
    einsum,
    embedding,
    layer_norm,
    max_pool1d,
    max_pool2d,
    pairwise_distance,
    pixel_shuffle,
    prelu,
    selu,
    stack,
    threshold,
    where,
)
from minigrad.functional.joining import (
    atleast_1d,
    atleast_2d,
    block_diag,
    broadcast_tensors,
    cartesian_prod,
    column_stack,
    concat,
    concatenate,
    hstack,
    inner,
    kron,
    logaddexp,
    tensordot,
    vstack,
)
from minigrad.functional.searching import aminmax, bucketize, cdist, isin, searchsorted
from minigrad.sampling import (
    bernoulli,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
)

__all__ = [
    "Function", "Generator", "Size", "Tensor", "abs", "absolute", "acos", "add", "addcdiv", "addcmul", "addmm", "addmv",
    "all", "allclose", "amax", "amin", "aminmax", "any", "arange", "arccos", "arcsin", "arctan", "arctan2", "argmax",
    "argmin", "argsort", "argwhere", "as_tensor", "asarray", "asin", "atan", "atan2", "atleast_1d", "atleast_2d",
    "autocast", "autograd", "avg_pool1d", "baddbmm", "bernoulli", "bincount", "bitwise_and", "bitwise_not",
    "bitwise_or", "bitwise_xor", "block_diag", "bmm", "broadcast_shapes", "broadcast_tensors", "broadcast_to",
    "bucketize", "cartesian_prod", "cat", "cdist", "ceil", "celu", "chunk", "clamp", "clamp_max", "clamp_min", "clip",
    "clone", "column_stack", "concat", "concatenate", "conv1d", "conv2d", "conv_transpose2d", "cos", "cosh",
    "cosine_similarity", "count_nonzero", "cross", "cuda_is_available", "cummax", "cummin", "cumprod", "cumsum",
    "deg2rad", "detect_anomaly", "device", "diag", "diag_embed", "diagonal", "diff", "dist", "div", "divide", "dot",
    "double", "dropout", "dtype", "einsum", "embedding", "empty", "empty_like", "enable_grad", "eq", "equal", "erf",
    "exp", "exp2", "exp_", "expm1", "eye", "finfo", "fix", "flatten", "flip", "fliplr", "flipud", "float16", "float32",
    "float64", "floor", "floor_divide", "fmod", "frac", "from_dlpack", "from_numpy", "full", "full_like", "functional",
    "gather", "ge", "greater", "greater_equal", "gt", "half", "histc", "hstack", "iinfo", "index_add", "index_copy",
    "index_fill", "index_select", "inf", "inference_mode", "inner", "int8", "int16", "int32", "int64",
    "is_floating_point", "is_grad_enabled", "is_tensor", "isclose", "isfinite", "isin", "isinf", "isnan", "kron",
    "kthvalue", "layer_norm", "le", "lerp", "less", "less_equal", "linspace", "log", "log1p", "log2", "log10",
    "log_softmax", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "logit", "logspace",
    "logsumexp", "long", "lt", "manual_seed", "masked_fill", "masked_select", "matmul", "max", "max_pool1d",
    "max_pool2d", "maximum", "mean", "median", "meshgrid", "min", "minimum", "mm", "moveaxis", "movedim", "mul",
    "multinomial", "multiply", "mv", "nan", "nan_to_num", "nanmean", "nansum", "narrow", "ne", "neg", "negative",
    "newaxis", "no_grad", "nonzero", "norm", "normal", "not_equal", "numel", "ones", "ones_like", "outer",
    "pairwise_distance", "permute", "pi", "pixel_shuffle", "pow", "prelu", "prod", "quantile", "rad2deg", "rand",
    "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "ravel", "reciprocal", "relu", "relu_",
    "remainder", "repeat_interleave", "reshape", "roll", "round", "row_stack", "rsqrt", "scatter", "scatter_add",
    "searchsorted", "select", "selu", "set_grad_enabled", "sgn", "short", "sigmoid", "sigmoid_", "sign", "sin", "sinh",
    "softmax", "sort", "split", "sqrt", "square", "squeeze", "stack", "std", "std_mean", "sub", "subtract", "sum",
    "swapaxes", "swapdims", "sys", "take", "take_along_dim", "tan", "tanh", "tanh_", "tensor", "tensor_split",
    "tensordot", "threshold", "tile", "topk", "trace", "transpose", "tril", "tril_indices", "triu", "triu_indices",
    "true_divide", "trunc", "tune_cpu", "uint8", "unbind", "unflatten", "unique", "unique_consecutive", "unsqueeze",
    "use_generator", "var", "var_mean", "vstack", "where", "without_fast_paths", "zero_", "zeros", "zeros_like",
]  # fmt: skip

# Many methods of Tensor are also functions of the package, as in PyTorch: `minigrad.exp(x)` is `x.exp()`.
abs, floor_divide, remainder = Tensor.abs, Tensor.floor_divide, Tensor.remainder
exp, expm1, log, log1p, sqrt, rsqrt = Tensor.exp, Tensor.expm1, Tensor.log, Tensor.log1p, Tensor.sqrt, Tensor.rsqrt
sin, cos, tanh, sigmoid, erf, square = Tensor.sin, Tensor.cos, Tensor.tanh, Tensor.sigmoid, Tensor.erf, Tensor.square
floor, ceil, trunc, round, sign = Tensor.floor, Tensor.ceil, Tensor.trunc, Tensor.round, Tensor.sign
relu, softmax, log_softmax, lerp = Tensor.relu, Tensor.softmax, Tensor.log_softmax, Tensor.lerp
maximum, minimum, clamp, clip = Tensor.maximum, Tensor.minimum, Tensor.clamp, Tensor.clip
add, sub, mul, div, neg, masked_fill = Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, Tensor.neg, Tensor.masked_fill
logical_and, logical_or = Tensor.logical_and, Tensor.logical_or
logical_xor, logical_not = Tensor.logical_xor, Tensor.logical_not
isnan, isinf, isfinite, any, all = Tensor.isnan, Tensor.isinf, Tensor.isfinite, Tensor.any, Tensor.all
isclose, allclose, equal = Tensor.isclose, Tensor.allclose, Tensor.equal
sum, mean, var, std, prod, norm = Tensor.sum, Tensor.mean, Tensor.var, Tensor.std, Tensor.prod, Tensor.norm
amax, amin, argmax, argmin, max, min = Tensor.amax, Tensor.amin, Tensor.argmax, Tensor.argmin, Tensor.max, Tensor.min
logsumexp, cumsum, cumprod = Tensor.logsumexp, Tensor.cumsum, Tensor.cumprod
sort, argsort, topk, nonzero = Tensor.sort, Tensor.argsort, Tensor.topk, Tensor.nonzero
matmul, mm, bmm, mv, dot, outer = Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.dot, Tensor.outer
addmm, baddbmm = Tensor.addmm, Tensor.baddbmm
reshape, flatten, squeeze, unsqueeze = Tensor.reshape, Tensor.flatten, Tensor.squeeze, Tensor.unsqueeze
transpose, permute, movedim, roll, flip = Tensor.transpose, Tensor.permute, Tensor.movedim, Tensor.roll, Tensor.flip
split, chunk, unbind = Tensor.split, Tensor.chunk, Tensor.unbind
gather, index_select, scatter, scatter_add = Tensor.gather, Tensor.index_select, Tensor.scatter, Tensor.scatter_add

clone, swapaxes, swapdims, moveaxis, t = Tensor.clone, Tensor.swapaxes, Tensor.swapdims, Tensor.moveaxis, Tensor.t
tril, triu, narrow, select, numel = Tensor.tril, Tensor.triu, Tensor.narrow, Tensor.select, Tensor.numel

absolute, acos, addcdiv, addcmul = Tensor.absolute, Tensor.acos, Tensor.addcdiv, Tensor.addcmul
argwhere, asin, atan, atan2, bincount = Tensor.argwhere, Tensor.asin, Tensor.atan, Tensor.atan2, Tensor.bincount
bitwise_and, bitwise_not, bitwise_or = Tensor.bitwise_and, Tensor.bitwise_not, Tensor.bitwise_or
bitwise_xor, broadcast_to, clamp_max = Tensor.bitwise_xor, Tensor.broadcast_to, Tensor.clamp_max
clamp_min, cosh, count_nonzero, cummax = Tensor.clamp_min, Tensor.cosh, Tensor.count_nonzero, Tensor.cummax
cummin, deg2rad, diag, diag_embed = Tensor.cummin, Tensor.deg2rad, Tensor.diag, Tensor.diag_embed
diagonal, diff, dist, divide, eq = Tensor.diagonal, Tensor.diff, Tensor.dist, Tensor.divide, Tensor.eq
exp2, fliplr, flipud, frac, ge = Tensor.exp2, Tensor.fliplr, Tensor.flipud, Tensor.frac, Tensor.ge
greater, greater_equal, gt, histc = Tensor.greater, Tensor.greater_equal, Tensor.gt, Tensor.histc
index_add, index_copy, index_fill, kthvalue = Tensor.index_add, Tensor.index_copy, Tensor.index_fill, Tensor.kthvalue
le, less, less_equal, log10, log2 = Tensor.le, Tensor.less, Tensor.less_equal, Tensor.log10, Tensor.log2
logit, lt, masked_select, median = Tensor.logit, Tensor.lt, Tensor.masked_select, Tensor.median
multiply, nan_to_num, nanmean, nansum = Tensor.multiply, Tensor.nan_to_num, Tensor.nanmean, Tensor.nansum
ne, negative, not_equal, quantile = Tensor.ne, Tensor.negative, Tensor.not_equal, Tensor.quantile
rad2deg, ravel, reciprocal = Tensor.rad2deg, Tensor.ravel, Tensor.reciprocal
repeat_interleave, sinh, std_mean, subtract = Tensor.repeat_interleave, Tensor.sinh, Tensor.std_mean, Tensor.subtract
take, take_along_dim, tan, tensor_split = Tensor.take, Tensor.take_along_dim, Tensor.tan, Tensor.tensor_split
tile, trace, true_divide, unflatten = Tensor.tile, Tensor.trace, Tensor.true_divide, Tensor.unflatten
unique, unique_consecutive, var_mean = Tensor.unique, Tensor.unique_consecutive, Tensor.var_mean
addmv, arccos, arcsin, arctan, arctan2 = Tensor.addmv, Tensor.arccos, Tensor.arcsin, Tensor.arctan, Tensor.arctan2
cross, exp_, fix, fmod = Tensor.cross, Tensor.exp_, Tensor.fix, Tensor.fmod
relu_, sgn = Tensor.relu_, Tensor.sgn
sigmoid_, tanh_, zero_ = Tensor.sigmoid_, Tensor.tanh_, Tensor.zero_

# Dtypes are NumPy's. (`minigrad.bfloat16` needs ml_dtypes: see `__getattr__`.)
dtype = np.dtype
float16, float32, float64 = half, float, double = [np.dtype(name) for name in ("float16", "float32", "float64")]
int8, int16, int32, int64, uint8 = [np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8")]
short, int, long, bool = int16, int32, int64, np.dtype("bool")
inf, nan, pi, e, newaxis = math.inf, math.nan, math.pi, math.e, None
Size = tuple
asarray, row_stack = as_tensor, vstack
iinfo, broadcast_shapes = np.iinfo, np.broadcast_shapes
__version__ = "0.1.0"


def pow(input: Any, exponent: Any) -> Tensor:
    """y = input ** exponent, elementwise; at least one is a Tensor."""
    return input**exponent


def is_tensor(obj: Any) -> builtins.bool:
    """True for a Tensor."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> builtins.bool:
    """True for a Tensor of float16, bfloat16, float32 or float64."""
    return input.is_floating_point()


def __getattr__(name: str) -> Any:
    """Import a part of the package at its first use; explain the names of PyTorch that do not exist here."""
    if name in (
        "nn",
        "optim",
        "testing",
        "parallel",
        "utils",
        "cuda",
        "cuda_graph",
        "distributed",
        "serialize",
        "saving",
    ):
        return importlib.import_module(f"minigrad.{name}")
    if name in ("save", "load"):
        return getattr(importlib.import_module("minigrad.saving"), name)
    if name == "bfloat16":
        return dtypes.as_dtype("bfloat16")
    absent.refuse(sys.modules[__name__], "module 'minigrad'", name)


# Aliases of earlier versions: `minigrad.without_twins`, `minigrad.cublas.allow_tf32(True)`, `import minigrad.random`.
without_twins = without_fast_paths
sys.modules |= {f"minigrad.{m.__name__.rpartition('.')[2]}": m for m in (cublas, dtypes, function, random)}
sys.modules["minigrad.tensor"] = _tensor
