"""minigrad: a deep-learning framework on NumPy and CuPy, written to be read.

README.md in this folder is a course through the code. Each file states its level, L0 to L5, in its first line, and
imports only files of the same level or lower levels.
"""

import sys

from minigrad import (
    functional,
    kernels,  # noqa: F401 (its import registers the fast paths)
    nn,
    optim,
    utils,
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
from minigrad.functional import cat, einsum, stack, where
from minigrad.saving import load, save
from minigrad.tensor import Tensor, from_dlpack

__all__ = [
    "Function", "Generator", "Tensor",
    "abs", "amax", "amin", "arange", "argmax", "autocast", "cat", "chunk", "clamp", "cuda_is_available", "cumsum",
    "detect_anomaly", "einsum", "enable_grad", "erf", "exp", "flatten", "flip", "from_dlpack", "full", "full_like",
    "functional", "gather", "index_select", "is_grad_enabled", "log", "logsumexp", "manual_seed", "masked_fill",
    "matmul", "maximum", "mean", "minimum", "movedim", "no_grad", "ones", "ones_like", "permute", "pow", "prod",
    "rand", "randn", "reshape", "roll", "sigmoid", "split", "sqrt", "squeeze", "stack", "std", "sum", "tanh",
    "transpose", "tune_cpu", "unbind", "unsqueeze", "use_generator", "var", "where", "without_fast_paths", "zeros",
    "zeros_like",
]  # fmt: skip
__all__ += ["load", "nn", "optim", "save", "utils"]

# Many methods of Tensor are also functions of the package, as in PyTorch: `minigrad.exp(x)` is `x.exp()`.
abs, pow, matmul = Tensor.abs, Tensor.pow, Tensor.matmul
exp, log, sqrt, tanh, sigmoid, erf = Tensor.exp, Tensor.log, Tensor.sqrt, Tensor.tanh, Tensor.sigmoid, Tensor.erf
maximum, minimum, clamp, masked_fill = Tensor.maximum, Tensor.minimum, Tensor.clamp, Tensor.masked_fill
sum, mean, var, std, prod = Tensor.sum, Tensor.mean, Tensor.var, Tensor.std, Tensor.prod
amax, amin, argmax, logsumexp, cumsum = Tensor.amax, Tensor.amin, Tensor.argmax, Tensor.logsumexp, Tensor.cumsum
reshape, flatten, squeeze, unsqueeze = Tensor.reshape, Tensor.flatten, Tensor.squeeze, Tensor.unsqueeze
transpose, permute, movedim, roll, flip = Tensor.transpose, Tensor.permute, Tensor.movedim, Tensor.roll, Tensor.flip
split, chunk, unbind = Tensor.split, Tensor.chunk, Tensor.unbind
gather, index_select = Tensor.gather, Tensor.index_select

# Aliases of earlier versions: `minigrad.without_twins`, `minigrad.cublas.allow_tf32(True)`, `import minigrad.random`.
without_twins = without_fast_paths
sys.modules |= {f"minigrad.{m.__name__.rpartition('.')[2]}": m for m in (cublas, dtypes, function, random)}
