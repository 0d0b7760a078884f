"""L5: scaling the loss, so that gradients in float16 neither vanish nor overflow."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from minigrad.autograd import writes
from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.kernels import cuda
from minigrad.ops import checks
from minigrad.optim.optimizer import Optimizer
from minigrad.tensor import Tensor

SMALLEST = 2.0**-14  # float16's smallest normal number: S is the first gradient of all, and below it loses digits

_STATE = "scale", "good_steps"
_UPDATE = "call update() after the step of every optimizer"


class GradScaler:
    """The loss times a factor S, and the gradients of the parameters divided by it before they are used.

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    float16 has nothing between 0 and 6e-8, where many gradients are; times S they are in its range. S is tried out:
    where a gradient overflows, the step is left out and S falls; after `growth_interval` steps in which none did, S
    rises. All its values are powers of two if the factors are, so that scaling rounds nothing. (bfloat16 has float32's
    range, and needs none of this.)

    S does not fall below 2^-14. A gradient that is not finite even so is above 2^30, or NaN whatever S is: to go on
    would be to leave out step after step.

    `step` waits for the device, to see whether all is finite.  Micikevicius et al. 2017, arXiv:1710.03740, section 3.2.

    Args:
        init_scale: the first S.
        growth_factor, backoff_factor: what S is multiplied by when it rises and when it falls.
        growth_interval: so many steps without an overflow make it rise.
        enabled: False: S is 1, and nothing is looked at.
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
        # Since the last `update`: of the optimizers whose gradients are unscaled, whether all are finite; who stepped.
        self._finite: dict[Optimizer, bool] = {}
        self._stepped: set[Optimizer] = set()

    def get_scale(self) -> float:
        """S."""
        return self.factor if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """S · loss, to call `backward` on. A 16-bit loss is scaled in float32, as float16 ends at 65504."""
        if not self.enabled:
            return loss
        return (loss.float() if is_half(loss.dtype) else loss) * self.factor

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by S now, in place: before they are clipped, say. `step` does it otherwise.

        Raises:
            RuntimeError: these gradients are unscaled already, or `step` was called, since the last `update`.
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
        self._finite[optimizer] = scale_all(grads, 1 / self.factor)

    def step(self, optimizer: Optimizer) -> bool:
        """`optimizer.step()` if all gradients are finite. Returns whether they are.

        Raises:
            RuntimeError: it was called for this optimizer since the last `update`.
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
        """After the steps of all optimizers: S for the next ones, or `new_scale`.

        Raises:
            RuntimeError: no gradient was unscaled since the last `update`, so that there is nothing to go by.
            FloatingPointError: a gradient was not finite, and S is as small as it may be. It stays as it is.
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
        """S, and how many steps went well since it changed."""
        return {"scale": np.asarray(self.factor), "good_steps": np.asarray(self.good_steps)}

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        """Take back what `state_dict` gave."""
        if missing := set(_STATE) - set(state_dict):
            raise ValueError(f"GradScaler: this state lacks {', '.join(sorted(missing))}")
        scale, good_steps = (checks.not_negative(state_dict[name], name, "GradScaler") for name in _STATE)
        if not scale or good_steps != int(good_steps):
            raise ValueError(f"GradScaler: needs scale > 0 and whole good_steps, got {scale} and {good_steps}")
        self.factor, self.good_steps = scale, int(good_steps)


def scale_all(arrays: Sequence[Array], factor: float) -> bool:
    """All arrays times a factor, in place. Returns whether all their numbers are finite, for which it waits.

    16-bit arrays are multiplied in float32: in float16 1/S itself may be zero.
    """
    factor = checks.scalar(factor, "factor", "scale_all")
    if factor != 1:
        writes.note(arrays)
    if arrays and cuda.table.fits_each(arrays):
        return bool(cuda.optim.unscale(arrays, factor))
    finite = np.True_
    for x in arrays:
        if factor != 1 and is_half(x.dtype):
            x[...] = cast(cast(x, FLOAT32) * factor, x.dtype)
        elif factor != 1:
            x *= factor
        finite = array_module(x).isfinite(x).all() & finite
    return bool(finite)
