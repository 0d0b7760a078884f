"""L5: DistributedDataParallel: a module whose gradients are averaged over the ranks in backward, as in PyTorch.

from minigrad import distributed as dist
from minigrad.nn.parallel import DistributedDataParallel as DDP

dist.init_process_group()
minigrad.manual_seed(seed + dist.get_rank())        # each rank draws other dropout masks
model = DDP(model)
for images, labels in loader:                       # with a DistributedSampler: other images on each rank
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
"""

import copy
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import tape, writes
from minigrad.autograd.grad_mode import mode
from minigrad.autograd.node import Leaf
from minigrad.backend import Array, array_module
from minigrad.backend.batch import sums_over_batch
from minigrad.nn.module import Module
from minigrad.nn.norm import BatchNorm1d, BatchNorm2d, SyncBatchNorm
from minigrad.parallel.buckets import Buckets
from minigrad.parallel.processes import World
from minigrad.parallel.processes import world as world_of_process

_REFUSED = {
    "process_group": "all ranks are one group: pass None",
    "mixed_precision": "use minigrad.autocast in the training step",
    "device_mesh": "all ranks are one group: pass None",
    "delay_all_reduce_named_params": "set requires_grad=False of parameters that are not to be reduced",
    "param_to_hook_all_reduce": "use model.no_sync(), and reduce gradients by minigrad.distributed.all_reduce",
}


class DistributedDataParallel(Module):
    """Runs `module` on this rank's part of the batch. Backward replaces each gradient by the mean over the ranks.

    The constructor checks that all ranks have the same parameters and buffers, and copies their values from rank 0.
    The sums of gradients run while backward still runs (`minigrad/parallel/buckets.py`), and are complete when backward
    returns. A parameter that this rank does not use contributes zeros; if no rank uses it, its gradient stays None.

    In training, batch normalisation uses the mean and variance over all ranks, as PyTorch's SyncBatchNorm, so that the
    running statistics are the same on all ranks. Dropout draws from the generator of each rank: seed each rank with
    another number, `manual_seed(seed + rank)`.

    All ranks must call forward and backward equally often. With one rank, forward only calls `module`.

    Args:
        module: the module; `state_dict()` has its names with the prefix "module.", `model.module.state_dict()` without.
        device_ids: None, or a list of one device. Without effect, as are output_device, find_unused_parameters (always
            found), gradient_as_bucket_view (always True), static_graph, check_reduction and
            skip_all_reduce_unused_params.
        broadcast_buffers: copy buffers from rank 0 before each forward that records, except those of batch
            normalisation, which are the same on all ranks.
        init_sync: check and copy the parameters and buffers in the constructor.
        bucket_cap_mb: the size of a bucket in MiB; None: 25.
        world: the ranks; by default those of this job, `minigrad.parallel.world()`.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        init_sync: bool = True,
        process_group: Any = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        delay_all_reduce_named_params: Any = None,
        param_to_hook_all_reduce: Any = None,
        mixed_precision: Any = None,
        device_mesh: Any = None,
        skip_all_reduce_unused_params: bool = False,
        *,
        world: World | None = None,
    ) -> None:
        given = locals()
        for name, instead in _REFUSED.items():
            if given[name] is not None:
                raise ValueError(f"DistributedDataParallel: {name} is not supported: {instead}")
        if device_ids is not None and len(device_ids) > 1:
            raise ValueError("device_ids can only be None or contain a single element.")
        if not isinstance(module, Module):
            raise TypeError(f"DistributedDataParallel: module must be an nn.Module, got {type(module).__name__}")
        if not any(p.requires_grad for p in module.parameters()):
            raise RuntimeError(
                "DistributedDataParallel is not needed when a module doesn't have any parameters that require a "
                "gradient."
            )
        self.module, self.broadcast_buffers = module, broadcast_buffers
        self.require_backward_grad_sync = True
        self._megabytes = 25.0 if bucket_cap_mb is None else bucket_cap_mb
        self._start(world_of_process() if world is None else world)
        if init_sync and self._world.size > 1:
            require_same_state(module, self._world)
            broadcast_arrays([x.data for _, x in _state(module)], self._world)

    def _start(self, world: World) -> None:
        self._world, self._synchronizes = world, True
        self._buckets = Buckets(self.module.parameters(), world, self._megabytes, mean=True)
        self._hooked: dict[int, Leaf] = {}

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """`module(*inputs, **options)`, with batch normalisation over all ranks."""
        if self._world.size == 1:
            return self.module(*inputs, **options)
        if mode.grad_enabled:
            self._synchronizes = self.require_backward_grad_sync
            self._add_hooks()
            if self.broadcast_buffers and self._synchronizes:
                normalised = {
                    id(buffer)
                    for part in self.module.modules()
                    if isinstance(part, BatchNorm1d | BatchNorm2d | SyncBatchNorm)
                    for buffer in part.buffers(recurse=False)
                }
                others = [x.data for x in self.module.buffers() if id(x) not in normalised]
                broadcast_arrays(others, self._world)
        with sums_over_batch(self._sum):
            return self.module(*inputs, **options)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within the block, backward leaves the gradients of this rank, to be accumulated over micro-batches. The next
        backward outside the block reduces their sum. As in PyTorch, forward must be in the block, too."""
        before, self.require_backward_grad_sync = self.require_backward_grad_sync, False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before

    def _sum(self, x: Array) -> Array:
        self._world.all_reduce(x)
        return x

    def _add_hooks(self) -> None:
        """Hooks of the parameters, added again if parameters were frozen or not since. A hook has no reference to self,
        because self refers to the parameters: a reference cycle would delay freeing."""
        leaves = {i: p._node for i, p in enumerate(self._buckets.parameters) if p.requires_grad}
        for i, leaf in leaves.items():
            if self._hooked.get(i) is not leaf:
                leaf.add_post_hook(_Arrive(self, i))
        self._hooked |= leaves

    def _arrive(self, index: int) -> None:
        if not self._synchronizes:
            return
        if not self._buckets.running:
            self._buckets.begin()
            tape.at_end(self._buckets.finish)
        self._buckets.arrive(index)

    # Copies and pickles do not communicate before they are used: the module, and the World of this process

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_buckets", "_hooked", "_world")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start(world_of_process())

    def __deepcopy__(self, memo: dict[int, Any]) -> "DistributedDataParallel":
        other = object.__new__(type(self))
        vars(other).update(copy.deepcopy(self.__getstate__(), memo))
        other._start(self._world)
        return other


class _Arrive:
    """The post-accumulate hook of a parameter."""

    def __init__(self, model: DistributedDataParallel, index: int) -> None:
        self.model, self.index = weakref.ref(model), index

    def __call__(self) -> None:
        model = self.model()
        if model is not None:
            model._arrive(self.index)


def require_same_state(module: Module, world: World) -> None:
    """Raise RuntimeError on all ranks unless they have the same parameters and buffers: names, shapes, dtypes."""
    own = [
        [name, f"{tuple(x.shape)} {x.dtype}{', requires a gradient' if x.requires_grad else ''}"]
        for name, x in _state(module)
    ]
    first, *others = world.all_gather_objects(own)
    for rank, found in enumerate(others, start=1):
        for i in range(max(len(first), len(found))):
            ours, theirs = ("nothing" if i >= len(x) else " ".join(x[i]) for x in (first, found))
            if ours != theirs:
                raise RuntimeError(
                    "all ranks must have the same parameters and buffers, in the same order. The first difference, at "
                    f"position {i}: rank 0 has {ours}, rank {rank} has {theirs}"
                )


def broadcast_arrays(arrays: Iterable[Array], world: World) -> None:
    """Replace the arrays by those of rank 0, in one message of bytes for each kind of device."""
    kinds: dict[type, list[Array]] = {}
    for x in arrays:
        kinds.setdefault(type(x), []).append(x)
    for xs in kinds.values():
        xp = array_module(xs[0])
        flat = xp.concatenate([xp.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in xs])
        world.broadcast(flat)
        if world.rank:
            end = 0
            for x in xs:
                x[...] = flat[end : end + x.nbytes].view(x.dtype).reshape(x.shape)
                end += x.nbytes
            writes.note(xs)


def _state(module: Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
