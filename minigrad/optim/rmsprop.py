"""L5: RMSprop and Adagrad: learning rates for each element, from its past gradients."""

from collections.abc import Mapping
from typing import Any

from minigrad.backend import Array, array_module
from minigrad.ops.updates import adagrad, rmsprop
from minigrad.optim.optimizer import Optimizer, refuse


class RMSprop(Optimizer):
    """Divide gradients by a running root mean square.  Hinton 2012, lecture 6 of "Neural networks for machine
    learning"; centered: Graves 2013, arXiv:1308.0850.

    The formula and its implementation: `rmsprop` in `minigrad/ops/updates.py`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **others: Any,
    ) -> None:
        refuse("RMSprop", others)
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "momentum": momentum, "centered": centered, "maximize": maximize})

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        if not 0 <= float(group["alpha"]) < 1:
            raise ValueError(f"RMSprop: alpha must be from 0 to below 1, got {group['alpha']}")

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        optional = ("momentum_buffer", float(group["momentum"]) > 0), ("grad_avg", group["centered"])
        return "step", "square_avg", *(name for name, used in optional if used)

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        names = self.state_names(group)[1:]
        for name in names:
            if name not in state:
                state[name] = array_module(x).zeros_like(x)
        state["step"] = state.get("step", 0) + 1
        lr, alpha, eps, weight_decay, momentum = (
            float(group[name]) for name in ("lr", "alpha", "eps", "weight_decay", "momentum")
        )
        v, m, b = (state.get(name) for name in ("square_avg", "grad_avg", "momentum_buffer"))
        m, b = m if group["centered"] else None, b if momentum else None
        rmsprop(x, grad, v, m, b, lr, alpha, eps, weight_decay, momentum)


class Adagrad(Optimizer):
    """Divide gradients by the root of the sum of all past squares.  Duchi, Hazan and Singer 2011.

    The formula and its implementation: `adagrad` in `minigrad/ops/updates.py`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **others: Any,
    ) -> None:
        refuse("Adagrad", others)
        defaults = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"initial_accumulator_value": initial_accumulator_value, "maximize": maximize}
        super().__init__(params, defaults)

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return "step", "sum"

    def update(self, x: Array, grad: Array, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        if not state:
            start = array_module(x).full_like(x, float(group["initial_accumulator_value"]))
            state.update(step=0, sum=start)
        lr = float(group["lr"]) / (1 + state["step"] * float(group["lr_decay"]))
        state["step"] += 1
        adagrad(x, grad, state["sum"], lr, float(group["eps"]), float(group["weight_decay"]))
