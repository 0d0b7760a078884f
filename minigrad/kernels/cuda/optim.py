"""L2: what an optimiser does between two passes, for all parameters in one launch each."""

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
"""What an optimiser does to one parameter: x, grad, the state with `step`, `m` and `v`, and the group's settings."""


def adamw(moves: Sequence[Move]) -> None:
    """One step of AdamW, in place, on parameters that `table.takes` with their gradients, m and v."""
    columns = [[x for x, *_ in moves], [grad for _, grad, *_ in moves]]
    columns += [[state[name] for _, _, state, _ in moves] for name in ("m", "v")]
    Table(*columns, numbers=lambda: next_numbers(moves)).launch(ADAMW)


def next_numbers(moves: Sequence[Move]) -> list[tuple[float, ...]]:
    """For every parameter what the kernel asks, of the next step t, which is counted in its state:

    β₁, β₂, 1 - β₁, 1 - β₂, eps, 1 - lr · weight_decay, lr / (1 - β₁ᵗ) and 1 / √(1 - β₂ᵗ).
    """
    known: dict[tuple[int, int], tuple[float, ...]] = {}  # a group has few different t
    numbers = []
    for _, _, state, group in moves:
        state["step"] = t = state["step"] + 1
        key = id(group), t
        if key not in known:
            lr, (beta1, beta2) = float(group["lr"]), map(float, group["betas"])
            step = 1 - lr * float(group["weight_decay"]), lr / (1 - beta1**t), 1 / sqrt(1 - beta2**t)
            known[key] = (beta1, beta2, 1 - beta1, 1 - beta2, float(group["eps"]), *step)
        numbers.append(known[key])
    return numbers


def clip(grads: Sequence[Array], max_norm: float) -> Array:
    """Scale gradients that `table.takes_each`, in place, as `optim.clip_grad_norm_` says. Returns the norm before."""
    table, device = Table(grads), device_of(grads[0])
    parts = empty((table.chunks,), np.float64, device)
    norm, factor = empty((), np.float32, device), empty((), np.float32, device)
    table.launch(SQUARES, parts)
    CLIP_FACTOR(1, ONE_BLOCK, parts, np.int32(table.chunks), np.float64(max_norm), norm, factor)
    table.launch(SCALE, factor)
    return norm


def unscale(grads: Sequence[Array], factor: float) -> Array:
    """Multiply gradients that `table.takes_each`, in place. Returns whether all are finite then, without axes."""
    overflow = array_module(grads[0]).zeros((), np.bool_)
    Table(grads).launch(UNSCALE, np.float32(factor), overflow)
    return ~overflow


def average(averages: Sequence[Array], values: Sequence[Array], next_rest: Callable[[], float]) -> None:
    """ema <- ema + rest · (x - ema) for pairs that `table.takes`, in place; `next_rest` is asked once for each step."""
    Table(averages, values, numbers=next_rest).launch(AVERAGE)
