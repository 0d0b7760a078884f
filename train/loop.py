"""L7: the training loop: epochs of forward, backward and step, each followed by a look at the test images."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from math import isfinite
from typing import Any

import numpy as np

import minigrad.functional as F
from minigrad import Tensor, autocast, no_grad
from minigrad.backend import Array
from minigrad.graph import GraphedStep
from minigrad.nn import Module
from minigrad.optim import AdamW, GradScaler, WarmupCosine, clip_grad_norm_
from minigrad.parallel import Shards
from minigrad.random import Generator, use_generator
from models.model import param_groups
from train.batches import augment, batches, normalize
from train.dataset import Dataset
from train.errors import InputError
from train.log import Metrics, Progress
from train.settings import Settings

_STREAM = 1 << 32  # above every seed: order, augmentation and dropout draw from streams apart from initialisation
_unwarned = np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is reported once, and in full


class Trainer:
    """A model in training: all that changes from step to step is here."""

    def __init__(self, model: Module, dataset: Dataset, settings: Settings) -> None:
        self.model, self.dataset, self.settings = model, dataset, settings
        self.parameters = list(model.parameters())
        self.optimizer = AdamW(param_groups(model, settings.lr, settings.weight_decay))
        self.scaler = GradScaler(enabled=settings.amp and settings.amp_dtype == "float16")
        self.lr = 0.0  # of the last step
        self.steps = -(-len(dataset.train) // settings.batch_size)  # in an epoch
        warmup = round(self.steps * settings.warmup_epochs)
        self.schedule = WarmupCosine(self.optimizer, warmup, self.steps * settings.epochs)
        self.generator = Generator(_STREAM * (settings.seed + 1))
        # Batch normalisation is over the whole batch: a model with running statistics is not given shards of it.
        self.threads = 1 if any(model.named_buffers()) else settings.threads
        self.shards = Shards(self.threads, self.generator.seed + 1)
        self.graphed = GraphedStep(self.compute, self.optimizer) if settings.graph else None

    def fit(self) -> Iterator[Metrics]:
        """Train; yields the metrics after each epoch.

        Raises:
            InputError: the loss is no longer finite, so that going on is of no use.
        """
        with self.shards:
            for epoch in range(1, self.settings.epochs + 1):
                start = time.perf_counter()
                train_loss, train_acc = self.train_epoch(f"epoch {epoch}/{self.settings.epochs}")
                trained = time.perf_counter()
                test_loss, test_acc = self.evaluate()
                seconds = time.perf_counter() - start
                speed = len(self.dataset.train) / (trained - start)
                yield Metrics(epoch, self.lr, train_loss, train_acc, test_loss, test_acc, seconds, speed)

    def train_epoch(self, title: str) -> tuple[float, float]:
        """Every training image once, in random order. Returns mean loss and accuracy while the model changes."""
        self.model.train()
        tally = _Tally()
        order = self.generator.permutation(len(self.dataset.train))
        with Progress(len(self.dataset.train), " images", title) as progress:
            for images, labels in batches(self.dataset.train, self.settings.batch_size, self.settings.device, order):
                loss, correct = self.step(images, labels)
                if not isfinite(loss):
                    raise InputError(f"the loss became {loss} in {title}: try a lower --lr or more --warmup-epochs")
                tally.add(loss, correct, len(labels))
                progress.update(len(labels), f"loss {tally.loss:.3f} acc {tally.acc:.1%}")
        return tally.loss, tally.acc

    @_unwarned
    def step(self, images: Array, labels: Array) -> tuple[float, int]:
        """One step of the optimiser. Returns the mean loss of the batch and how many images were right before it."""
        if self.settings.aug:
            images = augment(images, self.generator)

        if self.graphed is None:
            loss, correct = self.sharded(images, labels)
        else:
            with use_generator(self.shards.generators[0]):
                loss, correct = (x.item() for x in self.graphed(self.inputs(images).data, labels))
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.schedule.step()
        return loss, correct

    def sharded(self, images: Array, labels: Array) -> tuple[float, int]:
        """The step on shards of the batch, each in a thread of its own."""

        @_unwarned  # each thread decides for itself
        def work(images: Array, part: Array) -> tuple[float, int]:
            logits, loss = self.forward(self.inputs(images), part)
            # Each shard has the mean over its own images: weighted by its share, the sum is the mean over the batch.
            loss = loss * (len(part) / len(labels))
            self.scaler.scale(loss).backward()
            return loss.item(), int(_correct(logits, part))

        self.optimizer.zero_grad()
        losses, correct = zip(*self.shards.run(work, images, labels), strict=True)
        self.move()
        return sum(losses), sum(correct)

    def compute(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """The step on the whole batch, without waiting for the device: for a graph."""
        self.optimizer.zero_grad()
        logits, loss = self.forward(Tensor(images), labels)
        loss.backward()
        self.move()
        return loss.data, _correct(logits, labels)

    def forward(self, images: Tensor, labels: Array) -> tuple[Tensor, Tensor]:
        """Logits, and the loss."""
        with self.precision():
            logits = self.model(images).float()
            return logits, F.cross_entropy(logits, Tensor(labels), label_smoothing=self.settings.smoothing)

    def precision(self) -> AbstractContextManager[Any]:
        """What numbers the model works on: for a block."""
        return autocast(self.settings.amp_dtype, self.settings.amp, self.parameters)

    def move(self) -> None:
        """The parameters against their gradients."""
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_grad:
            clip_grad_norm_(self.parameters, self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def evaluate(self) -> tuple[float, float]:
        """Mean loss, without label smoothing, and accuracy on the test images."""
        self.model.eval()
        tally = _Tally()

        def work(images: Array, labels: Array) -> tuple[float, int, int]:
            with no_grad(), self.precision():
                logits = self.model(self.inputs(images)).float()
            return F.cross_entropy(logits, Tensor(labels)).item(), int(_correct(logits, labels)), len(labels)

        for images, labels in batches(self.dataset.test, self.settings.validation_batch_size, self.settings.device):
            for result in self.shards.run(work, images, labels):
                tally.add(*result)
        return tally.loss, tally.acc

    def inputs(self, images: Array) -> Tensor:
        """What the model takes."""
        return Tensor(normalize(images, self.dataset.mean, self.dataset.std))


def _correct(logits: Tensor, labels: Array) -> Array:
    """How many images are right."""
    return (logits.data.argmax(axis=1) == labels).sum()


class _Tally:
    """Running means of loss and accuracy over batches of different sizes."""

    def __init__(self) -> None:
        self.images = self.correct = 0
        self.total_loss = 0.0

    def add(self, loss: float, correct: int, images: int) -> None:
        self.images += images
        self.correct += correct
        self.total_loss += loss * images

    @property
    def loss(self) -> float:
        return self.total_loss / self.images

    @property
    def acc(self) -> float:
        return self.correct / self.images
