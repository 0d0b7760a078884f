"""L5: AdamW."""

from collections.abc import Mapping
from typing import Any, ClassVar

from minigrad.backend import array_module, fast_paths
from minigrad.backend.capture import is_capturing
from minigrad.ops import checks
from minigrad.ops.updates import Update, adamw_all
from minigrad.optim.optimizer import Optimizer, refuse


class AdamW(Optimizer):
    """Adam with decoupled weight decay.  Loshchilov and Hutter 2017, arXiv:1711.05101.

    The formula and its implementation: `adamw` in `minigrad/ops/updates.py`.

    A CUDA graph captures only steps without amsgrad.

    `others`: options of PyTorch that have no effect (foreach, fused, capturable), or must be off (differentiable).
    """

    pytorch_names: ClassVar = {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **others: Any,
    ) -> None:
        refuse(type(self).__name__, others)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "amsgrad": amsgrad, "maximize": maximize})

    def check(self, group: Mapping[str, Any]) -> None:
        super().check(group)
        name, betas = type(self).__name__, tuple(group["betas"])
        if len(betas) != 2 or not all(0 <= checks.scalar(beta, "a beta", name) < 1 for beta in betas):
            raise ValueError(f"{name}: betas must be two numbers from 0 to below 1, got {betas}")

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("step", "m", "v", "v_max") if group.get("amsgrad") else ("step", "m", "v")

    def update_all(self, updates: list[Update]) -> None:
        for x, _, state, group in updates:
            if not state:
                if is_capturing():
                    raise RuntimeError(
                        "AdamW: a parameter has its first gradient in the captured step, in which its state cannot be "
                        "created: use a larger `warmup` of GraphedStep"
                    )
                xp = array_module(x)
                state.update({name: xp.zeros_like(x) for name in self.state_names(group)}, step=0)
        fast_paths.call(adamw_all, updates)
