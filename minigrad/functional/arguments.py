"""L4: types and batching that several files of this folder use."""

from collections.abc import Callable
from typing import Literal

from minigrad._tensor import Tensor

Pair = int | tuple[int, int]
Reduction = Literal["mean", "sum", "none"]


def batched(op: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`op(x)`, for `op` a function of images (N, C, H, W), and x images or one image (C, H, W)."""
    return op(x) if x.ndim != 3 else op(x[None])[0]
