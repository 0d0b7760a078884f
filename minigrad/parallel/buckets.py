"""L2: sums of gradients over ranks, in flat buckets, while backward still runs.

The gradient of a layer near the output is complete long before backward ends, so its sum over the ranks can be under
way while the layers before it run backward. A message for each parameter would be slow: most parameters are small. So
parameters are grouped into buckets of about 25 MB, in reverse order of registration, which is about the order in which
their gradients are complete. A bucket is one flat array, and each parameter has a slot in it:

    gradient complete         count it; once a bucket has all its gradients, and the buckets before it have started:
    bucket complete           copy its gradients into their slots, start the sum over the ranks
    end of backward           start the other buckets, wait for all sums; p.grad is the slot, a view of the flat array

All ranks must start the same sums in the same order. So the order of the buckets is fixed, whichever gradient is
complete first, and a parameter without a gradient on this rank contributes zeros.  Li et al. 2020, arXiv:2006.15704.

A bucket with a parameter that only some ranks use starts earlier on these ranks than on the others. MPI permits this.
NCCL executes all operations in the order of their launches, so on GPUs such models must not use batch normalisation
over ranks in the same backward.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from minigrad.autograd.node import Leaf
from minigrad.backend import Array, array_module
from minigrad.backend.capture import is_capturing
from minigrad.backend.fast_paths import call
from minigrad.ops.updates import copy_all
from minigrad.parallel.processes import Work, World

FIRST_MEGABYTES = 1.0  # the first bucket is small, so that communication starts early


class Used:
    """Finds the parameters that have a gradient on any rank."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.here: list[bool] | None = None  # of the last eager step
        self.anywhere: list[bool] = []

    def __call__(self, here: list[bool]) -> list[bool]:
        """`here`: whether each parameter has a gradient on this rank. Returns whether it has one on any rank."""
        if is_capturing() and here != self.here:
            raise RuntimeError(
                "other parameters receive gradients than in the eager step before: a captured step must use the same "
                "parameters"
            )
        if not is_capturing():  # nothing is read back during the capture: the graph does what the eager step did
            flags = np.array(here, np.int32)
            self.world.all_reduce(flags)
            self.here, self.anywhere = here, (flags > 0).tolist()
        return self.anywhere


class Bucket:
    """Gradients in one flat array: the indices of the parameters, and the slot of each, a view of its shape."""

    def __init__(self, indices: list[int], parameters: Sequence[Any]) -> None:
        arrays = [parameters[i].data for i in indices]
        self.indices, self.slots = indices, list[Array]()
        self.flat = array_module(arrays[0]).zeros(sum(x.size for x in arrays), arrays[0].dtype)
        end = 0
        for x in arrays:
            self.slots.append(self.flat[end : end + x.size].reshape(x.shape))
            end += x.size
        self.missing = 0  # parameters whose gradient is not complete
        self.work: Work | None = None


class Buckets:
    """Sums the gradients of parameters over the ranks of a World.

        buckets = Buckets(model.parameters(), world)
        with buckets.reducing():
            loss.backward()

    Afterwards `p.grad` is the sum over the ranks, bit for bit the same on all ranks, or None if no rank has a gradient
    of p. Gradients from before, of earlier micro-batches, are part of the sum: reduce only in the last backward.
    Frozen parameters are left out. With one rank nothing is copied.

    Args:
        parameters: in the order of use in forward. The same on all ranks, also which of them require gradients.
        megabytes: size of a bucket. The first bucket is smaller: the size is `FIRST_MEGABYTES`.
        mean: divide the sums by the number of ranks.

    An exception of backward on one rank should end all ranks (`World.abort`): the others wait for its gradients.
    """

    def __init__(self, parameters: Iterable[Any], world: World, megabytes: float = 25.0, *, mean: bool = False) -> None:
        if megabytes <= 0:
            raise ValueError(f"Buckets: megabytes must be positive, got {megabytes}")
        self.parameters = list({id(p): p for p in parameters}.values())
        self.world, self.megabytes, self.mean = world, megabytes, mean
        self.buckets: list[Bucket] = []
        self.layout: list[Any] = []  # what the buckets were made for: see `_prepare`
        self.leaves: dict[int, Leaf] = {}  # index of a parameter that requires a gradient -> its node
        self.bucket_of: dict[int, Bucket] = {}  # index of a parameter -> its bucket
        self.lock = threading.Lock()  # threads may run backward into the same parameters
        self.running = self.lost = False
        self.started, self.backwards = 0, 1
        self.arrived: dict[int, int] = {}  # index of a parameter -> the number of backwards that reached it
        self.used = Used(world)

    def reduce(self) -> None:
        """Sum the gradients over the ranks, after backward."""
        if self.world.size > 1:
            self.begin()
            self.finish()

    @contextmanager
    def reducing(self, backwards: int = 1) -> Iterator[None]:
        """Sum the gradients over the ranks while `backward` in the block still runs.

        Args:
            backwards: the number of calls of `backward` in the block, such as one for each thread or micro-batch. A
                gradient is complete after the last of them.
        """
        if self.world.size == 1:
            yield
            return
        self.begin(backwards)
        handles = [leaf.add_post_hook(partial(self.arrive, i)) for i, leaf in self.leaves.items()]
        try:
            yield
        except BaseException as error:
            self.finish(error)
            raise
        else:
            self.finish()
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, backwards: int = 1) -> None:
        """Start a reduction: no bucket has been sent."""
        if self.running:
            raise RuntimeError("Buckets: a reduction is running already; blocks of `reducing` must not be nested")
        if self.lost:
            raise RuntimeError(
                "Buckets: the ranks are out of step, because an exception ended an earlier reduction on this rank. "
                "Restart all ranks from a checkpoint"
            )
        self._prepare()
        self.running, self.started, self.backwards = True, 0, backwards
        self.arrived.clear()
        for bucket in self.buckets:
            bucket.missing, bucket.work = len(bucket.indices), None

    def arrive(self, index: int) -> None:
        """A backward has added to the gradient of parameter `index`."""
        with self.lock:
            bucket = self.bucket_of[index]
            self.arrived[index] = count = self.arrived.get(index, 0) + 1
            if count > self.backwards:
                raise RuntimeError(
                    f"Buckets: {count} calls of backward reached parameter {index}, whose gradient was complete after "
                    f"{self.backwards}: pass the number of calls of backward in the block, reducing(backwards=...)"
                )
            bucket.missing -= count == self.backwards
            while self.started < len(self.buckets) and not self.buckets[self.started].missing:
                self._start(self.buckets[self.started])

    def finish(self, error: BaseException | None = None) -> None:
        """Start the other buckets, wait for all sums, and let `p.grad` be the slots.

        Args:
            error: an exception that backward raised on this rank. Then nothing more is sent.
        """
        self.running = False
        self.lost = self.lost or error is not None
        if self.lost:
            return
        self.lost = True  # unless all operations succeed
        here = [leaf.grad is not None for leaf in self.leaves.values()]
        while self.started < len(self.buckets):
            self._start(self.buckets[self.started])
        used = dict(zip(self.leaves, self.used(here), strict=True))
        for bucket in self.buckets:
            assert bucket.work is not None
            bucket.work.wait()
            for i, slot in zip(bucket.indices, bucket.slots, strict=True):
                self.leaves[i].grad = slot if used[i] else None
        self.lost = False

    def _start(self, bucket: Bucket) -> None:
        """Copy the gradients of a bucket into their slots, and start the sum over the ranks."""
        self.started += 1
        pairs = []
        for i, slot in zip(bucket.indices, bucket.slots, strict=True):
            leaf = self.leaves[i]
            if leaf.grad is None:
                slot[...] = 0
                continue
            if leaf.grad is not slot or self.mean:
                pairs.append((slot, leaf.grad))
            leaf.grad = slot  # frees the gradient's own array
        if pairs:
            call(copy_all, pairs, float(self.world.size) if self.mean else 1.0)
        lost, self.lost = self.lost, True
        bucket.work = self.world.start_all_reduce(bucket.flat)
        self.lost = lost

    def _prepare(self) -> None:
        """Create the buckets, again if parameters were frozen, cast or replaced on another device since."""
        layout = [(p._node, type(p.data), p.data.dtype, p.data.shape) for p in self.parameters]
        if layout == self.layout:
            return
        self.layout, self.used = layout, Used(self.world)
        self.leaves = {i: p._node for i, p in enumerate(self.parameters) if p.requires_grad}
        self.buckets = [Bucket(indices, self.parameters) for indices in self._groups()]
        self.bucket_of = {i: bucket for bucket in self.buckets for i in bucket.indices}

    def _groups(self) -> list[list[int]]:
        """The indices of the parameters of each bucket. Each bucket has one dtype and one kind of device."""
        closed: list[list[int]] = []
        filling: dict[Any, tuple[list[int], int]] = {}
        for i in reversed(range(len(self.parameters))):
            _, *kind, _ = self.layout[i]
            if i not in self.leaves:
                continue
            indices, nbytes = filling.pop(tuple(kind), ([], 0))
            indices.append(i)
            nbytes += self.parameters[i].data.nbytes
            if nbytes >= (self.megabytes if closed else min(FIRST_MEGABYTES, self.megabytes)) * 2**20:
                closed.append(indices)
            else:
                filling[tuple(kind)] = indices, nbytes  # last in `filling`: buckets end in order of their last entry
        return closed + [indices for indices, _ in filling.values()]
