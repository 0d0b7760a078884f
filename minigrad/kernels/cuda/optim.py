"""L2: AdamW, gradient clipping, unscaling, EMA and flat copies, each for all parameters at once, by `optim.cu`.

Clipping is three launches, the others are one. AdamW, EMA and copies leave parameters whose arrays fit no row of a
table to the reference implementation in `minigrad/ops/updates.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import sqrt
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, device_of, empty
from minigrad.backend.capture import is_capturing
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.launch import SMALLEST, Kernel
from minigrad.kernels.cuda.table import Table, fits, fits_each, split
from minigrad.ops import updates as reference
from minigrad.ops.updates import Update

ADAMW, AVERAGE = Kernel("optim.cu", "adamw"), Kernel("optim.cu", "average")
SQUARES, CLIP_FACTOR, SCALE = (Kernel("optim.cu", name) for name in ("squares", "clip_factor", "scale"))
UNSCALE, COPIES = Kernel("optim.cu", "unscale"), Kernel("optim.cu", "copies")
ONE_BLOCK = 1024  # threads


def is_row(update: Update) -> bool:
    """True if x, grad, m and v can be one row of a table, and are the entire update: amsgrad has v_max too."""
    x, grad, state, options = update
    return not options.get("amsgrad") and fits(x, grad, state["m"], state["v"])


@fast_path_of(reference.adamw_all, supports=lambda updates: any(map(is_row, updates)))
def adamw_all(updates: Sequence[Update]) -> None:
    """One step of AdamW, in place. A row of the table holds x, grad, m, v."""
    rows, others = split(updates, is_row)
    reference.adamw_all(others)
    columns = [[x for x, *_ in rows], [grad for _, grad, *_ in rows]]
    columns += [[state[name] for _, _, state, _ in rows] for name in ("m", "v")]
    groups = []
    for _, own in groupby(rows, key=lambda row: id(row[3])):
        _, _, states, options = zip(*own, strict=True)
        groups.append((options[0], states))
    Table(*columns, scalars=lambda: next_scalars(groups)).launch(ADAMW)


def next_scalars(groups: Sequence[tuple[Mapping[str, Any], Sequence[dict[str, Any]]]]) -> np.ndarray:
    """Increment the step count t of each parameter, and return the scalars of step t, (rows, 8):

    β₁, β₂, 1 - β₁, 1 - β₂, eps, 1 - lr · weight_decay, lr / (1 - β₁ᵗ) and 1 / √(1 - β₂ᵗ).

    A captured graph calls this function before each launch. To save time, the scalars are computed once for adjacent
    parameters of a group with the same t, usually the entire group.

    Args:
        groups: for each parameter group its options, and the states of its parameters.
    """
    scalars: list[tuple[float, ...]] = []
    counts: list[int] = []  # rows with these scalars
    for group, states in groups:
        lr, eps, (beta1, beta2) = float(group["lr"]), float(group["eps"]), map(float, group["betas"])
        betas, decay = (beta1, beta2, 1 - beta1, 1 - beta2), 1 - lr * float(group["weight_decay"])
        steps = []
        for state in states:
            state["step"] = t = state["step"] + 1
            steps.append(t)
        for t, same in groupby(steps):
            scale = 1 / sqrt(1 - beta2**t)
            least = sqrt(SMALLEST) * scale  # of √v̂, unless the kernel flushes v to 0: then do not divide m by 0
            scalars.append((*betas, max(eps, least), decay, lr / (1 - beta1**t), scale))
            counts.append(len(list(same)))
    return np.array(scalars, np.float32).repeat(counts, axis=0)


@fast_path_of(reference.clip_by_global_norm, supports=lambda grads, max_norm: fits_each(grads))
def clip_by_global_norm(grads: Sequence[Array], max_norm: float) -> Array:
    """Clip gradients in place. Returns the norm before clipping, a 0-d float32 array."""
    table, device = Table(grads), device_of(grads[0])
    parts = empty((table.chunks,), np.float64, device)
    norm, factor = empty((), np.float32, device), empty((), np.float32, device)
    table.launch(SQUARES, parts)
    CLIP_FACTOR(1, ONE_BLOCK, parts, np.int32(table.chunks), np.float64(max_norm), norm, factor)
    table.launch(SCALE, factor)
    return norm


@fast_path_of(reference.unscale, supports=lambda grads, factor: fits_each(grads))
def unscale(grads: Sequence[Array], factor: float) -> Array:
    """g <- factor · g, in place. Returns whether all results are finite, a 0-d bool array."""
    overflow = array_module(grads[0]).zeros((), np.bool_)
    Table(grads).launch(UNSCALE, np.float32(factor), overflow)
    return ~overflow


@fast_path_of(reference.average_all, supports=lambda pairs, next_rest: any(fits(*pair) for pair in pairs))
def average_all(pairs: Sequence[tuple[Array, Array]], next_rest: Callable[[], float]) -> None:
    """ema <- ema + rest · (x - ema), in place. A row of the table holds ema, x.

    `GraphedStep` calls `next_rest` before each launch.
    """
    rows, others = split(pairs, lambda pair: fits(*pair))
    if not is_capturing():
        rest = next_rest()
        next_rest = lambda: rest  # noqa: E731
    if others:
        reference.average_all(others, next_rest)
    averages, values = zip(*rows, strict=True)
    Table(averages, values, scalars=next_rest).launch(AVERAGE)


@fast_path_of(reference.copy_all, supports=lambda pairs, divisor=1.0: any(fits(*pair) for pair in pairs))
def copy_all(pairs: Sequence[tuple[Array, Array]], divisor: float = 1.0) -> None:
    """out <- x / divisor for each pair (out, x). A row of the table holds out, x."""
    rows, others = split(pairs, lambda pair: fits(*pair))
    reference.copy_all(others, divisor)
    outs, values = zip(*rows, strict=True)
    Table(outs, values).launch(COPIES, np.float32(divisor))
