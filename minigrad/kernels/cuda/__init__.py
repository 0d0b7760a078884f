"""L2: fast paths in CUDA for NVIDIA GPUs. Importing this package registers them, and does not import CuPy.

A fast path is two files: `norm.cu` has the kernels, `norm.py` launches them through `launch.py`. Read `launch.py`,
`common.cuh`, `stored.cuh` and `norm.cu` first: they define the terms of the other files.
"""

from minigrad.kernels.cuda import (
    activation,
    attention,
    attention_mma,
    conv,
    conv_mma,
    convert,
    group_norm,
    loss,
    norm,
    optim,
    random,
    residual,
    table,
)  # fmt: skip

__all__ = [
    "activation", "attention", "attention_mma", "conv", "conv_mma", "convert", "group_norm", "loss", "norm", "optim",
    "random", "residual", "table",
]  # fmt: skip
