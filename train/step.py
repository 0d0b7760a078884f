"""L7: a step of training: from the numbers of some images to weights that have moved.

On a GPU all of it happens there, to the sums of loss and right answers: the host only launches, and it can be a graph.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import numpy as np

import minigrad.functional as F
from minigrad import Tensor, detect_anomaly
from minigrad.backend import Array
from minigrad.engine import NonFiniteError
from minigrad.graph import GraphedStep
from minigrad.nn import Module
from minigrad.optim import EMA, AdamW, GradScaler, Muon, clip_grad_norm_, matrices_apart, scale_all
from minigrad.parallel import Shards
from minigrad.random import Generator
from models.model import param_groups
from train.augment import augmentation
from train.batches import batches
from train.dataset import Dataset
from train.evaluate import Sums, count_right, precision
from train.settings import Settings

_unwarned = np.errstate(all="ignore")  # a loss that is not finite is reported once, and in full


class StepError(Exception):
    """The loss or a gradient of a step, which it names, and the op where it began."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why = what, why


class Step:
    """All that a step changes, and how.

    Args:
        model, dataset: on the same device.
        settings: of the run.
        generator: augmentation draws from it.
        shards: in which each batch is cut; dropout draws from theirs.
    """

    def __init__(
        self, model: Module, dataset: Dataset, settings: Settings, generator: Generator, shards: Shards
    ) -> None:
        self.model, self.dataset, self.settings = model, dataset, settings
        self.generator, self.shards = generator, shards
        self.normalize, self.augment = dataset.normalizer(), augmentation(settings, dataset)
        self.parameters = list(model.parameters())
        self.optimizer = optimizer_of(model, settings)
        self.scaler = GradScaler(enabled=settings.amp and settings.amp_dtype == "float16")
        decay, rises = settings.model_ema_decay, settings.model_ema_warmup
        self.ema = EMA(model, decay, warmup=rises) if settings.model_ema else None
        self.sums = Sums(settings.device)  # since `clear`
        self.skipped = self.images_skipped = 0  # steps that were left out since then; images whose loss is in no sum
        self.generators = [generator, *shards.generators]
        # Whether a step is looked at before anything moves. A scaled loss makes the host wait as it is.
        self.watched = settings.device == "cpu" or settings.skip_nonfinite or self.scaler.enabled
        self.guard: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.images = min(settings.batch_size * settings.grad_accum_steps, len(dataset.train))  # of a whole step
        self.whole: Callable[[Array], None] = self.compute
        if settings.graph:
            self.whole = GraphedStep(self.compute, self.optimizer, generators=self.generators)

    def clear(self) -> None:
        """An epoch begins: sums and counts from 0 on."""
        self.sums.clear()
        self.skipped = self.images_skipped = 0

    @_unwarned
    def __call__(self, index: Array) -> None:
        """Train on the images of these numbers, (B,) int64.

        Raises:
            StepError: the step is watched, and the loss or a gradient is not finite, with a scaled loss whatever the
                scale. Parameters, buffers, the optimiser and the average are as they were.
        """
        # A graph is of one shape. A run may go on with the smaller step that ends an epoch: it is not to be of that.
        step = self.whole if len(index) == self.images else self.compute
        step(index)

    def compute(self, index: Array) -> None:
        """All of a step that is arithmetic; one that is not watched does not wait for a GPU, and can be a graph.

        The gradients of its batches, of which there are --grad-accum-steps, add up: they are those of one larger batch.
        """
        self.optimizer.zero_grad()
        draws = [generator.draws for generator in self.generators]
        buffers = [(x, x.data.copy()) for _, x in self.model.named_buffers()] if self.watched else []
        loss, correct = self.backward(index)
        moved = False
        try:
            moved = self.move_if_finite(loss, correct, len(index))
        except FloatingPointError as error:
            raise StepError(str(error), self.first_op(index, draws)) from None
        finally:
            if not moved:
                self.skipped += 1
                for x, before in buffers:
                    x.data[...] = before

    def backward(self, index: Array) -> tuple[Array, Array]:
        """The gradients of a step; its mean loss, and how many of its images are right."""
        results = []
        accumulate = self.accumulate if len(self.shards.generators) == 1 else self.accumulate_apart
        for part in batches(len(index), self.settings.batch_size):
            results += accumulate(index[part], len(index))
        losses, correct = zip(*results, strict=True)
        return sum(losses), sum(correct)

    def accumulate_apart(self, index: Array, images_of_step: int) -> list[tuple[Array, Array]]:
        """As `accumulate`, for several shards: their gradients add up by themselves, and then to those of before.

        So with two shards the sum is the same whichever ends first: a + b = b + a, but (c + a) + b is not (c + b) + a.
        """
        earlier = [parameter.grad for parameter in self.parameters]
        self.optimizer.zero_grad()
        results = self.accumulate(index, images_of_step)
        for parameter, grad in zip(self.parameters, earlier, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else Tensor(grad.data + parameter.grad.data)
        return results

    def accumulate(self, index: Array, images_of_step: int) -> list[tuple[Array, Array]]:
        """A batch forward and backward, in shards, each in a thread of its own: loss and right answers of each."""
        images, labels = self.dataset.train.take(index)
        images, targets = self.augmented(images, labels)

        @_unwarned  # each thread decides for itself
        def work(images: Array, targets: Array, part: Array) -> tuple[Array, Array]:
            with self.guard():
                logits, loss = self.forward(Tensor(images), targets)
                # Each shard has the mean over its own images: weighted by its share, the sum is the mean over the step.
                loss = loss * (len(part) / images_of_step)
                self.scaler.scale(loss).backward()
            return loss.data.astype(np.float64), count_right(logits, part)

        return self.shards.run(work, images, targets, labels)

    def augmented(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """What the model takes in training, and the targets: labels (B,), or probabilities (B, classes) if it mixes."""
        images = self.augment.pixels(images, self.generator)
        images = self.augment.normalized(self.normalize(images), self.generator)
        if not self.augment.mixes:
            return images, labels
        return self.augment.mixed(images, labels, len(self.dataset.classes), self.generator)

    def forward(self, images: Tensor, targets: Array) -> tuple[Tensor, Tensor]:
        """Logits, and the loss."""
        smoothing = 0.0 if self.augment.mixes else self.settings.smoothing  # probabilities are made smooth
        with precision(self.settings, self.parameters):
            logits = self.model(images).float()
            return logits, F.cross_entropy(logits, Tensor(targets), label_smoothing=smoothing)

    def move_if_finite(self, loss: Array, correct: Array, images: int) -> bool:
        """`move`, unless the step is watched and not finite. Returns whether the parameters moved.

        Raises:
            FloatingPointError: what is not finite, where such a step is not to be left out.
        """
        what = self.what_is_not_finite(loss) if self.watched else ""
        if not what:
            self.sums.add(loss, correct, images)
            return self.move()
        if not self.settings.skip_nonfinite:
            raise FloatingPointError(what)
        self.images_skipped += images
        return False

    def move(self) -> bool:
        """The parameters against their gradients, and their average after them.

        Not if gradients of a scaled loss overflowed, for which this returns False: the next scale is smaller. The loss
        itself is finite then.

        Raises:
            FloatingPointError: there is no smaller scale.
        """
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_grad:
            clip_grad_norm_(self.parameters, self.settings.clip_grad)
        moved = self.scaler.step(self.optimizer)
        self.scaler.update()
        if moved and self.ema is not None:
            self.ema.update()
        return moved

    def what_is_not_finite(self, loss: Array) -> str:
        """Empty if all is. Waits for a GPU. Gradients of a scaled loss are looked at where they are unscaled."""
        if not isfinite(float(loss)):
            return f"the loss became {float(loss)}"
        grads = [p.grad.data for p in self.parameters if p.grad is not None]
        return "" if self.scaler.enabled or scale_all(grads, 1.0) else "a gradient became infinite or NaN"

    def first_op(self, index: Array, draws: Sequence[int]) -> str:
        """A step once more, with a look at every array, until the first that is not finite: what made it, and where.

        `draws`: of each generator, before the step.
        """
        for generator, count in zip(self.generators, draws, strict=True):
            generator.draws = count
        self.optimizer.zero_grad()
        self.guard = detect_anomaly
        try:
            self.backward(index)
        except NonFiniteError as error:
            return str(error)
        finally:
            self.guard = nullcontext
        return "each op by itself is finite, the sum of their gradients is not"


def optimizer_of(model: Module, settings: Settings) -> AdamW:
    """The optimiser that --opt names. Muon is for the matrices of hidden layers: not for those that spare decay."""
    groups = param_groups(model, settings.lr, settings.weight_decay, settings.layer_decay)
    if settings.opt == "adamw":
        return AdamW(groups)
    head = getattr(model, "head", None)
    outside = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    return Muon(matrices_apart(groups, outside + (list(head.parameters()) if head is not None else [])))
