"""L1: mixed precision: 16-bit activations, float32 parameters.

On a GPU, matrix products are several times faster in bfloat16 than in float32, and every other op reads and writes
half as many bytes. But 16-bit sums of many small terms lose the terms to rounding, so parameters, their gradients,
optimizer state and accumulators stay float32. Within `autocast`, each op follows its rule in `minigrad/ops/rules.py`
(`Rule.autocast`, in brackets):

    matrix products         cast their first n inputs to 16 bits, accumulate in float32      (n)
    norms                   cast no input; statistics and parameters are float32             (0)
    losses, softmax, sums   cast 16-bit inputs to float32                                    ("float32")
    other ops               cast all inputs to 16 bits if one of them is 16-bit              ("follow")

A gradient has the dtype of its tensor: 16-bit for activations, float32 for parameters.

Micikevicius et al. 2017, "Mixed Precision Training", arXiv:1710.03740; Kalamkar et al. 2019, "A Study of BFLOAT16 for
Deep Learning Training", arXiv:1905.12322.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.autograd.grad_mode import mode, mode_set
from minigrad.autograd.node import Leaf
from minigrad.backend import Array
from minigrad.backend.dtypes import FLOAT32, HALF, as_dtype, cast, cast_all, half_dtype, is_half, upcast


@contextmanager
def autocast(
    *arguments: Any, dtype: Any = None, enabled: bool = True, parameters: Iterable[Any] = (), device_type: Any = None
) -> Iterator["Autocast | None"]:
    """`autocast(dtype="bfloat16", enabled=True, parameters=())`, or with a device first, `autocast("cuda", dtype=...)`.

    Within the block, matrix products of this thread run in 16 bits; losses, softmax and sums in float32.

        with minigrad.autocast("bfloat16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    Also a decorator. The 16-bit copy of a parameter is cached until the block ends, so call the optimizer's step after
    the block.

    Args:
        device_type: "cpu" or "cuda", no effect: ops run on the device of their inputs.
        dtype: "bfloat16", with the range of float32, or "float16", with more digits, but a small range in which
            gradients underflow: scale the loss with `optim.GradScaler`.
        enabled: if False, ops compute in the dtypes of their inputs, also inside another autocast block.
        parameters: float32 Tensors to cast at the start of the block if they are on a GPU: one kernel launch in all,
            instead of one launch per Tensor at its first use. Unused parameters are allowed.

    Raises:
        ValueError: dtype is not a 16-bit dtype.
        RuntimeError: dtype is bfloat16, and the package ml_dtypes is not installed.
    """
    given = arguments[bool(arguments) and str(arguments[0]).partition(":")[0] in ("cpu", "cuda") :]
    options = [dtype, enabled, parameters]
    options[: len(given)] = given
    dtype, enabled, parameters = options
    with mode_set(autocast=Autocast(as_dtype(dtype or "bfloat16"), parameters) if enabled else None):
        yield mode.autocast


class Autocast:
    """The state of an autocast block: the 16-bit dtype, and cached 16-bit copies of parameters."""

    def __init__(self, dtype: np.dtype, parameters: Iterable[Any] = ()) -> None:
        if not is_half(dtype):
            raise ValueError(f"autocast: dtype must be {' or '.join(HALF)}, got {dtype}")
        self.dtype = dtype
        self.copies: dict[Leaf, Array] = {}  # parameter -> 16-bit copy, cast at first use
        arrays = [p.data for p in parameters if p.dtype == FLOAT32 and not isinstance(p.data, np.ndarray)]
        copies = zip(arrays, cast_all(arrays, dtype), strict=True)
        self.precast = {id(x): (x, copy) for x, copy in copies}  # the reference to x keeps its id unique

    def inputs(self, rule: int | str, edges: Sequence[Any], arrays: list[Any]) -> list[Any]:
        """The input arrays of an op, cast by the op's `Rule.autocast`. `edges`: the edge of each input, or None."""
        if rule == "float32":
            return upcast(arrays)
        count = rule if isinstance(rule, int) else len(arrays) if half_dtype(arrays) else 0
        return [self._cast(x, edge) for x, edge in zip(arrays[:count], edges, strict=False)] + arrays[count:]

    def _cast(self, x: Any, edge: Any) -> Any:
        if not hasattr(x, "dtype") or (x.dtype != FLOAT32 and not is_half(x.dtype)):
            return x  # float64 is not cast, as in PyTorch
        if id(x) in self.precast:
            return self.precast[id(x)][1]
        if edge is None or type(edge[0]) is not Leaf:
            return cast(x, self.dtype)
        copy = self.copies.get(edge[0])
        if copy is None:
            copy = self.copies[edge[0]] = cast(x, self.dtype)
        return copy
