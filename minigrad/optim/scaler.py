"""L5: scaling the loss, so that gradients in float16 neither vanish nor overflow."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from minigrad import writes
from minigrad.backend import Array, array_module
from minigrad.kernels import cuda
from minigrad.optim.optimizer import Optimizer
from minigrad.tensor import Tensor

SMALLEST = 2.0**-14  # float16's smallest normal number: S is the first gradient of all, and below it loses digits


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
        if not (isfinite(init_scale) and init_scale > 0 and growth_factor > 1 and 0 < backoff_factor < 1):
            raise ValueError(
                "GradScaler: needs init_scale > 0, growth_factor > 1 and 0 < backoff_factor < 1, got "
                f"{init_scale}, {growth_factor} and {backoff_factor}"
            )
        if growth_interval < 1:
            raise ValueError(f"GradScaler: growth_interval must be at least 1, got {growth_interval}")
        self.factor, self.growth_factor, self.backoff_factor = float(init_scale), growth_factor, backoff_factor
        self.growth_interval, self.enabled = growth_interval, enabled
        self.good_steps = 0  # since S last changed
        self._finite: dict[int, bool] = {}  # of the optimisers whose gradients are unscaled: whether all are finite

    def get_scale(self) -> float:
        """S."""
        return self.factor if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """S · loss, to call `backward` on."""
        return loss * self.factor if self.enabled else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by S now, in place: before they are clipped, say. `step` does it otherwise.

        Raises:
            RuntimeError: it has been done since the last `update`.
        """
        if not self.enabled:
            return
        if id(optimizer) in self._finite:
            raise RuntimeError("unscale_: these gradients are unscaled already; call update() after each step")
        grads = [p.grad.data for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._finite[id(optimizer)] = scale_all(grads, 1 / self.factor)

    def step(self, optimizer: Optimizer) -> bool:
        """`optimizer.step()` if all gradients are finite. Returns whether they are."""
        if self.enabled and id(optimizer) not in self._finite:
            self.unscale_(optimizer)
        finite = self._finite.get(id(optimizer), True)
        if finite:
            optimizer.step()
        return finite

    def update(self) -> None:
        """After the step: S for the next one.

        Raises:
            FloatingPointError: a gradient was not finite, and S is as small as it may be. It stays as it is.
        """
        if not self._finite:
            return
        finite, self._finite = all(self._finite.values()), {}
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
        missing = {"scale", "good_steps"} - set(state_dict)
        if missing:
            raise ValueError(f"GradScaler: this state lacks {', '.join(sorted(missing))}")
        self.factor, self.good_steps = float(state_dict["scale"]), int(state_dict["good_steps"])


def scale_all(arrays: Sequence[Array], factor: float) -> bool:
    """All arrays times a factor, in place. Returns whether all their numbers are finite, for which it waits."""
    writes.note(arrays)
    if arrays and cuda.table.takes_each(arrays):
        return bool(cuda.optim.unscale(arrays, factor))
    finite = np.True_
    for x in arrays:
        if factor != 1:
            x *= factor
        finite = array_module(x).isfinite(x).all() & finite
    return bool(finite)
