"""L5: learning-rate schedules."""

from collections.abc import Mapping
from math import cos, pi

import numpy as np

from minigrad.ops import checks
from minigrad.optim.optimizer import Optimizer


class WarmupCosine:
    """Linear warm-up over `warmup_steps`, then cosine decay to `final` times the base rate at `total_steps`.

        lr(t) = base · (t + 1) / warmup                                   t < warmup
        lr(t) = base · (final + (1 - final) · ½ (1 + cos π s))            s = (t - warmup) / (total - warmup)

    Call `step` after each `optimizer.step`. The base rate of a group is its learning rate when its first schedule is
    created. As in PyTorch, the group keeps the base rate as `initial_lr`, part of the optimizer's state: schedule and
    optimizer can be created and loaded in any order, and a second schedule starts from the same base rates.

    Loshchilov and Hutter 2016, arXiv:1608.03983; warmup: Goyal et al. 2017, arXiv:1706.02677.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, final: float = 0.0) -> None:
        if not 0 <= warmup_steps <= total_steps:
            raise ValueError(
                f"WarmupCosine: needs 0 <= warmup_steps <= total_steps, got {warmup_steps} and {total_steps}"
            )
        self.optimizer, self.warmup_steps, self.total_steps = optimizer, warmup_steps, total_steps
        self.final = checks.not_negative(final, "final", "WarmupCosine")
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        self.t = 0
        self._set()

    def factor(self, t: int) -> float:
        """lr(t) / base, the factor of the learning rates at step t."""
        if t < self.warmup_steps:
            return (t + 1) / self.warmup_steps
        s = min((t - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + cos(pi * s))

    def step(self) -> None:
        """Set the learning rates of the next step."""
        self.t += 1
        self._set()

    def state_dict(self) -> dict[str, np.ndarray]:
        """{"t": the number of calls of `step`}."""
        return {"t": np.asarray(self.t)}

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        """Load a `state_dict`, and set the learning rates; ValueError if t is missing or invalid."""
        if "t" not in state_dict:
            raise ValueError("WarmupCosine: this state lacks t, the number of steps")
        t = checks.not_negative(state_dict["t"], "t", "WarmupCosine")
        if t != int(t):
            raise ValueError(f"WarmupCosine: t, the number of steps, must be a whole number, got {t}")
        self.t = int(t)
        self._set()

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["initial_lr"]) * self.factor(self.t)
