"""L5: the base class of optimizers: parameter groups, state, and `state_dict`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.autograd.grad_mode import enable_grad
from minigrad.backend import Array, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.nn.module import zero_grad
from minigrad.ops import checks
from minigrad.ops.updates import Update
from minigrad.optim.pytorch_state import ABSENT, WITHOUT_EFFECT, from_pytorch, to_pytorch
from minigrad.optim.state import State, read_state


class Optimizer:
    """Parameters in groups, each with its own options, and a state for each parameter.

    Args:
        params: Tensors, or groups: `{"params": [...], "lr": ..., ...}`. Options missing from a group have the default.
        defaults: the default options, by name.
    """

    pytorch_names: ClassVar[Mapping[str, str]] = {}  # names of the state in this class -> in PyTorch, if they differ

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: params must be an iterable of Tensors or groups, got one Tensor")
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimize")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: list[list[dict[str, Any]]] = []
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)
        if not any(group["params"] for group in self.param_groups):
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimize")

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group, `{"params": [...], "lr": ..., ...}`, such as layers that are no longer frozen."""
        name, params = type(self).__name__, param_group["params"]
        if isinstance(params, set):
            raise TypeError(f"{name}: params must have an order, which a set has not")
        tensors = [params] if isinstance(params, Tensor) else list(params)
        if unknown := set(param_group) - {"params", "name", "initial_lr", *self.defaults}:
            raise ValueError(
                f"{name}: a group has the unknown options {sorted(unknown)}; it may have {sorted(self.defaults)}"
            )
        if any(not isinstance(p, Tensor) or not p.is_leaf for p in tensors):
            raise TypeError(f"{name}: optimizes leaf Tensors, such as model.parameters()")
        seen = {id(p) for group in self.param_groups for p in group["params"]}
        if seen & {id(p) for p in tensors} or len({id(p) for p in tensors}) < len(tensors):
            raise ValueError(f"{name}: a parameter is in two groups, or twice in one")
        group = {**self.defaults, **param_group, "params": tensors}
        self.check(group)
        self.param_groups.append(group)
        self.state = [*self.state, [{} for _ in tensors]]  # a new list: a CUDA graph of the step is captured again

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError if an option of the group is out of range."""
        for name in ("lr", "initial_lr", "momentum", "eps", "weight_decay"):
            if name in group:
                checks.not_negative(group[name], name, type(self).__name__)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. For a 16-bit parameter, update and state are in float32.

        closure: computes the loss and the gradients, and is called first; `step` returns the loss.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        updates: list[Update] = []  # with -grad if the group has the option maximize
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
                updates.append((x, -g if group.get("maximize") else g, state, group))
                updated.append(parameter.data)
        self.update_all(updates)
        for data, x in half:
            data[...] = cast(x, data.dtype)
        writes.note(updated)
        return loss

    def __repr__(self) -> str:
        groups = [
            "\n".join(
                [f"Parameter Group {i}", *(f"    {name}: {group[name]}" for name in sorted(group) if name != "params")]
            )
            for i, group in enumerate(self.param_groups)
        ]
        return "\n".join([f"{type(self).__name__} (", "\n\n".join(groups), ")"])

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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to None, or with set_to_none=False to 0, in place."""
        for group in self.param_groups:
            zero_grad(group["params"], set_to_none)

    def all_finite(self, finite: bool) -> bool:
        """`finite`: True if the gradients on this rank are finite. An optimizer that is sharded asks all ranks."""
        return finite

    def state_dict(self) -> dict[str, Any]:
        """The state and the groups in PyTorch's form, where parameters are numbered in the order of the groups:

            {"state": {0: {"step": ..., "exp_avg": ...}, ...}, "param_groups": [{"lr": ..., "params": [0, 1]}, ...]}

        The Tensors share memory with the live state: copy or save them before the next step.
        """
        return to_pytorch(self.param_groups, self.state, self.pytorch_names)

    def flat_state_dict(self) -> dict[str, Array]:
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
        """Load a `state_dict`, or a `flat_state_dict`, of the same parameters in the same order.

        A state_dict of PyTorch's optimizer loads too, with arrays in place of its tensors. As in PyTorch, all options
        of the groups are loaded; from a flat_state_dict, only the learning rates.

        Raises:
            ValueError: `state_dict` is incomplete or belongs to other parameters. The optimizer is unchanged.
        """
        options, states = self.read_state_dict(state_dict)
        for group, own in zip(self.param_groups, options, strict=True):
            group.update(own)
        self.state = states

    def read_state_dict(self, state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[list[State]]]:
        """The options of each group, and the state of each parameter, checked. The optimizer is unchanged."""
        name, groups = type(self).__name__, self.param_groups
        loaded: list[dict[str, Any]] = [{} for _ in groups]
        if "param_groups" in state_dict:
            loaded, state_dict = from_pytorch(state_dict, name, groups, self.pytorch_names)
        merged = [{**group, **own} for group, own in zip(groups, loaded, strict=True)]
        for group in merged:
            self.check(group)
        rates, states = read_state(state_dict, name, groups, [self.state_names(group) for group in merged])
        return [{**own, **rate} for own, rate in zip(loaded, rates, strict=True)], states


def refuse(optimizer: str, options: Mapping[str, Any]) -> None:
    """Check the options that PyTorch's optimizer has and this one lacks.

    An option that chooses an implementation has no effect here; one that would change the result must be off.
    """
    for name, value in options.items():
        if name not in ABSENT | WITHOUT_EFFECT:
            raise TypeError(f"{optimizer}: unexpected option {name!r}")
        if value and name in ABSENT:
            raise ValueError(f"{optimizer}: {name}={value!r} is not supported")
