"""L5: SGD."""

from collections.abc import Mapping
from typing import Any, ClassVar

from minigrad.backend import array_module
from minigrad.ops.updates import Update, sgd
from minigrad.optim.optimizer import Optimizer, refuse


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.  Sutskever et al. 2013.

    The formula and its implementation: `sgd` in `minigrad/ops/updates.py`.

    `others`: options of PyTorch that have no effect (foreach, fused), or must be off (differentiable).
    """

    pytorch_names: ClassVar = {"v": "momentum_buffer"}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **others: Any,
    ) -> None:
        refuse("SGD", others)
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": nesterov, "maximize": maximize})

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        if group["nesterov"] and (not float(group["momentum"]) or float(group["dampening"])):
            raise ValueError("SGD: nesterov needs a momentum above 0, and dampening=0")

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The momentum buffer "v"; empty if momentum is 0."""
        return ("v",) if float(group["momentum"]) else ()

    def update_all(self, updates: list[Update]) -> None:
        for x, grad, state, group in updates:
            lr, momentum, weight_decay = float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])
            dampening = float(group["dampening"])
            if momentum and "v" not in state:
                state["v"], dampening = array_module(x).zeros_like(x), 0.0  # as in PyTorch, v = g after the first step
            v = state["v"] if momentum else None
            sgd(x, grad, v, lr, momentum, weight_decay, group["nesterov"], dampening)
