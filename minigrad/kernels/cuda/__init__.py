"""L2: twins for NVIDIA's GPUs, written in CUDA. Importing this package puts them in place; it imports no CuPy.

A twin here is two files: `norm.cu`, the kernels, and `norm.py`, which launches them through `launch.py`. To read the
kernels begin with `common.cuh`.
"""

from minigrad.kernels.cuda import (
    activation,
    attention,
    attention_narrow,
    conv,
    convert,
    group_norm,
    loss,
    norm,
    optim,
    random,
    residual,
    standardize,
    table,
)  # fmt: skip

__all__ = [
    "activation", "attention", "attention_narrow", "conv", "convert", "group_norm", "loss", "norm", "optim", "random",
    "residual", "standardize", "table",
]  # fmt: skip
