"""L2: AdamW, gradient clipping, unscaling and EMA, each for all parameters at once, by `optim.cu`."""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, TypeAlias

import numpy as np

from minigrad.backend import Array, array_module, device_of, empty
from minigrad.kernels.cuda.launch import Kernel
from minigrad.kernels.cuda.table import Table

ADAMW, AVERAGE = Kernel("optim.cu", "adamw"), Kernel("optim.cu", "average")
SQUARES, CLIP_FACTOR, SCALE = (Kernel("optim.cu", name) for name in ("squares", "clip_factor", "scale"))
UNSCALE = Kernel("optim.cu", "unscale")
ONE_BLOCK = 1024  # threads

Move: TypeAlias = tuple[Array, Array, dict[str, Any], Mapping[str, Any]]
"""The update of one parameter: x, grad, the state with `step`, `m` and `v`, and the options of the parameter group."""


def adamw(updates: Sequence[Move]) -> None:
    """One step of AdamW, in place. `table.fits` must support each row x, grad, m, v."""
    columns = [[x for x, *_ in updates], [grad for _, grad, *_ in updates]]
    columns += [[state[name] for _, _, state, _ in updates] for name in ("m", "v")]
    Table(*columns, scalars=lambda: next_scalars(updates)).launch(ADAMW)


def next_scalars(updates: Sequence[Move]) -> list[tuple[float, ...]]:
    """The scalars of each parameter at the next step t, after incrementing the step count in its state:

    β₁, β₂, 1 - β₁, 1 - β₂, eps, 1 - lr · weight_decay, lr / (1 - β₁ᵗ) and 1 / √(1 - β₂ᵗ).
    """
    known: dict[tuple[int, int], tuple[float, ...]] = {}  # parameters of a group mostly have the same t
    scalars = []
    for _, _, state, group in updates:
        state["step"] = t = state["step"] + 1
        key = id(group), t
        if key not in known:
            lr, (beta1, beta2) = float(group["lr"]), map(float, group["betas"])
            step = 1 - lr * float(group["weight_decay"]), lr / (1 - beta1**t), 1 / sqrt(1 - beta2**t)
            known[key] = (beta1, beta2, 1 - beta1, 1 - beta2, float(group["eps"]), *step)
        scalars.append(known[key])
    return scalars


def clip(grads: Sequence[Array], max_norm: float) -> Array:
    """Clip gradients in place, as `optim.clip_grad_norm_`. `table.fits_each` must support them. Returns the norm
    before clipping, a 0-d float32 array."""
    table, device = Table(grads), device_of(grads[0])
    parts = empty((table.chunks,), np.float64, device)
    norm, factor = empty((), np.float32, device), empty((), np.float32, device)
    table.launch(SQUARES, parts)
    CLIP_FACTOR(1, ONE_BLOCK, parts, np.int32(table.chunks), np.float64(max_norm), norm, factor)
    table.launch(SCALE, factor)
    return norm


def unscale(grads: Sequence[Array], factor: float) -> Array:
    """g <- factor · g, in place. `table.fits_each` must support the gradients. Returns whether all results are finite,
    a 0-d bool array."""
    overflow = array_module(grads[0]).zeros((), np.bool_)
    Table(grads).launch(UNSCALE, np.float32(factor), overflow)
    return ~overflow


def average(averages: Sequence[Array], values: Sequence[Array], next_rest: Callable[[], float]) -> None:
    """ema <- ema + rest · (x - ema), in place. `table.fits` must support each pair ema, x. `next_rest` is called once
    for each step."""
    Table(averages, values, scalars=next_rest).launch(AVERAGE)
