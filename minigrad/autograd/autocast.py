"""L1: mixed precision: 16-bit activations, float32 parameters.

A bfloat16 matrix product takes a GPU a small part of the time of a float32 one, and every other op reads and writes
half as much. But a sum of many small updates must not be in 16 bits: parameters, their gradients, optimizer state and
sums stay float32. So within `autocast`, by the rules of `minigrad/ops/rules.py`,

    matrix products         cast their inputs to 16 bits, parameters too, and sum in float32        (a number of inputs)
    other ops               compute in the dtype that they are given: 16 bits if any input is       ("follow")
    norms                   take a 16-bit input; statistics and parameters are float32              (0 inputs)
    losses, softmax, sums   compute in float32                                                      ("float32")

A gradient has the dtype of its tensor: 16 bits for activations, float32 for parameters.

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
    dtype: Any = "bfloat16", enabled: bool = True, parameters: Iterable[Any] = ()
) -> Iterator["Autocast | None"]:
    """Within the block, this thread's ops compute in a 16-bit dtype, by the rules above. Also a decorator.

        with minigrad.autocast("bfloat16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    A parameter is cast once in a block, however often it is used: call the optimizer's step after the block.

    Args:
        dtype: "bfloat16", with float32's range, or "float16", with more digits but a range so small that gradients
            vanish in it: scale the loss by `optim.GradScaler`.
        enabled: False: ops compute in the dtypes of their inputs, also inside another autocast block.
        parameters: Tensors that ops will cast. Those on a GPU are cast at the start of the block in one launch, instead
            of in one launch each at first use. Unused ones do no harm.

    Raises:
        ValueError: another dtype.
        RuntimeError: bfloat16 without the package ml_dtypes.
    """
    with mode_set(autocast=Autocast(as_dtype(dtype), parameters) if enabled else None):
        yield mode.autocast


class Autocast:
    """The state of an autocast block: its dtype, and the 16-bit copies of the parameters used in it."""

    def __init__(self, dtype: np.dtype, parameters: Iterable[Any] = ()) -> None:
        if not is_half(dtype):
            raise ValueError(f"autocast: the dtype is {' or '.join(HALF)}, got {dtype}")
        self.dtype = dtype
        self.copies: dict[Leaf, Array] = {}  # of parameters
        arrays = [p.data for p in parameters if p.dtype == FLOAT32 and not isinstance(p.data, np.ndarray)]
        copies = zip(arrays, cast_all(arrays, dtype), strict=True)
        self.at_once = {id(x): (x, copy) for x, copy in copies}  # x too, as only its id is no other's

    def inputs(self, rule: int | str, edges: Sequence[Any], arrays: list[Any]) -> list[Any]:
        """The inputs of an op, cast by its rule (`Rule.autocast`). `edges`: for each, where its gradient goes."""
        if rule == "float32":
            return upcast(arrays)
        count = rule if isinstance(rule, int) else len(arrays) if half_dtype(arrays) else 0
        return [self._cast(x, edge) for x, edge in zip(arrays[:count], edges, strict=False)] + arrays[count:]

    def _cast(self, x: Any, edge: Any) -> Any:
        if not hasattr(x, "dtype") or (x.dtype != FLOAT32 and not is_half(x.dtype)):
            return x  # float64 is meant to be exact, and stays so, as in PyTorch
        if id(x) in self.at_once:
            return self.at_once[id(x)][1]
        if edge is None or type(edge[0]) is not Leaf:
            return cast(x, self.dtype)
        copy = self.copies.get(edge[0])
        if copy is None:
            copy = self.copies[edge[0]] = cast(x, self.dtype)
        return copy
