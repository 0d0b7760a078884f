"""L7: the training loop: epochs, each followed by a look at the test images."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from threading import Event

from minigrad.backend import Array
from minigrad.nn import Module
from minigrad.optim import WarmupCosine
from minigrad.parallel import Shards
from minigrad.random import Generator
from train.augment import repeated
from train.batches import batches
from train.dataset import Dataset
from train.errors import InputError
from train.evaluate import Evaluation
from train.log import Metrics, Progress
from train.settings import Settings
from train.step import Step, StepError

_STREAM = 1 << 32  # above every seed: order, augmentation and dropout draw from streams apart from initialisation
_UNREAD = 20  # steps of a GPU from one look at the loss to the next: each look waits for it


class DivergedError(InputError):
    """A number is no longer finite, so that going on is of no use."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """`fit` ends early, as `Trainer.stop` was set."""


class Trainer:
    """A run: what it is made of, and how far it is."""

    def __init__(self, model: Module, dataset: Dataset, settings: Settings) -> None:
        self.model, self.dataset, self.settings = model, dataset.to(settings.device), settings
        self.generator = Generator(_STREAM * (settings.seed + 1))
        # Batch normalisation is over the whole batch: a model with running statistics is not given shards of it.
        self.threads = 1 if any(model.named_buffers()) else settings.threads
        self.shards = Shards(self.threads, self.generator.seed + 1)
        self.step = Step(model, self.dataset, settings, self.generator, self.shards)
        self.evaluation = Evaluation(model, self.dataset, settings, self.shards)
        self.steps = -(-len(dataset.train) // self.step.images)  # in an epoch
        warmup = round(self.steps * settings.warmup_epochs)
        self.schedule = WarmupCosine(self.step.optimizer, warmup, self.steps * settings.epochs)
        # The place in the run; train/resume.py brings a new trainer to that of an earlier one.
        self.epoch = 0  # so many are done
        self.position = 0  # so many steps of the next one are
        self.order: Array | None = None  # of its images, from its first step on
        self.seconds = 0.0  # that it took so far, before the process was started that goes on with it
        self.lr = 0.0  # of the last step
        self.stop = Event()  # once set, `fit` ends after the step that is running

    def fit(self) -> Iterator[Metrics]:
        """Train, from the place where the trainer is; yields the metrics after each epoch.

        Raises:
            DivergedError: the loss or a gradient is no longer finite. On the CPU the model is as before that step.
            Stopped: `stop` was set. The trainer is between two steps; what is saved now goes on from there.
        """
        with self.shards:
            while self.epoch < self.settings.epochs:
                start = time.perf_counter() - self.seconds
                try:
                    train_loss, train_acc = self.train_epoch(f"epoch {self.epoch + 1}/{self.settings.epochs}")
                    trained = time.perf_counter()
                    test_loss, test_acc = self.evaluate()
                    if not isfinite(test_loss):  # a step that nobody looked at went wrong after the last look
                        raise self.diverged(f"the loss on the test images became {test_loss}", "at the end")
                except Stopped:
                    self.seconds = time.perf_counter() - start
                    raise
                seconds = time.perf_counter() - start
                speed = len(self.dataset.train) / (trained - start)
                self.epoch, self.position, self.order, self.seconds = self.epoch + 1, 0, None, 0.0
                results = train_loss, train_acc, test_loss, test_acc
                yield Metrics(self.epoch, self.lr, *results, seconds, speed, self.step.skipped)

    def train_epoch(self, title: str) -> tuple[float, float]:
        """Every training image once, in random order; with --aug-repeats R, one of R images, R times.

        Returns mean loss and accuracy while the model changes.
        """
        self.model.train()
        self.check_stop()
        count, unread = len(self.dataset.train), 1 if self.settings.device == "cpu" else _UNREAD
        if self.order is None:
            self.step.clear()
            order = self.generator.permutation(count, self.settings.device)
            self.order = repeated(order, 1 if self.settings.no_aug else self.settings.aug_repeats)
        parts = list(batches(count, self.step.images))
        done = parts[self.position - 1].stop if self.position else 0
        with Progress(count, " images", title, done=done) as progress:
            for part in parts[self.position :]:
                self.advance(self.order[part])
                if self.stop.is_set() or (self.position % unread == 0 and part.stop < count):
                    loss, acc = self.means(part.stop)
                    progress.update(part.stop - done, f"loss {loss:.3f} acc {acc:.1%}")
                    done = part.stop
                    self.check_stop()
            loss, acc = self.means(count)
            progress.update(count - done, f"loss {loss:.3f} acc {acc:.1%}")
        return loss, acc

    def means(self, images: int) -> tuple[float, float]:
        """Mean loss and accuracy over so many images of the epoch, if the loss is finite."""
        if images == self.step.images_skipped < len(self.dataset.train):
            return 0.0, 0.0
        if images == self.step.images_skipped:
            raise self.diverged("a loss or a gradient was not finite", "in every step")
        loss, acc = self.step.sums.means(images - self.step.images_skipped)
        if not isfinite(loss):
            raise self.diverged(f"the loss became {loss}", f"not later than in step {self.position}")
        return loss, acc

    def check_stop(self) -> None:
        """End `fit` here, between two steps, if that is asked for."""
        if self.stop.is_set():
            raise Stopped

    def advance(self, index: Array) -> None:
        """One step, on the training images of these numbers, (B,) int64."""
        try:
            self.step(index)
        except StepError as error:
            raise self.diverged(error.what, f"in step {self.position + 1}", f": {error.why}") from None
        self.lr = self.settings.lr * self.schedule.factor(self.schedule.t)
        self.schedule.step()
        self.position += 1

    def diverged(self, what: str, where: str, why: str = "") -> DivergedError:
        """The error that says so."""
        place = f"{where} of epoch {self.epoch + 1}/{self.settings.epochs}"
        return DivergedError(f"{what} {place}{why}; try a lower --lr or more --warmup-epochs")

    def tested(self) -> AbstractContextManager[None]:
        """Within the block, the model is what is tested and kept: with --model-ema, its average."""
        return nullcontext() if self.step.ema is None else self.step.ema.applied()

    def evaluate(self) -> tuple[float, float]:
        """Mean loss, without label smoothing, and accuracy on the test images."""
        with self.tested():
            return self.evaluation.means(between=self.check_stop)
