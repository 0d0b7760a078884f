"""L7: the training loop: epochs, each followed by an evaluation on the test images."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import ceil, isfinite
from threading import Event

import numpy as np

from minigrad.backend import Array, device_of
from minigrad.optim import WarmupCosine
from train.config.errors import InputError
from train.data.batches import Sampler, batches
from train.data.dataset import Dataset
from train.evaluate import Evaluation
from train.output.log import Metrics, Progress
from train.step import Step, StepError

_READ_EVERY = 20  # on a GPU, read the loss every 20 steps: each read synchronizes


class DivergedError(InputError):
    """A loss, gradient or parameter became NaN or infinite."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """`fit` ends early because `Trainer.stop` was set."""


class Trainer:
    """Trains a model epoch by epoch, and evaluates it after each epoch. It holds the progress of the run.

    Args:
        dataset: on the device of the model.
        step: the training step, which holds the model and the optimizer.
        evaluation: computes the metrics on the test images.
        sampler: the order of the images in an epoch.
        epochs, warmup_epochs, lr: the schedule: linear warm-up to the learning rate `lr`, then cosine decay.
    """

    def __init__(
        self,
        dataset: Dataset,
        step: Step,
        evaluation: Evaluation,
        sampler: Sampler,
        *,
        epochs: int,
        warmup_epochs: float,
        lr: float,
    ) -> None:
        self.dataset, self.step, self.evaluation, self.sampler = dataset, step, evaluation, sampler
        self.model, self.world, self.epochs, self.peak_lr = step.model, step.world, epochs, lr
        self.steps = ceil(len(dataset.train) / step.images_per_step)  # in an epoch
        self.schedule = WarmupCosine(step.optimizer, round(self.steps * warmup_epochs), self.steps * epochs)
        self.stop = Event()  # if set, `fit` ends after the current step
        # Progress of the run, which train/output/resume.py saves and loads.
        self.epoch = 0  # completed epochs
        self.position = 0  # completed steps of the current epoch
        self.order: Array | None = None  # indices of the images of the current epoch, (images,), from its first step
        self.seconds = 0.0  # time spent on the current epoch in earlier processes
        self.lr = 0.0  # of the last step

    def fit(self) -> Iterator[Metrics]:
        """Train from the current epoch and step to the last epoch; yields the metrics after each epoch.

        Raises:
            DivergedError: the loss or a gradient is not finite. On the CPU the failing step leaves the model unchanged.
            Stopped: `stop` was set. The trainer is between two steps: its state can be saved and resumed.
        """
        while self.epoch < self.epochs:
            start = time.perf_counter() - self.seconds
            try:
                train_loss, train_acc = self.train_epoch(f"epoch {self.epoch + 1}/{self.epochs}")
                trained = time.perf_counter()
                test_loss, test_acc = self.evaluate()
                if not isfinite(test_loss):  # the last step became NaN after the last read of the loss
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
        """Train on every image once, in random order; with --aug-repeats R, on 1/R of the images, R times each.

        Returns the mean loss and accuracy over the steps.
        """
        self.model.train()
        self.check_stop()
        count = len(self.dataset.train)
        read_every = 1 if device_of(self.dataset.train.labels) == "cpu" else _READ_EVERY
        if self.order is None:
            self.step.clear()
            self.order = self.sampler.sample()
        parts = list(batches(count, self.step.images_per_step))
        done = parts[self.position - 1].stop if self.position else 0
        with Progress(count, " images", title, done=done) as progress:
            for part in parts[self.position :]:
                self.advance(self.order[part])
                stopping = self.stop.is_set() and self.world.size == 1  # several ranks agree when they read the loss
                if stopping or (self.position % read_every == 0 and part.stop < count):
                    loss, acc = self.means(part.stop)
                    progress.update(part.stop - done, f"loss {loss:.3f} acc {acc:.1%}")
                    done = part.stop
                    self.check_stop()
            loss, acc = self.means(count)
            progress.update(count - done, f"loss {loss:.3f} acc {acc:.1%}")
        return loss, acc

    def means(self, images: int) -> tuple[float, float]:
        """Mean loss and accuracy over the first `images` images of the epoch, without skipped steps.

        Raises:
            DivergedError: the loss is not finite, or all steps of the epoch were skipped.
        """
        if images == self.step.images_skipped < len(self.dataset.train):
            return 0.0, 0.0
        if images == self.step.images_skipped:
            raise self.diverged("a loss or a gradient was not finite", "in every step")
        loss, acc = self.step.sums.means(images - self.step.images_skipped)
        if not isfinite(loss):
            raise self.diverged(f"the loss became {loss}", f"in or before step {self.position}")
        return loss, acc

    def check_stop(self) -> None:
        """Raise Stopped if `stop` is set on any rank. All ranks call this method after the same step."""
        stopped = np.asarray(float(self.stop.is_set()))
        self.world.all_reduce(stopped, op="max")
        if stopped:
            self.stop.set()
            raise Stopped

    def advance(self, index: Array) -> None:
        """One step on the training images at these indices, (B,) int64."""
        try:
            self.step(index)
        except StepError as error:
            raise self.diverged(error.what, f"in step {self.position + 1}", f": {error.why}") from None
        self.lr = self.peak_lr * self.schedule.factor(self.schedule.t)
        self.schedule.step()
        self.position += 1

    def diverged(self, what: str, where: str, why: str = "") -> DivergedError:
        """The error to raise: `what` became NaN or Inf, `where` in the run, `why` (the first such op), and advice."""
        place = f"{where} of epoch {self.epoch + 1}/{self.epochs}"
        return DivergedError(f"{what} {place}{why}; try a lower --lr or more --warmup-epochs")

    def tested(self) -> AbstractContextManager[None]:
        """Within the block, the model has the weights to evaluate and save: with --model-ema, the averaged ones."""
        return nullcontext() if self.step.ema is None else self.step.ema.applied()

    def evaluate(self) -> tuple[float, float]:
        """Mean loss, without label smoothing, and accuracy on the test images."""
        with self.tested():
            return self.evaluation.means(self.model, self.dataset, between=self.check_stop)
