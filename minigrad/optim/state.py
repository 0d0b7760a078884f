"""L5: read the `state_dict` of an optimizer, and check that it fits the optimizer's parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import Array, array_module, plain, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_floating, is_half
from minigrad.ops import checks

Rates = dict[str, float]  # of a group: lr, and with a schedule initial_lr
State = dict[str, Any]  # of a parameter: counts and arrays by name


def read_state(
    state_dict: Mapping[str, Any],
    optimizer: str,
    groups: Sequence[Mapping[str, Any]],
    names: Sequence[tuple[str, ...]],
) -> tuple[list[Rates], list[list[State]]]:
    """The learning rates of each group, and the state of each parameter of each group.

    Without the key `<group>.has_state` (older versions), every parameter must have a state.

    Args:
        state_dict: arrays by name, from `Optimizer.state_dict`.
        optimizer: the name of the optimizer, for error messages.
        groups: the `param_groups` of the optimizer.
        names: for each group, the names of the state of a parameter.

    Raises:
        ValueError: `state_dict` is incomplete or belongs to other parameters.
    """
    arrays = {key: value.data if isinstance(value, Tensor) else plain(value) for key, value in state_dict.items()}
    if extra := {key.partition(".")[0] for key in arrays} - {str(g) for g in range(len(groups))}:
        raise ValueError(
            f"{optimizer}: this state has a group {min(extra)!r}; number of groups in this optimizer: {len(groups)}"
        )
    read = [
        _read_group(g, arrays, group["params"], own, optimizer)
        for g, (group, own) in enumerate(zip(groups, names, strict=True))
    ]
    return [rates for rates, _ in read], [states for _, states in read]


def _read_group(
    g: int, arrays: Mapping[str, Array], parameters: Sequence[Tensor], names: tuple[str, ...], optimizer: str
) -> tuple[Rates, list[State]]:
    """The learning rates of group `g`, and the state of each of its parameters, {} if a parameter has none."""
    if f"{g}.lr" not in arrays:
        raise ValueError(
            f"{optimizer}: this state lacks {g}.lr, the learning rate of a group: it belongs to other parameters"
        )
    own = [name for name in ("lr", "initial_lr") if f"{g}.{name}" in arrays]
    rates = {name: checks.not_negative(arrays[f"{g}.{name}"], f"{g}.{name}", optimizer) for name in own}
    P = len(parameters)
    has_state = np.asarray(arrays.get(f"{g}.has_state", np.ones(P, np.bool_)))
    if has_state.shape != (P,):
        raise ValueError(
            f"{optimizer}: number of parameters of group {g}: {has_state.size} in this state, {P} in this optimizer"
        )
    states: list[State] = [{} for _ in parameters]
    read = {f"{g}.{name}" for name in ("has_state", *own)}
    for i in map(int, has_state.nonzero()[0]):
        keys = {name: f"{g}.{i}.{name}" for name in names}
        if missing := [name for name, key in keys.items() if key not in arrays]:
            raise ValueError(
                f"{optimizer}: the state of parameter {g}.{i} does not fit these parameters: "
                f"{', '.join(missing)} is missing"
            )
        states[i] = {name: _read_value(key, arrays[key], parameters[i], optimizer) for name, key in keys.items()}
        read |= set(keys.values())
    for key in arrays:
        if key.startswith(f"{g}.") and key not in read:
            raise ValueError(
                f"{optimizer}: {key!r} does not fit these parameters: the state of a parameter of group {g} is "
                f"{', '.join(names) or 'empty'}"
            )
    return rates, states


def _read_value(key: str, value: Array, parameter: Tensor, optimizer: str) -> Any:
    """One value of a parameter's state: a count, or an array in the dtype of the update."""
    misfit = f"{optimizer}: {key!r} does not fit these parameters"
    if key.endswith(".step"):
        count = checks.not_negative(value, key, optimizer)
        if count != int(count):
            raise ValueError(f"{misfit}: it must be a whole number, got {count}")
        return int(count)
    if value.shape != parameter.shape:
        raise ValueError(f"{misfit}: it has shape {value.shape}, the parameter {parameter.shape}")
    if not is_floating(value.dtype):
        raise ValueError(f"{misfit}: it must be floating-point, got {value.dtype}")
    with np.errstate(over="ignore"):  # the next check reports overflow
        array = cast(value, FLOAT32 if is_half(parameter.dtype) else parameter.dtype)
    if not array_module(array).isfinite(array).all():
        raise ValueError(f"{misfit}: it has values that are NaN or infinite in {array.dtype}")
    return to_device(array.copy() if array is value else array, parameter.device)
