"""L5: the base class of optimizers: parameter groups, state, and `state_dict`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.backend import Array, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.ops import checks
from minigrad.ops.updates import Update
from minigrad.optim.state import Rates, State, read_state


class Optimizer:
    """Parameters in groups, each with its own options, and a state for each parameter.

    Args:
        params: Tensors, or groups: `{"params": [...], "lr": ..., ...}`. Options missing from a group have the default.
        defaults: the default options, by name.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        entries: list[Any] = list(params)
        groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
        self.param_groups: list[dict[str, Any]] = []
        self.state: list[list[dict[str, Any]]] = []
        seen: set[int] = set()
        for group in groups:
            unknown = set(group) - {"params", "name", "initial_lr", *defaults}
            tensors = list(group["params"])
            if unknown:
                raise ValueError(
                    f"{type(self).__name__}: a group has the unknown options {sorted(unknown)}; "
                    f"it may have {sorted(defaults)}"
                )
            if any(not isinstance(p, Tensor) or not p.is_leaf for p in tensors):
                raise TypeError(f"{type(self).__name__}: optimizes leaf Tensors, such as model.parameters()")
            if seen & {id(p) for p in tensors} or len({id(p) for p in tensors}) < len(tensors):
                raise ValueError(f"{type(self).__name__}: a parameter is in two groups, or twice in one")
            seen |= {id(p) for p in tensors}
            self.param_groups.append({**defaults, **group, "params": tensors})
            self.check(self.param_groups[-1])
            self.state.append([{} for _ in tensors])
        if not seen:
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimize")

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError if an option of the group is out of range."""
        for name in ("lr", "initial_lr", "momentum", "eps", "weight_decay"):
            if name in group:
                checks.not_negative(group[name], name, type(self).__name__)

    def step(self) -> None:
        """Update every parameter that has a gradient. For a 16-bit parameter, update and state are in float32."""
        updates: list[Update] = []
        half: list[tuple[Array, Array]] = []  # 16-bit parameters, and their float32 copies
        updated: list[Array] = []
        for group, states in zip(self.param_groups, self.state, strict=True):
            for parameter, state in zip(group["params"], states, strict=True):
                if (grad := parameter.grad) is None:
                    continue
                x, g = parameter.data, grad.data
                if is_half(x.dtype):
                    x, g = cast(x, FLOAT32), cast(g, FLOAT32)
                    half.append((parameter.data, x))
                updates.append((x, g, state, group))
                updated.append(parameter.data)
        self.update_all(updates)
        for data, x in half:
            data[...] = cast(x, data.dtype)
        writes.note(updated)

    def update_all(self, updates: list[Update]) -> None:
        """Update the parameters; by default with `update`, one after another."""
        for x, grad, state, group in updates:
            self.update(x, grad, state, group)

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Update one parameter, in place. `state` is empty before the parameter's first update."""
        raise NotImplementedError

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the state of each parameter of this group. The first update of a parameter creates its state."""
        return ()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Array]:
        """Arrays by name: `G.I.NAME` is state NAME of parameter I in group G. Each group has `G.lr`, with a schedule
        also `G.initial_lr`, and `G.has_state`, (P,) bool: True for each of its P parameters that has a state.

        On the CPU, the arrays are the live state, not copies: copy or save them before the next step.
        """
        arrays: dict[str, Array] = {}
        for g, (group, states) in enumerate(zip(self.param_groups, self.state, strict=True)):
            rates = {name: np.asarray(float(group[name])) for name in ("lr", "initial_lr") if name in group}
            arrays |= {f"{g}.{name}": rate for name, rate in rates.items()}
            arrays[f"{g}.has_state"] = np.array([bool(state) for state in states], np.bool_)
            for i, state in enumerate(states):
                for name, value in state.items():
                    arrays[f"{g}.{i}.{name}"] = np.asarray(value) if isinstance(value, int) else to_device(value, "cpu")
        return arrays

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a `state_dict` of the same parameters in the same order.

        Raises:
            ValueError: `state_dict` is incomplete or belongs to other parameters. The optimizer is unchanged.
        """
        rates, self.state = self.read_state_dict(state_dict)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group.update(rate)

    def read_state_dict(self, state_dict: Mapping[str, Any]) -> tuple[list[Rates], list[list[State]]]:
        """The learning rates of each group, and the state of each parameter, checked. The optimizer is unchanged."""
        names = [self.state_names(group) for group in self.param_groups]
        return read_state(state_dict, type(self).__name__, self.param_groups, names)
