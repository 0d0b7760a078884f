"""L7: evaluation on the test images: loss, accuracy, confusion matrix."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import minigrad.functional as F
from minigrad import Tensor, autocast, cat, no_grad
from minigrad.backend import Array, to_device
from minigrad.nn import Module
from minigrad.parallel.threads import Shards
from train.config.settings import Settings
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


class Evaluation:
    """Evaluates a model on the test images, with its current weights.

    Args:
        model, dataset: on the same device.
        settings: for precision and batch size.
        shards: the threads between which a batch is split.
    """

    def __init__(self, model: Module, dataset: Dataset, settings: Settings, shards: Shards) -> None:
        self.model, self.dataset, self.settings, self.shards = model, dataset, settings, shards
        self.normalize, self.parameters = dataset.normalizer(), list(model.parameters())

    def means(self, between: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Mean loss, without label smoothing, and accuracy. `between` is called before each batch, and may raise."""
        sums = Sums(self.settings.device)
        for logits, labels in self.logits_by_batch(between):
            loss = F.cross_entropy(logits, Tensor(labels))
            sums.add(loss.data.astype(np.float64), count_correct(logits, labels), len(labels))
        return sums.means(len(self.dataset.test))

    def predictions(self) -> Predictions:
        """The predictions for all test images, on the CPU."""
        logits = np.concatenate([to_device(logits.data, "cpu") for logits, _ in self.logits_by_batch()])
        return Predictions(logits, to_device(self.dataset.test.labels, "cpu"), self.dataset.classes)

    def logits_by_batch(self, between: Callable[[], None] = lambda: None) -> Iterator[tuple[Tensor, Array]]:
        """Yields the logits (B, K) float32, without gradient, and the labels (B,) of each batch."""
        self.model.eval()
        test = self.dataset.test
        for part in batches(len(test), self.settings.validation_batch_size):
            between()
            yield cat(self.shards.run(self.logits, test.images[part])), test.labels[part]

    def logits(self, images: Array) -> Tensor:
        """Images (B, C, H, W) uint8 -> logits (B, K) float32."""
        with no_grad(), precision(self.settings, self.parameters):
            return self.model(Tensor(self.normalize(images))).float()


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


def precision(settings: Settings, parameters: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """`autocast` as --amp and --amp-dtype set it."""
    return autocast(settings.amp_dtype, settings.amp, parameters)


def count_correct(logits: Tensor, labels: Array) -> Array:
    """The number of correct predictions, (). For a mixed image, its own label is the correct one."""
    return (logits.data.argmax(axis=1) == labels).sum()
