"""L7: one training step: batch indices in, updated parameters out.

`Step.compute` is the training step. The methods below `compute` add threads, a CUDA graph, and checks for NaN and Inf.

With several processes (ranks), every rank gets the indices of the same batch, and computes its part of the batch.
Losses and gradients are summed over the ranks before the check and the update, so all ranks decide and update alike.

On a GPU the entire step runs on the device, including the sums of loss and correct predictions. The host only launches
kernels, so a step can be captured as a CUDA graph.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite

import numpy as np

from minigrad import Tensor, detect_anomaly
from minigrad.autograd.anomaly import NonFiniteError
from minigrad.backend import Array, array_module, device_of
from minigrad.backend.batch import Rows, split, sums_over_batch
from minigrad.cuda_graph import GraphedStep
from minigrad.nn import Module
from minigrad.optim import EMA, GradScaler, Optimizer, clip_grad_norm_, scale_all
from minigrad.parallel.buckets import Buckets
from minigrad.parallel.processes import World
from minigrad.parallel.sharded import ShardedOptimizer
from minigrad.parallel.threads import Shards
from train.data.augment import Transform
from train.data.batches import batches
from train.data.dataset import Split
from train.evaluate import Sums, at_least_float32, count_correct, mixed_precision

_unwarned = np.errstate(all="ignore")  # NaN and Inf are reported once, as a StepError


@dataclass(frozen=True)
class StepOptions:
    """The options of a training step.

    Fields:
        batch_size: images per batch, on all ranks together.
        grad_accum_steps: batches accumulated per optimizer step.
        clip_grad: maximum gradient norm; 0: no clipping.
        amp_dtype: the 16-bit dtype of mixed precision; None: no mixed precision.
        skip_nonfinite: skip and count steps with NaN or Inf, instead of raising an error.
        graph: run the step as a CUDA graph.
    """

    batch_size: int
    grad_accum_steps: int = 1
    clip_grad: float = 0.0
    amp_dtype: str | None = None
    skip_nonfinite: bool = False
    graph: bool = False


class Step:
    """A training step, and the state that the step updates: parameters, optimizer, loss scale, EMA, sums.

    Args:
        model, data: the model and the training images, on the same device.
        transform: augmentation and normalisation of a batch.
        criterion: logits (B, K) and targets -> mean loss.
        optimizer: of the model's parameters; sharded, to divide gradients and optimizer state between the ranks.
        ema: moving average of the model; None: no average.
        shards: the threads between which this rank's part of a batch is divided.
        world: the ranks between which a batch is divided.
        options: see `StepOptions`.
    """

    def __init__(
        self,
        model: Module,
        data: Split,
        transform: Transform,
        criterion: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        ema: EMA | None,
        shards: Shards,
        world: World,
        options: StepOptions,
    ) -> None:
        self.model, self.data, self.transform, self.criterion = model, data, transform, criterion
        self.optimizer, self.ema, self.shards, self.world, self.options = optimizer, ema, shards, world, options
        self.parameters = list(model.parameters())
        self.gradients: Buckets | ShardedOptimizer = Buckets(self.parameters, world)  # sums gradients over the ranks
        self.clip: Callable[[float], Tensor] = partial(clip_grad_norm_, self.parameters)
        if isinstance(optimizer, ShardedOptimizer):
            self.gradients, self.clip = optimizer, optimizer.clip_grad_norm_
        self.scaler = GradScaler(enabled=options.amp_dtype == "float16")
        self.sums = Sums(device_of(data.labels))  # since `clear`
        self.skipped = self.images_skipped = 0  # since `clear`: steps without an update; images that are not in `sums`
        self.generators = [transform.generator, *shards.generators]
        self.images_per_step = min(options.batch_size * options.grad_accum_steps, len(data))
        # Check for NaN and Inf before the update. Loss scaling synchronizes with the GPU anyway.
        on_cpu = device_of(data.labels) == "cpu"
        self.checks_finite = on_cpu or options.skip_nonfinite or self.scaler.enabled
        self.checks_each_op = False  # True in `find_first_op`
        self.graphed: Callable[[Array], bool] | None = None
        if options.graph:
            updates = optimizer.optimizer if isinstance(optimizer, ShardedOptimizer) else optimizer
            self.graphed = GraphedStep(self.compute, updates, generators=self.generators)

    def compute(self, index: Array) -> bool:
        """One step on the training images at these indices, (B,) int64. Returns whether the parameters were updated."""
        self.optimizer.zero_grad()
        results = []
        parts = list(batches(len(index), self.options.batch_size))
        for part in parts:  # the gradients of the batches add up
            rows, copies = self.rows_of(part.stop - part.start)
            images, labels = self.data.take(rows.take(index[part]))
            with self.transform.generator.drawing(rows):
                images, targets = self.transform(images, labels)  # augment, normalise
            work = partial(self.forward_backward, len(index), copies)
            with self.whole_batch(copies), self.gradients_reduced(part is parts[-1]):
                results += self.run_shards(work, rows, images, targets, labels)
        loss, correct = (sum(values) for values in zip(*results, strict=True))
        if self.world.size > 1:
            loss, correct = self.world.sum(array_module(index).stack([loss, correct]))
        if not self.is_finite(loss):
            self.images_skipped += len(index)
            return False
        self.sums.add(loss, correct, len(index))
        self.scaler.unscale_(self.optimizer)
        if self.options.clip_grad:
            self.clip(self.options.clip_grad)
        updated = self.scaler.step(self.optimizer)  # False, without an update, if a scaled gradient overflowed
        self.scaler.update()
        if updated and self.ema is not None:
            self.ema.update()
        return updated

    def forward_backward(
        self, total: int, copies: int, images: Array, targets: Array, labels: Array
    ) -> tuple[Array, Array]:
        """Add the gradients of some of the `total` images of a step, which `copies` ranks compute.

        Returns the loss and the number of correct predictions: the sums over all parts are those of the step.
        """
        with mixed_precision(self.options.amp_dtype, self.parameters):
            logits = at_least_float32(self.model(Tensor(images)))
            loss = self.criterion(logits, Tensor(targets))
        # A mean over these images. Weighted by their share of the images, the losses add up to the step's mean.
        loss = loss * (len(labels) / (total * copies))
        self.scaler.scale(loss).backward()
        correct = count_correct(logits, labels)
        return loss.data.astype(np.float64), correct if copies == 1 else correct / copies

    def rows_of(self, count: int) -> tuple[Rows, int]:
        """This rank's images of a batch of `count`, and the number of ranks that have the same images.

        The last batch of an epoch may have fewer images than there are ranks: every rank computes all of them.
        """
        parts = split(count, self.world.size, mirrored=self.transform.augment.mixes)
        if min(map(len, parts)):
            return parts[self.world.rank], 1
        return split(count, 1)[0], self.world.size

    def whole_batch(self, copies: int) -> AbstractContextManager[None]:
        """Within the block, batch normalisation sums over the images of all ranks, if they have different images."""
        return sums_over_batch(self.world.sum) if copies < self.world.size else nullcontext()

    def run_shards(
        self, work: Callable[..., tuple[Array, Array]], rows: Rows, *arrays: Array
    ) -> list[tuple[Array, Array]]:
        """Run `work` on each shard of this rank's images `rows`, one thread a shard. The gradients add up to those of
        earlier batches.

        With several shards, the gradients of this batch are summed first, then added to those of earlier batches. Two
        shards finish in any order, and the sum is the same: a + b = b + a, but (c + a) + b is not (c + b) + a.
        """

        @_unwarned  # np.errstate is local to a thread
        def guarded(*shard: Array) -> tuple[Array, Array]:
            with detect_anomaly() if self.checks_each_op else nullcontext():
                return work(*shard)

        if len(self.shards.generators) == 1:
            return self.shards.run(guarded, *arrays, rows=rows)
        earlier = [parameter.grad for parameter in self.parameters]
        self.optimizer.zero_grad()
        results = self.shards.run(guarded, *arrays, rows=rows)
        for parameter, grad in zip(self.parameters, earlier, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else Tensor(grad.data + parameter.grad.data)
        return results

    @contextmanager
    def gradients_reduced(self, last: bool) -> Iterator[None]:
        """After the block, if it computes the `last` batch of a step, the gradients are sums over all ranks.

        With one thread, the sums begin while backward still runs.
        """
        if last and len(self.shards.generators) == 1:
            with self.gradients.reducing():
                yield
        else:
            yield
            if last:
                self.gradients.reduce()

    @_unwarned
    def __call__(self, index: Array) -> None:
        """`compute`, as a CUDA graph if possible. A step without an update is counted as skipped.

        Raises:
            StepError: `checks_finite` found NaN or Inf in the loss or a gradient, without --skip-nonfinite; or in a
                scaled gradient at the smallest loss scale. Parameters, buffers, optimizer and EMA are unchanged.
        """
        draws = self.draws
        buffers = [(x, x.data.copy()) for _, x in self.model.named_buffers()] if self.checks_finite else []
        # A CUDA graph is captured for one batch size. The smaller last batch of an epoch runs eagerly, even if a
        # resumed run starts with it.
        compute = self.graphed if self.graphed is not None and len(index) == self.images_per_step else self.compute
        updated = False
        try:
            updated = compute(index)
        except FloatingPointError as error:
            raise StepError(str(error), self.find_first_op(index, draws)) from None
        finally:
            if not updated:
                self.skipped += 1
                for x, before in buffers:
                    x.data[...] = before

    def is_finite(self, loss: Array) -> bool:
        """True if loss and gradients are finite, or if `checks_finite` is False. The check synchronizes.

        Gradients of a scaled loss are checked later, by the scaler.

        Raises:
            FloatingPointError: NaN or Inf without --skip-nonfinite; always within `find_first_op`.
        """
        if not self.checks_finite:
            return True
        if self.checks_each_op:
            raise NonFiniteError("each op is finite, the sum of the gradients is not")
        grads = [p.grad.data for p in self.parameters if p.grad is not None]
        if not isfinite(float(loss)):
            error = f"the loss became {float(loss)}"
        elif not self.scaler.enabled and not self.optimizer.all_finite(scale_all(grads, 1.0)):
            error = "a gradient became infinite or NaN"
        else:
            return True
        if not self.options.skip_nonfinite:
            raise FloatingPointError(error)
        return False

    def find_first_op(self, index: Array, draws: tuple[int, int]) -> str:
        """Repeat a step, up to `is_finite`, under `detect_anomaly`; returns a message about the first non-finite op.

        `draws` is `Step.draws` before the step: the step repeats with the same random numbers.
        """
        self.draws = draws
        self.checks_each_op, message = True, ""
        try:
            self.compute(index)  # raises an error before the update
        except NonFiniteError as error:
            message = str(error)
        finally:
            self.checks_each_op = False
        return message

    @property
    def draws(self) -> tuple[int, int]:
        """The counters of the random numbers: of order and augmentation; of dropout. Equal on all threads and ranks."""
        return self.transform.generator.draws, self.shards.generators[0].draws

    @draws.setter
    def draws(self, counters: tuple[int, int]) -> None:
        self.transform.generator.draws = counters[0]
        for generator in self.shards.generators:
            generator.draws = counters[1]

    def clear(self) -> None:
        """Set sums and counts to 0, at the start of an epoch."""
        self.sums.clear()
        self.skipped = self.images_skipped = 0


class StepError(Exception):
    """NaN or Inf. `what`: the loss or a gradient; `why`: a message about the first op with NaN or Inf."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why = what, why
