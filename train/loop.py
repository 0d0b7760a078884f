"""L7: the training loop: epochs of forward, backward and step, each followed by a look at the test images.

On a GPU the images are there from the beginning, and all of a step happens there, from the numbers of its images to the
sums of loss and right answers: the host only launches, and reads the sums now and then.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from threading import Event
from typing import Any

import numpy as np

import minigrad.functional as F
from minigrad import Tensor, detect_anomaly
from minigrad.backend import Array
from minigrad.engine import NonFiniteError
from minigrad.graph import GraphedStep
from minigrad.nn import Module
from minigrad.optim import EMA, AdamW, GradScaler, Muon, WarmupCosine, clip_grad_norm_, matrices_apart, scale_all
from minigrad.parallel import Shards
from minigrad.random import Generator
from models.model import param_groups
from train.augment import augmentation, repeated
from train.batches import batches
from train.dataset import Dataset
from train.errors import InputError
from train.evaluate import Evaluation, Sums, count_right
from train.log import Metrics, Progress
from train.settings import Settings

_STREAM = 1 << 32  # above every seed: order, augmentation and dropout draw from streams apart from initialisation
_unwarned = np.errstate(all="ignore")  # a loss that is not finite is reported once, and in full
_UNREAD = 20  # steps of a GPU from one look at the loss to the next: each look waits for it


class DivergedError(InputError):
    """A number is no longer finite, so that going on is of no use."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """`fit` ends early, as `Trainer.stop` was set."""


class Trainer:
    """A model in training: all that changes from step to step is here."""

    def __init__(self, model: Module, dataset: Dataset, settings: Settings) -> None:
        self.model, self.dataset, self.settings = model, dataset.to(settings.device), settings
        self.normalize = self.dataset.normalizer()
        self.augment = augmentation(settings, dataset)
        self.parameters = list(model.parameters())
        self.optimizer = self.optimizer_of(settings)
        self.scaler = GradScaler(enabled=settings.amp and settings.amp_dtype == "float16")
        decay, rises = settings.model_ema_decay, settings.model_ema_warmup
        self.ema = EMA(model, decay, warmup=rises) if settings.model_ema else None
        self.lr = 0.0  # of the last step
        self.images = settings.batch_size * settings.grad_accum_steps  # in a step
        self.steps = -(-len(dataset.train) // self.images)  # in an epoch
        warmup = round(self.steps * settings.warmup_epochs)
        self.schedule = WarmupCosine(self.optimizer, warmup, self.steps * settings.epochs)
        self.generator = Generator(_STREAM * (settings.seed + 1))
        # Batch normalisation is over the whole batch: a model with running statistics is not given shards of it.
        self.threads = 1 if any(model.named_buffers()) else settings.threads
        self.shards = Shards(self.threads, self.generator.seed + 1)
        self.evaluation = Evaluation(model, self.dataset, settings, self.shards)
        self.sums = Sums(settings.device)  # of the epoch
        self.generators = [self.generator, *self.shards.generators]
        self.run: Callable[[Array], None] = self.compute
        if settings.graph:
            self.run = GraphedStep(self.compute, self.optimizer, generators=self.generators)
        # The place in the run; train/resume.py brings a new trainer to that of an earlier one.
        self.epoch = 0  # so many are done
        self.position = 0  # so many steps of the next one are
        self.order: Array | None = None  # of its images, from its first step on
        self.seconds = 0.0  # that it took so far, before the process was started that goes on with it
        self.skipped = self.images_skipped = 0  # steps of it that were left out, and their images
        self.watched = settings.device == "cpu" or settings.skip_nonfinite  # each step, before anything moves
        self.guard: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.stop = Event()  # once set, `fit` ends after the step that is running

    def optimizer_of(self, settings: Settings) -> AdamW:
        """The optimiser that --opt names. Muon is for the matrices of hidden layers: not for those that spare decay."""
        groups = param_groups(self.model, settings.lr, settings.weight_decay, settings.layer_decay)
        if settings.opt == "adamw":
            return AdamW(groups)
        head = getattr(self.model, "head", None)
        outside = [p for group in groups if not group["weight_decay"] for p in group["params"]]
        return Muon(matrices_apart(groups, outside + (list(head.parameters()) if head is not None else [])))

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
                except Stopped:
                    self.seconds = time.perf_counter() - start
                    raise
                seconds = time.perf_counter() - start
                speed = len(self.dataset.train) / (trained - start)
                self.epoch, self.position, self.order, self.seconds = self.epoch + 1, 0, None, 0.0
                results = train_loss, train_acc, test_loss, test_acc
                yield Metrics(self.epoch, self.lr, *results, seconds, speed, self.skipped)

    def train_epoch(self, title: str) -> tuple[float, float]:
        """Every training image once, in random order; with --aug-repeats R, one of R images, R times.

        Returns mean loss and accuracy while the model changes.
        """
        self.model.train()
        self.check_stop()
        count, unread = len(self.dataset.train), 1 if self.settings.device == "cpu" else _UNREAD
        if self.order is None:
            self.sums.clear()
            self.skipped = self.images_skipped = 0
            order = self.generator.permutation(count, self.settings.device)
            self.order = repeated(order, self.settings.aug_repeats)
        parts = list(batches(count, self.images))
        done = parts[self.position - 1].stop if self.position else 0
        with Progress(count, " images", title, done=done) as progress:
            for part in parts[self.position :]:
                self.step(self.order[part])
                self.position += 1
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
        if images == self.images_skipped < len(self.dataset.train):
            return 0.0, 0.0
        if images == self.images_skipped:
            raise self.diverged("a loss or a gradient was not finite", "in every step")
        loss, acc = self.sums.means(images - self.images_skipped)
        if not isfinite(loss):
            raise self.diverged(f"the loss became {loss}", f"not later than in step {self.position}")
        return loss, acc

    def check_stop(self) -> None:
        """End `fit` here, between two steps, if that is asked for."""
        if self.stop.is_set():
            raise Stopped

    @_unwarned
    def step(self, index: Array) -> None:
        """One step of the optimiser, on the training images of these numbers, (B,) int64."""
        self.run(index)
        self.lr = self.settings.lr * self.schedule.factor(self.schedule.t)
        self.schedule.step()

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
                raise self.diverged(what, f"in step {self.position + 1}", f": {self.first_op(index, draws)}")
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
            earlier = [p.grad for p in self.parameters] if self.threads > 1 else []
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
        with self.evaluation.precision():
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

    def diverged(self, what: str, where: str, why: str = "") -> "DivergedError":
        """The error that says so."""
        place = f"{where} of epoch {self.epoch + 1}/{self.settings.epochs}"
        return DivergedError(f"{what} {place}{why}; try a lower --lr or more --warmup-epochs")

    def tested(self) -> AbstractContextManager[None]:
        """Within the block, the model is what is tested and kept: with --model-ema, its average."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def evaluate(self) -> tuple[float, float]:
        """Mean loss, without label smoothing, and accuracy on the test images."""
        with self.tested():
            return self.evaluation.means(between=self.check_stop)
