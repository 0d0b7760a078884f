"""L5: loss scaling, so that float16 gradients neither underflow nor overflow."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.backend import Array, fast_paths
from minigrad.backend.dtypes import is_half
from minigrad.ops import checks
from minigrad.ops.updates import unscale
from minigrad.optim.optimizer import Optimizer

SMALLEST = 2.0**-14  # float16's smallest normal number: S is the first gradient of backward, and exact above SMALLEST

_STATE = "scale", "good_steps"
_UPDATE = "call update() after the step of every optimizer"


class GradScaler:
    """Multiplies the loss by a factor S, and divides the gradients of the parameters by S before the optimizer step.

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    Many gradients are below 6e-8, the smallest positive float16; gradients of S · loss are in its range. S adapts: if
    a gradient overflows, the step is skipped and S decreases; after `growth_interval` steps without overflow, S
    increases. With powers of two as factors, S is a power of two, so scaling does not round. (bfloat16 has the range of
    float32 and needs no scaling.)

    S does not fall below 2^-14. A gradient that is not finite even at this S is above 2^30, or NaN for every S:
    skipping further steps would not help.

    `step` synchronizes with the device, to check for Inf and NaN.  Micikevicius et al. 2017, arXiv:1710.03740, section
    3.2.

    Args:
        init_scale: the first S.
        growth_factor, backoff_factor: multiply S to increase and to decrease it.
        growth_interval: the number of steps without overflow after which S increases.
        enabled: if False, S is 1, and gradients are not checked.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        factors = {"init_scale": init_scale, "growth_factor": growth_factor, "backoff_factor": backoff_factor}
        init_scale, growth_factor, backoff_factor = (
            checks.scalar(x, name, "GradScaler") for name, x in factors.items()
        )
        if not (isfinite(init_scale) and init_scale > 0 and growth_factor > 1 and 0 < backoff_factor < 1):
            raise ValueError(
                "GradScaler: needs init_scale > 0, growth_factor > 1 and 0 < backoff_factor < 1, got "
                f"{init_scale}, {growth_factor} and {backoff_factor}"
            )
        if growth_interval < 1:
            raise ValueError(f"GradScaler: growth_interval must be at least 1, got {growth_interval}")
        self.factor, self.growth_factor, self.backoff_factor = init_scale, growth_factor, backoff_factor
        self.growth_interval, self.enabled = growth_interval, enabled
        self.good_steps = 0  # since S last changed
        # Since the last `update`: whether an optimizer's unscaled gradients are finite, and the optimizers that stepped
        self._finite: dict[Optimizer, bool] = {}
        self._stepped: set[Optimizer] = set()

    def get_scale(self) -> float:
        """The loss scale S; 1 if disabled."""
        return self.factor if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """S · loss, to call `backward` on. A 16-bit loss is scaled in float32: the largest float16 is 65504."""
        if not self.enabled:
            return loss
        return (loss.float() if is_half(loss.dtype) else loss) * self.factor

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by S, in place, for example before clipping; otherwise `step` divides the gradients.

        Raises:
            RuntimeError: `unscale_` or `step` was called for this optimizer since the last `update`.
        """
        if not self.enabled:
            return
        if optimizer in self._stepped:
            raise RuntimeError(f"unscale_() is being called after step(); {_UPDATE}")
        if optimizer in self._finite:
            raise RuntimeError(
                f"unscale_() has already been called on this optimizer since the last update(); {_UPDATE}"
            )
        grads = [p.grad.data for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._finite[optimizer] = optimizer.all_finite(scale_all(grads, 1 / self.factor))

    def step(self, optimizer: Optimizer) -> bool:
        """Call `optimizer.step()` if all gradients are finite. Returns whether all are finite.

        Raises:
            RuntimeError: `step` was called for this optimizer since the last `update`.
        """
        if not self.enabled:
            optimizer.step()
            return True
        if optimizer in self._stepped:
            raise RuntimeError(f"step() has already been called since the last update(); {_UPDATE}")
        if optimizer not in self._finite:
            self.unscale_(optimizer)
        if finite := self._finite[optimizer]:
            optimizer.step()
        self._stepped.add(optimizer)
        return finite

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Update S after the steps of all optimizers, or set S to `new_scale`.

        Raises:
            RuntimeError: neither `step` nor `unscale_` was called since the last `update`.
            FloatingPointError: a gradient was not finite, and S cannot decrease further. S is unchanged.
        """
        if not self.enabled:
            return
        if new_scale is not None:
            scale = checks.scalar(new_scale, "new_scale", "GradScaler.update")
            if not (isfinite(scale) and scale > 0):
                raise ValueError(f"GradScaler.update: new_scale must be above 0 and finite, got {scale}")
            self.factor, self._finite, self._stepped = scale, {}, set()
            return
        if not self._finite:
            raise RuntimeError("update() was called without step() or unscale_() since the last update()")
        finite, self._finite, self._stepped = all(self._finite.values()), {}, set()
        smaller = self.factor * self.backoff_factor
        if finite:
            self.good_steps += 1
            if self.good_steps == self.growth_interval:
                self.factor, self.good_steps = self.factor * self.growth_factor, 0
        elif smaller >= SMALLEST:
            self.factor, self.good_steps = smaller, 0
        else:
            raise FloatingPointError(f"a gradient is infinite or NaN even with the smallest scale, {self.factor:g}")

    def state_dict(self) -> dict[str, np.ndarray]:
        """{"scale": S, "good_steps": the number of steps without overflow since S last changed}."""
        return {"scale": np.asarray(self.factor), "good_steps": np.asarray(self.good_steps)}

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        """Load a `state_dict`; ValueError if a value is missing or invalid."""
        if missing := set(_STATE) - set(state_dict):
            raise ValueError(f"GradScaler: this state lacks {', '.join(sorted(missing))}")
        scale, good_steps = (checks.not_negative(state_dict[name], name, "GradScaler") for name in _STATE)
        if not scale or good_steps != int(good_steps):
            raise ValueError(f"GradScaler: needs scale > 0 and a whole number good_steps, got {scale} and {good_steps}")
        self.factor, self.good_steps = scale, int(good_steps)


def scale_all(arrays: Sequence[Array], factor: float) -> bool:
    """Multiply all arrays by a factor, in place. Returns whether all results are finite, which synchronizes.

    16-bit arrays are multiplied in float32: in float16, a factor 1/S may itself be 0.
    """
    factor = checks.scalar(factor, "factor", "scale_all")
    if factor != 1:
        writes.note(arrays)
    return bool(fast_paths.call(unscale, arrays, factor))
