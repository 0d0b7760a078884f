"""L7: one training step: batch indices in, updated parameters out.

On a GPU the entire step runs on the device, including the sums of loss and correct predictions. The host only launches
kernels, so a step can be captured as a CUDA graph.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import numpy as np

import minigrad.functional as F
from minigrad import Tensor, detect_anomaly
from minigrad.autograd.anomaly import NonFiniteError
from minigrad.backend import Array
from minigrad.backend.random import Generator
from minigrad.cuda_graph import GraphedStep
from minigrad.nn import Module
from minigrad.optim import EMA, AdamW, GradScaler, Muon, clip_grad_norm_, matrices_apart, scale_all
from minigrad.parallel.threads import Shards
from models.model import param_groups
from train.config.settings import Settings
from train.data.augment import augmentation
from train.data.batches import batches
from train.data.dataset import Dataset
from train.evaluate import Sums, count_correct, precision

_unwarned = np.errstate(all="ignore")  # NaN and Inf are reported once, as a StepError


class StepError(Exception):
    """NaN or Inf in the loss or a gradient: `what` says which of these, `why` names the first op with NaN or Inf."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why = what, why


class Step:
    """A training step, and the state that it updates: parameters, optimizer, loss scale, EMA, sums.

    Args:
        model, dataset: on the same device.
        settings: of the run.
        generator: random numbers for augmentation.
        shards: the threads between which a batch is split; their generators serve dropout.
    """

    def __init__(
        self, model: Module, dataset: Dataset, settings: Settings, generator: Generator, shards: Shards
    ) -> None:
        self.model, self.dataset, self.settings = model, dataset, settings
        self.generator, self.shards = generator, shards
        self.normalize, self.augment = dataset.normalizer(), augmentation(settings, dataset)
        self.parameters = list(model.parameters())
        self.optimizer = create_optimizer(model, settings)
        self.scaler = GradScaler(enabled=settings.amp and settings.amp_dtype == "float16")
        decay, warmup = settings.model_ema_decay, settings.model_ema_warmup
        self.ema = EMA(model, decay, warmup=warmup) if settings.model_ema else None
        self.sums = Sums(settings.device)  # since `clear`
        self.skipped = self.images_skipped = 0  # since `clear`: skipped steps; images whose loss is in no sum
        self.generators = [generator, *shards.generators]
        # Check for NaN and Inf before the update. Loss scaling synchronizes with the GPU anyway.
        self.checks_finite = settings.device == "cpu" or settings.skip_nonfinite or self.scaler.enabled
        self.guard: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.images = min(settings.batch_size * settings.grad_accum_steps, len(dataset.train))  # in a full-size step
        self.full_step: Callable[[Array], None] = self.compute
        if settings.graph:
            self.full_step = GraphedStep(self.compute, self.optimizer, generators=self.generators)

    def clear(self) -> None:
        """Set sums and counts to 0, at the start of an epoch."""
        self.sums.clear()
        self.skipped = self.images_skipped = 0

    @_unwarned
    def __call__(self, index: Array) -> None:
        """Train on the images of these indices, (B,) int64.

        Raises:
            StepError: with `checks_finite`, the loss or a gradient is not finite; with loss scaling, not even at the
                smallest scale. Parameters, buffers, optimizer and EMA are unchanged.
        """
        # A CUDA graph is captured for one batch size. The smaller last batch of an epoch runs eagerly, even if a
        # resumed run starts with it.
        step = self.full_step if len(index) == self.images else self.compute
        step(index)

    def compute(self, index: Array) -> None:
        """The computation of a step. Without `checks_finite` it does not synchronize: a CUDA graph can contain it.

        The gradients of --grad-accum-steps batches add up to those of one larger batch.
        """
        self.optimizer.zero_grad()
        draws = [generator.draws for generator in self.generators]
        buffers = [(x, x.data.copy()) for _, x in self.model.named_buffers()] if self.checks_finite else []
        loss, correct = self.backward(index)
        updated = False
        try:
            updated = self.update_if_finite(loss, correct, len(index))
        except FloatingPointError as error:
            raise StepError(str(error), self.find_first_op(index, draws)) from None
        finally:
            if not updated:
                self.skipped += 1
                for x, before in buffers:
                    x.data[...] = before

    def backward(self, index: Array) -> tuple[Array, Array]:
        """Compute the gradients of a step. Returns its mean loss and the number of correct predictions."""
        results = []
        accumulate = self.accumulate if len(self.shards.generators) == 1 else self.accumulate_separately
        for part in batches(len(index), self.settings.batch_size):
            results += accumulate(index[part], len(index))
        losses, correct = zip(*results, strict=True)
        return sum(losses), sum(correct)

    def accumulate_separately(self, index: Array, images_of_step: int) -> list[tuple[Array, Array]]:
        """`accumulate` for several shards: sum the gradients of this batch first, then add those of earlier batches.

        Two shards finish in any order, and the sum is the same: a + b = b + a, but (c + a) + b is not (c + b) + a.
        """
        earlier = [parameter.grad for parameter in self.parameters]
        self.optimizer.zero_grad()
        results = self.accumulate(index, images_of_step)
        for parameter, grad in zip(self.parameters, earlier, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else Tensor(grad.data + parameter.grad.data)
        return results

    def accumulate(self, index: Array, images_of_step: int) -> list[tuple[Array, Array]]:
        """Forward and backward of a batch, one thread a shard. Returns loss and number correct of each shard."""
        images, labels = self.dataset.train.take(index)
        images, targets = self.augmented(images, labels)

        @_unwarned  # np.errstate is local to a thread
        def work(images: Array, targets: Array, part: Array) -> tuple[Array, Array]:
            with self.guard():
                logits, loss = self.forward(Tensor(images), targets)
                # A mean over the shard. Weighted by its share of the images, the losses add up to the step's mean.
                loss = loss * (len(part) / images_of_step)
                self.scaler.scale(loss).backward()
            return loss.data.astype(np.float64), count_correct(logits, part)

        return self.shards.run(work, images, targets, labels)

    def augmented(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Augmented, normalised images and targets: labels (B,), or probabilities (B, classes) with mixup or CutMix."""
        images = self.augment.pixels(images, self.generator)
        images = self.augment.normalized(self.normalize(images), self.generator)
        if not self.augment.mixes:
            return images, labels
        return self.augment.mixed(images, labels, len(self.dataset.classes), self.generator)

    def forward(self, images: Tensor, targets: Array) -> tuple[Tensor, Tensor]:
        """Logits and loss."""
        smoothing = 0.0 if self.augment.mixes else self.settings.smoothing  # mixed targets are smoothed already
        with precision(self.settings, self.parameters):
            logits = self.model(images).float()
            return logits, F.cross_entropy(logits, Tensor(targets), label_smoothing=smoothing)

    def update_if_finite(self, loss: Array, correct: Array, images: int) -> bool:
        """`update`, unless `checks_finite` finds NaN or Inf. Returns whether the parameters were updated.

        Raises:
            FloatingPointError: NaN or Inf without --skip-nonfinite.
        """
        what = self.find_nonfinite(loss) if self.checks_finite else ""
        if not what:
            self.sums.add(loss, correct, images)
            return self.update()
        if not self.settings.skip_nonfinite:
            raise FloatingPointError(what)
        self.images_skipped += images
        return False

    def update(self) -> bool:
        """Unscale and clip the gradients, update the parameters, then their EMA.

        Returns False, and updates nothing, if a scaled gradient overflowed: the scaler then lowers its scale.

        Raises:
            FloatingPointError: a gradient overflowed at the smallest scale.
        """
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_grad:
            clip_grad_norm_(self.parameters, self.settings.clip_grad)
        updated = self.scaler.step(self.optimizer)
        self.scaler.update()
        if updated and self.ema is not None:
            self.ema.update()
        return updated

    def find_nonfinite(self, loss: Array) -> str:
        """A message if the loss or a gradient has NaN or Inf, else empty. Synchronizes.

        Gradients of a scaled loss are checked later, when `update` unscales them.
        """
        if not isfinite(float(loss)):
            return f"the loss became {float(loss)}"
        grads = [p.grad.data for p in self.parameters if p.grad is not None]
        return "" if self.scaler.enabled or scale_all(grads, 1.0) else "a gradient became infinite or NaN"

    def find_first_op(self, index: Array, draws: Sequence[int]) -> str:
        """Repeat a step under `detect_anomaly`; returns its message about the first op with NaN or Inf.

        `draws` are the counters of the generators before the step: the step repeats with the same random numbers.
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
        return "each op is finite, the sum of the gradients is not"


def create_optimizer(model: Module, settings: Settings) -> AdamW:
    """The optimizer of --opt. Muon is for matrices of hidden layers: not the head, nor parameters without decay."""
    groups = param_groups(model, settings.lr, settings.weight_decay, settings.layer_decay)
    if settings.opt == "adamw":
        return AdamW(groups)
    head = getattr(model, "head", None)
    outside = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    return Muon(matrices_apart(groups, outside + (list(head.parameters()) if head is not None else [])))
