"""L7: `--lr-find`, the learning-rate range test.

The learning rate grows exponentially from step to step, from far too small to far too large. The loss first stays
constant, then decreases, and finally grows. With ℓᵢ the loss of step i:

    smoothed loss   ℓ̃ₜ = (1 - β) Σ_{i≤t} βᵗ⁻ⁱ ℓᵢ / (1 - βᵗ⁺¹)
    steepest        the learning rate of the smallest dℓ̃ / d log(lr), before the minimum of ℓ̃
    minimum / 10    a tenth of the learning rate of the minimum of ℓ̃

The test ends when ℓ̃ exceeds four times its minimum, or the loss is not finite. Both suggestions are fastai's, which
searches the steepest decrease also after the minimum, where the loss is noisy.

Smith 2015, "Cyclical learning rates for training neural networks", arXiv:1506.01186; Smith and Topin 2017,
arXiv:1708.07120.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

import numpy as np

from minigrad.backend import Array
from minigrad.serialize import replacing
from train.config.errors import InputError
from train.loop import Trainer
from train.output.log import Progress
from train.step import StepError

STEPS, LOWEST, HIGHEST = 100, 1e-6, 10.0  # of the learning rate
BETA = 0.9
LIMIT = 4.0  # times the smallest smoothed loss
FIRST, MINIMUM = 10, 20  # steps before the loss is smoothed well; steps that the suggestions need


@dataclass(frozen=True)
class RangeTest:
    """The learning rates of the steps, and their losses, each (steps,), with at least `MINIMUM` steps."""

    lrs: np.ndarray
    losses: np.ndarray

    @property
    def smoothed(self) -> np.ndarray:
        """The moving average ℓ̃ at each step."""
        return smooth(self.losses)

    @property
    def lowest(self) -> int:
        """The step of the minimum of ℓ̃."""
        return FIRST + int(self.smoothed[FIRST:].argmin())

    @property
    def steepest(self) -> float:
        """The learning rate at which ℓ̃ decreases fastest, before its minimum."""
        slopes = np.gradient(self.smoothed, np.log(self.lrs))
        return float(self.lrs[FIRST + slopes[FIRST : self.lowest + 1].argmin()])

    @property
    def tenth(self) -> float:
        """A tenth of the learning rate of the minimum of ℓ̃."""
        return float(self.lrs[self.lowest]) / 10


def smooth(losses: np.ndarray) -> np.ndarray:
    """The exponential moving average ℓ̃ at each step, (steps,)."""
    sums, weight, averages = 0.0, 0.0, np.empty(len(losses))
    for t, loss in enumerate(losses):
        sums, weight = BETA * sums + loss, BETA * weight + 1
        averages[t] = sums / weight
    return averages


def range_test(trainer: Trainer) -> RangeTest:
    """Train with growing learning rates. All ranks call this function, and get the same losses.

    Raises:
        InputError: the test ends before the suggestions can be computed.
    """
    lrs, losses = np.geomspace(LOWEST, HIGHEST, STEPS), list[float]()
    trainer.model.train()
    with Progress(STEPS, " steps", "lr-find") as progress:
        for lr, index in zip(lrs, full_batches(trainer), strict=False):
            loss = loss_of_step(trainer, lr, index)
            if not isfinite(loss):
                break
            losses.append(loss)
            progress.update(1, f"lr {lr:.1e} loss {loss:.3f}")
            averages = smooth(np.array(losses))
            if averages[-1] > LIMIT * averages.min():
                break
    if len(losses) < MINIMUM:
        raise InputError(
            f"--lr-find: at learning rate {lr:.1e}, in step {len(losses) + 1}, the loss was {loss:.4g}: it must stay "
            f"finite and below {LIMIT:g} times its minimum for {MINIMUM} steps. Are the images and the initial weights "
            "those that you expect?"
        )
    return RangeTest(lrs[: len(losses)], np.array(losses))


def loss_of_step(trainer: Trainer, lr: float, index: Array) -> float:
    """Update the parameters with learning rate `lr`; returns the loss before. inf if a gradient is not finite."""
    step = trainer.step
    for group in step.optimizer.param_groups:  # initial_lr / peak_lr is 1, or the factor of --layer-decay
        group["lr"] = lr * group["initial_lr"] / trainer.peak_lr
    step.clear()
    try:
        step(index)
    except StepError:
        return inf
    return inf if step.images_skipped else step.sums.means(len(index))[0]


def write_table(test: RangeTest, path: Path) -> None:
    """Write learning rate, loss and moving average of each step, as .csv. Replaces an existing file atomically."""
    rows = [("lr", "loss", "average"), *zip(test.lrs, test.losses, test.smoothed, strict=True)]
    text = "".join(",".join(x if isinstance(x, str) else f"{x:.6g}" for x in row) + "\n" for row in rows)
    with replacing(path) as file:
        file.write(text.encode())


def full_batches(trainer: Trainer) -> Iterator[Array]:
    """The indices of the images of a step, without end; an epoch's smaller last step is left out."""
    size = trainer.step.images_per_step
    while True:
        order = trainer.sampler.sample()
        yield from (order[start : start + size] for start in range(0, len(order) - size + 1, size))
