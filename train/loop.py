"""The training loop: epochs of forward, backward and step, each followed by a look at the test images."""

import time
from collections.abc import Iterator
from math import isfinite
from typing import Any

import minigrad.functional as F
from minigrad import Tensor, no_grad
from minigrad.nn import Module
from minigrad.optim import AdamW, WarmupCosine, clip_grad_norm_
from minigrad.random import Generator
from train.batches import augment, batches, normalize
from train.dataset import Dataset
from train.errors import InputError
from train.log import Metrics, Progress
from train.settings import Settings

_DATA_STREAM = 1 << 32  # added to the seed: order and augmentation have a random stream apart from initialisation


def fit(model: Module, dataset: Dataset, settings: Settings) -> Iterator[Metrics]:
    """Train `model` in place; yields the metrics after each epoch.

    Raises:
        InputError: the loss is no longer finite, so that going on is of no use.
    """
    optimizer = AdamW(param_groups(model, settings.weight_decay), lr=settings.lr)
    steps = -(-len(dataset.train) // settings.batch_size)
    schedule = WarmupCosine(optimizer, round(steps * settings.warmup_epochs), steps * settings.epochs)
    generator = Generator(_DATA_STREAM + settings.seed)
    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        title = f"epoch {epoch}/{settings.epochs}"
        train_loss, train_acc = train_epoch(model, dataset, settings, optimizer, schedule, generator, title)
        trained = time.perf_counter()
        test_loss, test_acc = evaluate(model, dataset, settings)
        yield Metrics(
            epoch=epoch,
            lr=optimizer.param_groups[0]["lr"],
            train_loss=train_loss,
            train_acc=train_acc,
            test_loss=test_loss,
            test_acc=test_acc,
            seconds=time.perf_counter() - start,
            images_per_second=len(dataset.train) / (trained - start),
        )


def train_epoch(
    model: Module,
    dataset: Dataset,
    settings: Settings,
    optimizer: AdamW,
    schedule: WarmupCosine,
    generator: Generator,
    title: str,
) -> tuple[float, float]:
    """Each training image once, in random order. Returns mean loss and accuracy while the model changed."""
    model.train()
    tally = _Tally()
    parameters = list(model.parameters())
    order = generator.permutation(len(dataset.train))
    with Progress(len(dataset.train), "image", title) as progress:
        for images, labels in batches(dataset.train, settings.batch_size, settings.device, order):
            if settings.aug:
                images = augment(images, generator)
            logits = model(Tensor(normalize(images, dataset.mean, dataset.std)))
            loss = F.cross_entropy(logits, Tensor(labels), label_smoothing=settings.smoothing)
            tally.add(loss, logits, labels)
            if not isfinite(tally.loss):
                raise InputError(f"the loss became {loss.item()} in {title}: try a lower --lr or more --warmup-epochs")
            optimizer.zero_grad()
            loss.backward()
            if settings.clip_grad:
                clip_grad_norm_(parameters, settings.clip_grad)
            optimizer.step()
            schedule.step()
            progress.update(len(labels), f"loss {tally.loss:.3f} acc {tally.acc:.1%}")
    return tally.loss, tally.acc


@no_grad()
def evaluate(model: Module, dataset: Dataset, settings: Settings) -> tuple[float, float]:
    """Mean loss, without smoothing, and accuracy on the test images."""
    model.eval()
    tally = _Tally()
    for images, labels in batches(dataset.test, settings.validation_batch_size, settings.device):
        logits = model(Tensor(normalize(images, dataset.mean, dataset.std)))
        tally.add(F.cross_entropy(logits, Tensor(labels)), logits, labels)
    return tally.loss, tally.acc


def param_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: what decays, and what must not: biases, norms, position embeddings, the class token.

    Decay keeps products of weights small; an offset or a scale has nothing to gain from it.
    """
    named = dict(model.named_parameters())
    spared = {"pos_embed", "cls_token"}
    if hasattr(model, "no_weight_decay"):
        spared |= set(model.no_weight_decay())
    decays = {name: p.ndim > 1 and name not in spared for name, p in named.items()}
    return [
        {"params": [p for name, p in named.items() if decays[name]], "weight_decay": weight_decay},
        {"params": [p for name, p in named.items() if not decays[name]], "weight_decay": 0.0},
    ]


class _Tally:
    """Running means of loss and accuracy over batches of different sizes."""

    def __init__(self) -> None:
        self.images = self.correct = 0
        self.total_loss = 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Any) -> None:
        self.images += len(labels)
        self.total_loss += loss.item() * len(labels)
        self.correct += int((logits.data.argmax(axis=1) == labels).sum())

    @property
    def loss(self) -> float:
        return self.total_loss / self.images

    @property
    def acc(self) -> float:
        return self.correct / self.images
