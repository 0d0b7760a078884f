"""L5: the state_dict of an optimizer in PyTorch's form, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import plain

WITHOUT_EFFECT = {"foreach", "fused", "capturable"}
"""Options of PyTorch's groups that choose an implementation."""
ABSENT = {"differentiable"}
"""Options of PyTorch's groups that no optimizer of minigrad has."""


def to_pytorch(
    groups: Sequence[Mapping[str, Any]], states: Sequence[Sequence[Mapping[str, Any]]], names: Mapping[str, str]
) -> dict[str, Any]:
    """{"state": ..., "param_groups": ...}, with PyTorch's `names`. The Tensors share memory with `states`."""
    state: dict[int, dict[str, Tensor]] = {}
    packed, first = [], 0
    for group, own in zip(groups, states, strict=True):
        for i, values in enumerate(own, first):
            if values:
                state[i] = {names.get(name, name): _tensor(value) for name, value in values.items()}
        options = {name: value for name, value in group.items() if name != "params"}
        packed.append({**options, "params": list(range(first, first + len(own)))})
        first += len(own)
    return {"state": state, "param_groups": packed}


def from_pytorch(
    state_dict: Mapping[str, Any], optimizer: str, groups: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The options of each group, and the arrays in the form of `Optimizer.flat_state_dict`.

    Raises:
        ValueError: the numbers of groups or parameters differ, or an option is on that does not exist here.
    """
    given = state_dict["param_groups"]
    if len(given) != len(groups):
        raise ValueError(f"{optimizer}: number of groups: {len(given)} in this state, {len(groups)} in this optimizer")
    own_name = {theirs: ours for ours, theirs in names.items()}
    arrays: dict[str, Any] = {}
    loaded = []
    for g, (theirs, ours) in enumerate(zip(given, groups, strict=True)):
        if len(theirs["params"]) != len(ours["params"]):
            counts = len(theirs["params"]), len(ours["params"])
            raise ValueError(
                f"{optimizer}: number of parameters of group {g}: {counts[0]} in this state, {counts[1]} here"
            )
        if on := [name for name in sorted(ABSENT) if theirs.get(name) and name not in ours]:
            raise ValueError(f"{optimizer}: this state is of an optimizer with {on[0]}, which is not supported")
        skipped = {"params", *WITHOUT_EFFECT, *ABSENT} | ({"decoupled_weight_decay"} - ours.keys())  # an option of Adam
        options = {name: value for name, value in theirs.items() if name not in skipped}
        loaded.append({name: value.item() if isinstance(value, Tensor) else value for name, value in options.items()})
        has_state = np.zeros(len(ours["params"]), np.bool_)
        for i, key in enumerate(theirs["params"]):
            values = state_dict["state"].get(key, {})
            values = {name: value for name, value in values.items() if value is not None}
            has_state[i] = bool(values)
            arrays |= {f"{g}.{i}.{own_name.get(name, name)}": _array(value) for name, value in values.items()}
        arrays |= {f"{g}.lr": _array(theirs["lr"]), f"{g}.has_state": has_state}
    return loaded, arrays


def _array(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value if hasattr(value, "ndim") else np.asarray(plain(value))


def _tensor(value: Any) -> Tensor:
    """A count as PyTorch stores it, a float32 Tensor; an array as a Tensor that shares memory."""
    return Tensor(np.float32(value)) if isinstance(value, int) else Tensor(value)
