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
from minigrad.functional import cat, cosine_similarity, einsum, stack, where
from minigrad.sampling import bernoulli, multinomial, normal, rand, rand_like, randint, randn, randn_like, randperm

__all__ = [
    "Function", "Generator", "Size", "Tensor", "abs", "add", "addmm", "all", "allclose", "amax", "amin", "any",
    "arange", "argmax", "argmin", "argsort", "as_tensor", "autocast", "autograd", "baddbmm", "bernoulli", "bmm",
    "cat", "ceil", "chunk", "clamp", "clip", "clone", "cos", "cosine_similarity", "cuda_is_available", "cumprod",
    "cumsum", "detect_anomaly", "device", "div", "dot", "double", "dtype", "einsum", "empty", "empty_like",
    "enable_grad", "equal", "erf", "exp", "expm1", "eye", "flatten", "flip", "float16", "float32", "float64",
    "floor", "floor_divide", "from_dlpack", "from_numpy", "full", "full_like", "functional", "gather", "half",
    "index_select", "inf", "inference_mode", "int8", "int16", "int32", "int64", "is_floating_point",
    "is_grad_enabled", "is_tensor", "isclose", "isfinite", "isinf", "isnan", "lerp", "linspace", "log", "log1p",
    "log_softmax", "logical_and", "logical_not", "logical_or", "logical_xor", "logspace", "logsumexp", "long",
    "manual_seed", "masked_fill", "matmul", "max", "maximum", "mean", "meshgrid", "min", "minimum", "mm",
    "moveaxis", "movedim", "mul", "multinomial", "mv", "nan", "narrow", "neg", "newaxis", "no_grad", "nonzero",
    "norm", "normal", "numel", "ones", "ones_like", "outer", "permute", "pi", "pow", "prod", "rand", "rand_like",
    "randint", "randn", "randn_like", "randperm", "relu", "remainder", "reshape", "roll", "round", "rsqrt",
    "scatter", "scatter_add", "select", "set_grad_enabled", "short", "sigmoid", "sign", "sin", "softmax", "sort",
    "split", "sqrt", "square", "squeeze", "stack", "std", "sub", "sum", "swapaxes", "swapdims", "sys", "tanh",
    "tensor", "topk", "transpose", "tril", "tril_indices", "triu", "triu_indices", "trunc", "tune_cpu", "uint8",
    "unbind", "unsqueeze", "use_generator", "var", "where", "without_fast_paths", "zeros", "zeros_like",
]  # fmt: skip

# Many methods of Tensor are also functions of the package, as in PyTorch: `minigrad.exp(x)` is `x.exp()`.
abs, pow, floor_divide, remainder = Tensor.abs, Tensor.pow, Tensor.floor_divide, Tensor.remainder
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

# Dtypes are NumPy's. (`minigrad.bfloat16` needs ml_dtypes: see `__getattr__`.)
dtype = np.dtype
float16, float32, float64 = half, float, double = [np.dtype(name) for name in ("float16", "float32", "float64")]
int8, int16, int32, int64, uint8 = [np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8")]
short, int, long, bool = int16, int32, int64, np.dtype("bool")
inf, nan, pi, e, newaxis = math.inf, math.nan, math.pi, math.e, None
Size = tuple


def is_tensor(obj: Any) -> builtins.bool:
    """True for a Tensor."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> builtins.bool:
    """True for a Tensor of float16, bfloat16, float32 or float64."""
    return input.is_floating_point()


def __getattr__(name: str) -> Any:
    """Import a part of the package at its first use; explain the names of PyTorch that do not exist here."""
    if name in ("nn", "optim", "testing", "parallel", "utils", "cuda", "cuda_graph", "serialize", "saving"):
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
