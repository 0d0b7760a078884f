"""L7: evaluation on the test images: loss, accuracy, confusion matrix."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import minigrad.functional as F
from minigrad import Tensor, autocast, cat, no_grad
from minigrad.backend import Array, device_of, to_device
from minigrad.backend.batch import split
from minigrad.backend.dtypes import is_half
from minigrad.nn import Module
from minigrad.parallel.processes import World
from minigrad.parallel.threads import Shards
from train.data.batches import batches
from train.data.dataset import Dataset


@dataclass(frozen=True)
class Predictions:
    """The logits of a model for N test images of K classes, with the labels."""

    logits: np.ndarray  # (N, K) float32
    labels: np.ndarray  # (N,) int64
    classes: tuple[str, ...]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """softmax of the logits, (N, K)."""
        return F.softmax(Tensor(self.logits), dim=-1).numpy()

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, (N,)."""
        return self.logits.argmax(axis=1)

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        return F.cross_entropy(Tensor(self.logits), Tensor(self.labels)).item()

    @property
    def acc(self) -> float:
        """The accuracy: correct predictions / N."""
        return float((self.predicted == self.labels).mean())

    @cached_property
    def confusion(self) -> np.ndarray:
        """The number of images of class i (row) predicted as j (column), (K, K)."""
        K = len(self.classes)
        # The pair (i, j) has the index K i + j; (K²,) -> (K, K)
        return np.bincount(K * self.labels + self.predicted, minlength=K * K).reshape(K, K)

    def worst(self, count: int) -> np.ndarray:
        """Indices of at most `count` wrong predictions, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        confidence = self.probabilities[wrong, self.predicted[wrong]]
        return wrong[(-confidence).argsort(kind="stable")[:count]]


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a model on the test images of a dataset on the same device.

    Fields:
        batch_size: images per batch, on all ranks together.
        amp_dtype: the 16-bit dtype of mixed precision; None: no mixed precision.
        shards: the threads between which this rank's part of a batch is divided.
        world: the ranks between which a batch is divided.
    """

    batch_size: int
    amp_dtype: str | None
    shards: Shards
    world: World

    def means(self, model: Module, dataset: Dataset, between: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Mean loss, without label smoothing, and accuracy. Calls `between` before each batch."""
        sums = Sums(device_of(dataset.test.labels))
        for logits, labels in self.logits_by_batch(model, dataset, between):
            loss = F.cross_entropy(logits, Tensor(labels))
            sums.add(loss.data.astype(np.float64), count_correct(logits, labels), len(labels))
        self.world.all_reduce(sums.sums)
        return sums.means(len(dataset.test))

    def predictions(self, model: Module, dataset: Dataset) -> Predictions:
        """The predictions for all test images, as CPU arrays. Needs a world of one rank."""
        logits = np.concatenate([to_device(x.data, "cpu") for x, _ in self.logits_by_batch(model, dataset)])
        return Predictions(logits, to_device(dataset.test.labels, "cpu"), dataset.classes)

    def logits_by_batch(
        self, model: Module, dataset: Dataset, between: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tensor, Array]]:
        """Yields the logits (B, K) float32, without gradient, and the labels (B,) of this rank's part of each batch."""
        model.eval()
        test, normalize, parameters = dataset.test, dataset.normalizer(), list(model.parameters())

        def forward(images: Array) -> Tensor:
            with no_grad(), mixed_precision(self.amp_dtype, parameters):
                return at_least_float32(model(Tensor(normalize(images))))

        for part in batches(len(test), self.batch_size):
            between()
            rows = split(part.stop - part.start, self.world.size)[self.world.rank]
            if len(rows):
                yield cat(self.shards.run(forward, rows.take(test.images[part]))), rows.take(test.labels[part])


class Sums:
    """Running sums of loss and correct predictions, on the device. Only `means` synchronizes."""

    def __init__(self, device: str) -> None:
        self.sums = to_device(np.zeros(2), device)

    def clear(self) -> None:
        """Set the sums to 0."""
        self.sums[...] = 0

    def add(self, loss: Array, correct: Array, images: int) -> None:
        """Add a batch of `images` images: its mean loss in float64 and its number of correct predictions."""
        self.sums[0] += loss * images
        self.sums[1] += correct

    def means(self, images: int) -> tuple[float, float]:
        """Mean loss and accuracy: the sums divided by the number of images."""
        loss, correct = to_device(self.sums, "cpu").tolist()
        return loss / images, correct / images


def mixed_precision(dtype: str | None, parameters: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """`autocast` to the 16-bit `dtype`; None: no mixed precision."""
    return nullcontext() if dtype is None else autocast(dtype, parameters=parameters)


def at_least_float32(logits: Tensor) -> Tensor:
    """16-bit logits as float32: the loss is computed in float32."""
    return logits.float() if is_half(logits.dtype) else logits


def count_correct(logits: Tensor, labels: Array) -> Array:
    """The number of correct predictions, (). For a mixed image, the label of the image itself is the correct one."""
    return (logits.data.argmax(axis=1) == labels).sum()
