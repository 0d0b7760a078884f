"""L5: an optimizer whose state is divided over the ranks (ZeRO stages 1 and 2: Rajbhandari et al. 2019, 1910.02054).

Data parallelism keeps parameters, gradients and optimizer state on every rank; the state of AdamW alone is twice as
large as the parameters. Here every parameter has an owner, the only rank that keeps the parameter's summed gradient and
its state:

    rank 0    W0 W1 W2      backward: gradients of all parameters, for this rank's images
    rank 1    W0 W1 W2
                 reduce     reduce-scatter: rank 0 gets the sum of ∂W0 and ∂W2, rank 1 that of ∂W1
                 step       rank 0 updates W0 and W2, rank 1 updates W1; all-gather: every rank gets W0, W1, W2

Reduce-scatter and all-gather together transfer as many bytes as the all-reduce that they replace.

A parameter has one owner, rather than a part on every rank: every optimizer works unchanged, also Muon, whose update
needs a whole matrix. The cost is the imbalance between owners, a few percent of the parameters (`assign_owners`).
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from math import inf
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.autograd.grad_mode import enable_grad
from minigrad.backend import Array, array_module, empty, fast_paths, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.ops import checks
from minigrad.ops.updates import copy_all, norm_of_terms, norm_term, scale_to_norm
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.state import State
from minigrad.parallel.buckets import Used
from minigrad.parallel.processes import World
from minigrad.parallel.processes import world as world_of_process

ALIGNMENT = 256  # bytes; an array that CUDA allocates has this alignment, as has each parameter in the flat array
CHUNK = 1 << 24  # bytes of gradients of all owners in one reduce-scatter


def assign_owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """The owner of each parameter: the largest first, each to the rank with the fewest elements so far.

    The largest total of a rank exceeds the mean by at most the largest size, and is at most 4/3 - 1/(3 · ranks) times
    that of the best assignment.  Graham 1969, "Bounds on multiprocessing timing anomalies".
    """
    totals, owners = [0] * ranks, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):  # stable: equal on all ranks
        owners[i] = owner = totals.index(min(totals))
        totals[owner] += sizes[i]
    return owners


class ShardedOptimizer(Optimizer):
    """An optimizer with the gradients and the state of each parameter on one rank only (ZeRO).

        optimizer = ShardedOptimizer(optim.AdamW(model.parameters()), world(), mean=True)
        for images, labels in batches:              # of this rank
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.reduce()                      # the mean of the gradients over the ranks
            optimizer.clip_grad_norm_(1.0)
            optimizer.step()

    To accumulate the gradients of several batches, call `reduce` once, after the last backward. The optimizer's groups
    are those of `optimizer`, for learning rate schedules. `GradScaler` works as usual.

    The parameters become views of one array per dtype, into which `step` gathers the updates of all ranks; their values
    are those of rank 0. As with views in PyTorch, a write to one parameter between forward and backward counts as a
    write to all.

    All ranks must create the optimizer, and call `reduce`, `clip_grad_norm_`, `step`, and the methods that return or
    load the state.

    Args:
        optimizer: the optimizer of the same parameters on every rank. Its state, if it has any, is kept by the owners.
        world: the ranks, see `minigrad/parallel/processes.py`.
        mean: `reduce` divides the sums by the number of ranks. Without, the loss of each rank must be weighted by the
            rank's share of the images.

    Raises:
        ValueError: the parameters of the ranks differ in number, shape or dtype.
    """

    needs_reduce: ClassVar[bool] = True  # False: DistributedDataParallel averages the gradients

    def __init__(self, optimizer: Optimizer, world: World, *, mean: bool = False) -> None:
        self.optimizer, self.world, self.mean = optimizer, world, mean
        self.defaults, self.param_groups = optimizer.defaults, optimizer.param_groups
        self.pytorch_names = optimizer.pytorch_names  # type: ignore[misc]
        self.flats: list[Flat] = []
        self.used = Used(world)
        self.reduced = False  # since `zero_grad` or `step`
        self._flatten()

    def _flatten(self) -> None:
        """Divide the parameters that have no owner yet. One Flat for each dtype."""
        known = {id(p) for flat in self.flats for p in flat.parameters}
        new = [p for group in self.param_groups for p in group["params"] if id(p) not in known]
        kinds = [[str(p.dtype), *p.shape] for p in new]
        if any(other != kinds for other in self.world.all_gather_objects(kinds)):
            raise ValueError(
                "ShardedOptimizer: the parameters of the ranks differ in number, shape or dtype: create the same model "
                "on every rank"
            )
        by_dtype: dict[np.dtype, list[Tensor]] = {}
        for p in new:
            by_dtype.setdefault(p.dtype, []).append(p)
        self.flats += [Flat(parameters, self.world) for parameters in by_dtype.values()]
        self.owners = {
            id(p): owner for flat in self.flats for p, owner in zip(flat.parameters, flat.owners, strict=True)
        }
        for group, states in zip(self.param_groups, self.state, strict=True):
            for p, state in zip(group["params"], states, strict=True):
                if not self.owns(p):
                    state.clear()

    @property
    def state(self) -> list[list[State]]:  # type: ignore[override]
        """The state of each parameter of each group; {} for a parameter of another owner."""
        return self.optimizer.state

    def owns(self, parameter: Tensor) -> bool:
        """True if this rank keeps gradient and state of the parameter."""
        return self.owners[id(parameter)] == self.world.rank

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group, on all ranks. Its parameters are divided among the ranks, apart from the others."""
        self.optimizer.add_param_group(param_group)
        self._flatten()

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.optimizer.state_names(group)

    # A training step ------------------------------------------------------------------------------------------------

    def reduce(self) -> None:
        """Give each owner the sum of its gradients over the ranks. Other gradients become None.

        A parameter that has a gradient on no rank has none afterwards.
        """
        for flat in self.flats:
            flat.expect_views()
        self.reduced = True
        if self.world.size == 1:
            return
        parameters = [p for flat in self.flats for p in flat.parameters]
        anywhere = self.used([p.grad is not None for p in parameters])
        used = {id(p) for p, has_gradient in zip(parameters, anywhere, strict=True) if has_gradient}
        for flat in self.flats:
            flat.reduce(used, float(self.world.size) if self.mean else 1.0)

    @contextmanager
    def reducing(self) -> Iterator[None]:
        """Call `reduce` after the block, which runs backward."""
        yield
        self.reduce()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.reduced = False
        super().zero_grad(set_to_none)

    def all_finite(self, finite: bool) -> bool:
        """True if `finite` is True on all ranks, as when each checked its own gradients. Synchronizes with the GPU."""
        flags = array_module(self.flats[0].values).full((1,), float(finite), np.float32)
        self.world.all_reduce(flags, op="min")
        return bool(flags[0])

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
        """`clip_grad_norm_` of all parameters, after `reduce`: each owner scales its gradients by the global norm."""
        max_norm, norm_type = checks.norm_arguments(max_norm, norm_type)
        parameters = [p for flat in self.flats for p in flat.parameters]
        # The terms of all parameters, each from its owner: their sum does not depend on the number of ranks.
        terms = array_module(self.flats[0].values).zeros((len(parameters),), np.float64)
        grads = []
        for i, p in enumerate(parameters):
            if self.owns(p) and p.grad is not None:
                grads.append(p.grad.data)
                terms[i] = norm_term(p.grad.data, norm_type)
        self.world.all_reduce(terms)
        norm = norm_of_terms([terms.max() if norm_type == inf else terms.sum()], norm_type)
        if error_if_nonfinite and not array_module(norm).isfinite(norm):
            raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {float(norm)}")
        if grads:
            writes.note(grads)
            scale_to_norm(grads, norm, max_norm)
        dtypes = [flat.values.dtype for flat in self.flats]
        full = [dtype for dtype in dtypes if not is_half(dtype)]
        return Tensor(cast(norm, dtypes[0] if len(dtypes) == 1 else np.result_type(FLOAT32, *full)))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters of this rank that have a gradient, and get those of the other ranks.

        If the gradients were averaged by an all-reduce instead of `reduce`, those of other owners become None.

        closure: computes the loss and the reduced gradients, and is called first; `step` returns the loss.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        if self.needs_reduce and not self.reduced and self.world.size > 1:
            raise RuntimeError(
                "ShardedOptimizer.step: the gradients are those of this rank alone: call reduce() after backward"
            )
        self.reduced = False
        for flat in self.flats:
            flat.expect_views()
            flat.drop_gradients()
        self.optimizer.step()
        for flat in self.flats:
            flat.gather()
        return loss

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """On rank 0, the `state_dict` of an optimizer that is not sharded; on other ranks, without "state"."""
        whole, _ = self._gathered()
        return whole.state_dict()

    def flat_state_dict(self) -> dict[str, Array]:
        """On rank 0, the `flat_state_dict` of an optimizer that is not sharded; on other ranks, without the states."""
        whole, has_state = self._gathered()
        flags = {f"{g}.has_state": np.array(flags, np.bool_) for g, flags in enumerate(has_state)}
        return {**whole.flat_state_dict(), **flags}

    def _gathered(self) -> tuple[Optimizer, list[list[bool]]]:
        """A copy of the optimizer that has the state of all parameters on rank 0, and which parameters have a state."""
        own = [[{name: value if isinstance(value, int) else None for name, value in state.items()} for state in states]
               for states in self.state]  # fmt: skip
        tables = self.world.all_gather_objects(own)  # of each rank: counts, and None for an array
        gathered: list[list[State]] = []
        for g, (group, states) in enumerate(zip(self.param_groups, self.state, strict=True)):
            gathered.append([])
            for i, (p, state) in enumerate(zip(group["params"], states, strict=True)):
                owner = self.owners[id(p)]
                counts = tables[owner][g][i]
                values = {name: count if count is not None else self._broadcast(state.get(name), p, owner)
                          for name, count in counts.items()}  # fmt: skip
                gathered[g].append(values if self.world.rank == 0 else {})
        whole = copy(self.optimizer)
        whole.state = gathered
        rows = enumerate(self.param_groups)
        return whole, [
            [bool(tables[self.owners[id(p)]][g][i]) for i, p in enumerate(group["params"])] for g, group in rows
        ]

    def _broadcast(self, array: Array | None, p: Tensor, owner: int) -> Array:
        """An array of the state of p, from its owner; on the CPU, as one GPU need not hold the state of all ranks."""
        if array is None:
            array = empty(p.shape, FLOAT32 if is_half(p.dtype) else p.dtype, p.device)
        self.world.broadcast(array, root=owner)
        return to_device(array, "cpu")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the `state_dict` or `flat_state_dict` of all parameters, on every rank; each keeps its own part.

        The number of ranks that saved the state does not matter, nor whether the optimizer was sharded.

        Raises:
            ValueError: on all ranks, if `state_dict` is incomplete or belongs to other parameters on any rank. The
                optimizer is unchanged.
        """
        options, states = self.read_state_dict(state_dict)
        for group, own in zip(self.param_groups, options, strict=True):
            group.update(own)
        self.optimizer.state = states

    def read_state_dict(self, state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[list[State]]]:
        """The options of each group, and the state of the parameters of this rank, checked by all ranks."""
        error, read = "", None
        try:
            read = self.optimizer.read_state_dict(self._own_part(state_dict))
        except ValueError as misfit:
            error = str(misfit)
        errors = [other for other in self.world.all_gather_objects(error) if other]
        if errors or read is None:
            raise ValueError(errors[0])
        return read

    def _own_part(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """`state_dict` without the states of other owners, which need not be copied to this rank's device."""
        owned = [[self.owns(p) for p in group["params"]] for group in self.param_groups]
        if "param_groups" in state_dict:
            others = {
                key
                for group, flags in zip(state_dict["param_groups"], owned, strict=False)
                for key, own in zip(group["params"], flags, strict=False)
                if not own
            }
            state = {key: values for key, values in state_dict["state"].items() if key not in others}
            return {**state_dict, "state": state}
        prefixes = tuple(f"{g}.{i}." for g, flags in enumerate(owned) for i, own in enumerate(flags) if not own)
        part = {key: value for key, value in state_dict.items() if not key.startswith(prefixes)}
        for g, flags in enumerate(owned):
            has_state = np.asarray(part.get(f"{g}.has_state", np.ones(len(flags), np.bool_)))
            if has_state.shape == (len(flags),):
                part[f"{g}.has_state"] = has_state & flags
        return part

    def nbytes(self) -> dict[str, int]:
        """The bytes on this rank: of parameters, of gradients with the arrays that reduce them, and of the state."""
        buffers = [x for flat in self.flats for x in flat.allocated()]
        grads = [p.grad.data for group in self.param_groups for p in group["params"] if p.grad is not None]
        apart = [g for g in grads if all(g.base is not x for x in buffers)]
        states = [x for states in self.state for state in states for x in state.values() if not isinstance(x, int)]
        arrays = {"parameters": [flat.values for flat in self.flats], "gradients": buffers + apart, "state": states}
        return {name: sum(x.nbytes for x in own) for name, own in arrays.items()}


class ZeroRedundancyOptimizer(ShardedOptimizer):
    """`ShardedOptimizer` with the arguments of torch.distributed.optim.ZeroRedundancyOptimizer.

    For the parameters of a DistributedDataParallel, whose backward averages the gradients: `reduce` is not called.
    `state_dict` returns, on rank 0, the state as of the latest `consolidate_state_dict`, which all ranks call.

    Args:
        params: Tensors, or groups.
        optimizer_class: the optimizer, such as AdamW, with `defaults` as its options.
        process_group: None, all ranks.
        parameters_as_bucket_view: without effect, always on.
        overlap_with_ddp: refused.
        world: the ranks; by default those of this job, `minigrad.parallel.world()`.
    """

    needs_reduce = False

    def __init__(
        self,
        params: Any,
        optimizer_class: Callable[..., Optimizer],
        process_group: None = None,
        parameters_as_bucket_view: bool = False,
        overlap_with_ddp: bool = False,
        *,
        world: World | None = None,
        **defaults: Any,
    ) -> None:
        if process_group is not None or overlap_with_ddp:
            raise ValueError(
                "ZeroRedundancyOptimizer: process_group must be None, as all ranks are one group, and overlap_with_ddp "
                "False, as the parameters are gathered at the end of a step"
            )
        super().__init__(optimizer_class(params, **defaults), world_of_process() if world is None else world)
        self._consolidated: dict[str, Any] | None = None

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gather the state of all ranks on rank 0, for `state_dict`."""
        if to != 0:
            raise ValueError(f"ZeroRedundancyOptimizer.consolidate_state_dict: only rank 0 gets the state, got to={to}")
        whole = super().state_dict()
        self._consolidated = whole if self.world.rank == 0 else None

    def state_dict(self) -> dict[str, Any]:
        """The state as of the latest `consolidate_state_dict`, on rank 0 only."""
        if self._consolidated is None:
            raise RuntimeError(
                "ZeroRedundancyOptimizer: the state has not been consolidated on this rank: call "
                "consolidate_state_dict() on all ranks, and state_dict() on rank 0"
            )
        return self._consolidated


class Piece(NamedTuple):
    """The part of a parameter in a chunk of gradients."""

    parameter: int
    place: tuple[int, slice]  # in the chunk: owner, elements
    elements: slice  # of the parameter
    last: bool  # no later chunk has a part of this parameter


class Flat:
    """The parameters of one dtype as views of one array, (ranks, N): row r has the parameters of owner r.

        row 0    W0 W0 W0 W0 · · W2 W2 W2           each parameter is aligned
        row 1    W1 W1 W1 W1 W1 W1 · · · ·          padded to the longest row

    Gradients are reduced in chunks, some columns of all rows, so that only a chunk is copied at a time.
    """

    def __init__(self, parameters: Sequence[Tensor], world: World) -> None:
        self.parameters, self.world = parameters, world
        first = parameters[0].data
        xp, unit = array_module(first), ALIGNMENT // first.dtype.itemsize
        extents = [-(-p.data.size // unit) * unit for p in parameters]
        self.owners = assign_owners(extents, world.size)
        lengths, self.starts = [0] * world.size, [0] * len(parameters)
        for i, owner in enumerate(self.owners):
            self.starts[i] = lengths[owner]
            lengths[owner] += extents[i]
        N = max(lengths)
        self.values = xp.zeros((world.size, N), first.dtype)
        self.width = max(unit, min(N, CHUNK // (ALIGNMENT * world.size) * unit))
        self.chunks = [list(self._pieces(start)) for start in range(0, N, self.width)]
        self.views = [self._view(self.values[owner], i) for i, owner in enumerate(self.owners)]
        for p, view in zip(parameters, self.views, strict=True):
            view[...] = p.data
            p.data = view
        world.broadcast(self.values)

    def _view(self, row: Array, i: int) -> Array:
        """The part of parameter i in the row of its owner, in the shape of the parameter."""
        data = self.parameters[i].data
        return row[self.starts[i] : self.starts[i] + data.size].reshape(data.shape)

    def _pieces(self, start: int) -> Iterator[Piece]:
        """The parts of parameters in the columns `start` to `start + width` - 1."""
        for i, (p, owner, first) in enumerate(zip(self.parameters, self.owners, self.starts, strict=True)):
            low, end = max(first, start), min(first + p.data.size, start + self.width)
            if low < end:
                place = owner, slice(low - start, end - start)
                yield Piece(i, place, slice(low - first, end - first), end == first + p.data.size)

    @cached_property
    def grads(self) -> Array:
        """The summed gradients of the parameters of this rank, (N,), laid out as their row of `values`."""
        return array_module(self.values).zeros(self.values.shape[1], self.values.dtype)

    @cached_property
    def chunk(self) -> Array:
        """The gradients of one chunk, (ranks · width,)."""
        return array_module(self.values).zeros(self.world.size * self.width, self.values.dtype)

    def allocated(self) -> list[Array]:
        """The arrays that reduce gradients, once they exist."""
        return [vars(self)[name] for name in ("grads", "chunk") if name in vars(self)]

    def expect_views(self) -> None:
        """Raise RuntimeError if a parameter has another array than the view into `values`."""
        for p, view in zip(self.parameters, self.views, strict=True):
            if p.data is not view:
                raise RuntimeError(
                    f"ShardedOptimizer: a parameter {p.shape} has another array than at the creation of the optimizer, "
                    "as after model.to(...) or within EMA.applied(): create the optimizer after model.to(...)"
                )

    def reduce(self, used: Container[int], divisor: float) -> None:
        """`grad` of the parameters of this rank: the sum of the gradients over the ranks / divisor; None of others.

        used: the ids of the parameters that have a gradient on any rank.
        """
        ranks, N = self.values.shape
        for start, pieces in zip(range(0, N, self.width), self.chunks, strict=True):
            end = min(start + self.width, N)
            flat = self.chunk[: ranks * (end - start)]
            flat[...] = 0
            columns, pairs = flat.reshape(ranks, end - start), []
            for piece in pieces:
                p = self.parameters[piece.parameter]
                if p.grad is not None:
                    pairs.append((columns[piece.place], p.grad.data.reshape(-1)[piece.elements]))
                if piece.last:
                    p.grad = None  # frees the gradient, once `pairs` is gone
            fast_paths.call(copy_all, pairs, divisor)
            self.grads[start:end] = self.world.reduce_scatter(flat)
        for i, (p, owner) in enumerate(zip(self.parameters, self.owners, strict=True)):
            if id(p) in used and owner == self.world.rank:
                p.grad = Tensor(self._view(self.grads, i))

    def drop_gradients(self) -> None:
        """Set the gradients of other owners to None."""
        for i, p in enumerate(self.parameters):
            if self.owners[i] != self.world.rank:
                p.grad = None

    def gather(self) -> None:
        """Get the updated parameters from their owners."""
        self.world.all_gather_into(self.values[self.world.rank].copy(), self.values.reshape(-1))
        writes.note([self.values])
