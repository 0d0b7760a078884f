"""L7: a model on the test images: how often it is right, and what it takes for what."""

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
from minigrad.parallel import Shards
from train.batches import batches
from train.dataset import Dataset
from train.settings import Settings


@dataclass(frozen=True)
class Answers:
    """What a model says of N test images of K classes."""

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
        """The share of the images that are named rightly."""
        return float((self.predicted == self.labels).mean())

    @cached_property
    def confusion(self) -> np.ndarray:
        """How many images of class i (row) were named j (column), (K, K)."""
        K = len(self.classes)
        # A pair (i, j) is the number K i + j; (K²,) -> (K, K)
        return np.bincount(K * self.labels + self.predicted, minlength=K * K).reshape(K, K)

    def worst(self, count: int) -> np.ndarray:
        """The images named wrongly, those first of which the model was surest: at most `count` numbers."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        sure = self.probabilities[wrong, self.predicted[wrong]]
        return wrong[(-sure).argsort(kind="stable")[:count]]


class Evaluation:
    """A model, as it is at the moment, on the test images.

    Args:
        model, dataset: on the same device.
        settings: say in which precision, and how many images at once.
        shards: in which each batch is cut.
    """

    def __init__(self, model: Module, dataset: Dataset, settings: Settings, shards: Shards) -> None:
        self.model, self.dataset, self.settings, self.shards = model, dataset, settings, shards
        self.normalize, self.parameters = dataset.normalizer(), list(model.parameters())

    def means(self, between: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Mean loss, without label smoothing, and accuracy. `between` is called before each batch, and may raise."""
        sums = Sums(self.settings.device)
        for logits, labels in self.answers_by_batch(between):
            loss = F.cross_entropy(logits, Tensor(labels))
            sums.add(loss.data.astype(np.float64), count_right(logits, labels), len(labels))
        return sums.means(len(self.dataset.test))

    def answers(self) -> Answers:
        """All of them, on the CPU."""
        logits = np.concatenate([to_device(logits.data, "cpu") for logits, _ in self.answers_by_batch()])
        return Answers(logits, to_device(self.dataset.test.labels, "cpu"), self.dataset.classes)

    def answers_by_batch(self, between: Callable[[], None] = lambda: None) -> Iterator[tuple[Tensor, Array]]:
        """Logits (B, K) float32, without a graph, and labels (B,), of one batch after the other."""
        self.model.eval()
        test = self.dataset.test
        for part in batches(len(test), self.settings.validation_batch_size):
            between()
            yield cat(self.shards.run(self.logits, test.images[part])), test.labels[part]

    def logits(self, images: Array) -> Tensor:
        """Of images (B, C, H, W) uint8, as they are: (B, K) float32."""
        with no_grad(), precision(self.settings, self.parameters):
            return self.model(Tensor(self.normalize(images))).float()


class Sums:
    """Loss and right answers, added up over images on the device. To read them is to wait for it."""

    def __init__(self, device: str) -> None:
        self.sums = to_device(np.zeros(2), device)

    def clear(self) -> None:
        """Begin again."""
        self.sums[...] = 0

    def add(self, loss: Array, right: Array, images: int) -> None:
        """A batch: its mean loss in float64, and how many of its images were right."""
        self.sums[0] += loss * images
        self.sums[1] += right

    def means(self, images: int) -> tuple[float, float]:
        """Mean loss and accuracy over so many images."""
        loss, right = to_device(self.sums, "cpu").tolist()
        return loss / images, right / images


def precision(settings: Settings, parameters: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """What numbers a model of these parameters works on: for a block."""
    return autocast(settings.amp_dtype, settings.amp, parameters)


def count_right(logits: Tensor, labels: Array) -> Array:
    """How many images are right; of a mixed one, its own label counts."""
    return (logits.data.argmax(axis=1) == labels).sum()
