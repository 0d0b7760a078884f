"""minigrad: a deep-learning framework on NumPy and CuPy, written to be read.

README.md in this folder is a course through the code. Each file states its level, L0 to L5, in its first line, and
imports only files of the same level or lower levels.
"""

import importlib
import sys
from typing import Any

from minigrad import (
    functional,
    kernels,  # noqa: F401 (its import registers the fast paths)
)
from minigrad.autograd import function
from minigrad.autograd.anomaly import detect_anomaly
from minigrad.autograd.autocast import autocast
from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import enable_grad, is_grad_enabled, no_grad
from minigrad.backend import cublas, cuda_is_available, dtypes, random
from minigrad.backend.fast_paths import without_fast_paths
from minigrad.backend.random import Generator, manual_seed, use_generator
from minigrad.backend.tune import tune_cpu
from minigrad.creation import arange, full, full_like, ones, ones_like, rand, randn, zeros, zeros_like
from minigrad.functional import cat, cosine_similarity, einsum, stack, where
from minigrad.tensor import Tensor, from_dlpack

__all__ = [
    "Function", "Generator", "Tensor",
    "abs", "add", "addmm", "all", "allclose", "amax", "amin", "any", "arange", "argmax", "argmin", "argsort",
    "autocast", "baddbmm", "bmm", "cat", "ceil", "chunk", "clamp", "clip", "cos", "cosine_similarity",
    "cuda_is_available", "cumprod", "cumsum", "detect_anomaly", "div", "dot", "einsum", "enable_grad", "equal", "erf",
    "exp", "expm1", "flatten", "flip", "floor", "floor_divide", "from_dlpack", "full", "full_like", "functional",
    "gather", "index_select", "is_grad_enabled", "isclose", "isfinite", "isinf", "isnan", "lerp", "log", "log1p",
    "log_softmax", "logical_and", "logical_not", "logical_or", "logical_xor", "logsumexp", "manual_seed", "masked_fill",
    "matmul", "max", "maximum", "mean", "min", "minimum", "mm", "movedim", "mul", "mv", "neg", "no_grad", "nonzero",
    "norm", "ones", "ones_like", "outer", "permute", "pow", "prod", "rand", "randn", "relu", "remainder", "reshape",
    "roll", "round", "rsqrt", "scatter", "scatter_add", "sigmoid", "sign", "sin", "softmax", "sort", "split", "sqrt",
    "square", "squeeze", "stack", "std", "sub", "sum", "tanh", "topk", "transpose", "trunc", "tune_cpu", "unbind",
    "unsqueeze", "use_generator", "var", "where", "without_fast_paths", "zeros", "zeros_like",
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


def __getattr__(name: str) -> Any:
    """Import a part of the package at its first use: `minigrad.nn` after a plain `import minigrad`."""
    if name in ("nn", "optim", "utils"):
        return importlib.import_module(f"minigrad.{name}")
    if name in ("save", "load"):
        return getattr(importlib.import_module("minigrad.saving"), name)
    raise AttributeError(f"module 'minigrad' has no attribute {name!r}")


# Aliases of earlier versions: `minigrad.without_twins`, `minigrad.cublas.allow_tf32(True)`, `import minigrad.random`.
without_twins = without_fast_paths
sys.modules |= {f"minigrad.{m.__name__.rpartition('.')[2]}": m for m in (cublas, dtypes, function, random)}
