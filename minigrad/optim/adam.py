"""L5: Adam."""

from collections import ChainMap
from typing import Any

from minigrad.ops.updates import Update, with_l2
from minigrad.optim.adamw import AdamW
from minigrad.optim.optimizer import Optimizer, refuse


class Adam(AdamW):
    """Adam; weight decay is an L2 penalty, part of the gradient.  Kingma and Ba 2014, arXiv:1412.6980.

    decoupled_weight_decay: True: weight decay as in AdamW.

    The formula and its implementation: `with_l2` and, without weight decay, `adamw` in `minigrad/ops/updates.py`.
    A CUDA graph keeps the weight decay of the captured step.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **others: Any,
    ) -> None:
        refuse(type(self).__name__, others)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        Optimizer.__init__(
            self, params, {**defaults, "maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        )

    def update_all(self, updates: list[Update]) -> None:
        # One mapping for each group: a view, so that a captured graph reads the current learning rate.
        groups = {id(group): ChainMap({"weight_decay": 0.0}, group) for group in self.param_groups}
        super().update_all(
            [
                (x, grad, state, group)
                if group["decoupled_weight_decay"]
                else (x, with_l2(x, grad, float(group["weight_decay"])), state, groups[id(group)])
                for x, grad, state, group in updates
            ]
        )
