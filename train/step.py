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
        self.skipped = self.images_skipped = 0  # steps that were left out since then, and their images
        self.generators = [generator, *shards.generators]
        self.watched = settings.device == "cpu" or settings.skip_nonfinite  # before anything moves
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
            StepError: the step is watched, and the loss or a gradient is not finite. Nothing has moved.
        """
        # A graph is of one shape. A run may go on with the smaller step that ends an epoch: it is not to be of that.
        step = self.whole if len(index) == self.images else self.compute
        step(index)

    def compute(self, index: Array) -> None:
        """All of a step that is arithmetic; without a scaled loss it does not wait for a GPU, and can be a graph.

        The gradients of its batches, of which there are --grad-accum-steps, add up: they are those of one larger batch.
        """
        self.optimizer.zero_grad()
        draws = [generator.draws for generator in self.generators]
        buffers = [x.data.copy() for _, x in self.model.named_buffers()] if self.settings.skip_nonfinite else []
        loss, correct = self.backward(index)
        if self.watched and (what := self.what_is_not_finite(loss)):
            if not self.settings.skip_nonfinite:
                raise StepError(what, self.first_op(index, draws))
            for (_, x), before in zip(self.model.named_buffers(), buffers, strict=True):
                x.data[...] = before
            self.skipped, self.images_skipped = self.skipped + 1, self.images_skipped + len(index)
            return
        self.sums.add(loss, correct, len(index))
        self.move()

    def backward(self, index: Array) -> tuple[Array, Array]:
        """The gradients of a step; its mean loss, and how many of its images are right."""
        results = []
        for part in batches(len(index), self.settings.batch_size):
            # The shards of a batch add up apart from earlier ones: a + b = b + a, but (c + a) + b is not (c + b) + a.
            earlier = [p.grad for p in self.parameters] if len(self.shards.generators) > 1 else []
            if earlier:
                self.optimizer.zero_grad()
            results += self.accumulate(index[part], len(index))
            for parameter, grad in zip(self.parameters, earlier, strict=False):
                if grad is not None:
                    parameter.grad = grad if parameter.grad is None else Tensor(grad.data + parameter.grad.data)
        losses, correct = zip(*results, strict=True)
        return sum(losses), sum(correct)

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

    def move(self) -> None:
        """The parameters against their gradients, and their average after them."""
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_grad:
            clip_grad_norm_(self.parameters, self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()

    def what_is_not_finite(self, loss: Array) -> str:
        """Empty if all is. Waits for a GPU. Gradients of a scaled loss are the scaler's concern."""
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
