"""L2: AdamW in one kernel."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from minigrad.backend import Array, empty
from minigrad.kernels.cuda.launch import Kernel, on_gpu

ADAMW = Kernel("optim.cu", "adamw")
THREADS, MOST_BLOCKS = 256, 1024


def takes(x: Array, grad: Array) -> bool:
    """Whether `adamw` is for this parameter and gradient."""
    return all(on_gpu(a) and a.dtype == np.float32 and a.flags.c_contiguous for a in (x, grad))


def adamw(
    x: Array, grad: Array, m: Array, v: Array, *, betas: tuple[float, float], eps: float,
    step: tuple[float, float, float] | Array,
) -> None:  # fmt: skip
    """One step of AdamW on x, m and v, in place.

    Args:
        x, grad, m, v: float32, of one shape.
        betas, eps: as in minigrad/optim/optimizer.py.
        step: what `next_scalars` gives; in a step that is captured, the same three as float32 on the device.
    """
    blocks = min(-(-x.size // THREADS), MOST_BLOCKS)
    captured = None if isinstance(step, tuple) else step
    scalars = (*betas, 1 - betas[0], 1 - betas[1], eps, *(step if isinstance(step, tuple) else (0.0, 0.0, 0.0)))
    ADAMW(blocks, THREADS, x, grad, m, v, np.int64(x.size), *map(np.float32, scalars), captured)


def next_scalars(state: dict[str, Any], group: Mapping[str, Any]) -> tuple[float, float, float]:
    """1 - lr · weight_decay, lr / (1 - β₁ᵗ) and 1 / √(1 - β₂ᵗ) of the next step t, which is counted in `state`."""
    state["step"] = t = state["step"] + 1
    lr, (beta1, beta2) = group["lr"], group["betas"]
    return 1 - lr * group["weight_decay"], lr / (1 - beta1**t), 1 / sqrt(1 - beta2**t)


class CapturedScalars:
    """These three for every parameter, in device memory: there a captured step reads them.

    Args:
        count: how many parameters there are.
        device: where they are.
    """

    def __init__(self, count: int, device: str) -> None:
        self.rows = empty((count, 3), np.float32, device)
        self.parameters: list[tuple[dict[str, Any], Mapping[str, Any]]] = []

    def add(self, state: dict[str, Any], group: Mapping[str, Any]) -> Array:
        """While it is captured: room for the scalars of one more parameter."""
        self.parameters.append((state, group))
        return self.rows[len(self.parameters) - 1]

    def upload(self) -> None:
        """Before the graph is launched: those of the next step."""
        values = np.zeros(self.rows.shape, np.float32)
        for i, (state, group) in enumerate(self.parameters):
            values[i] = next_scalars(state, group)
        self.rows.set(values)
