"""L4: collective operations on Tensors over the ranks of a job, under the names of torch.distributed.

    mpiexec -n 4 python train.py

    from minigrad import distributed as dist
    dist.init_process_group()
    dist.all_reduce(x)              # x is the sum over the ranks, on all ranks

Operations write into their Tensors, are not recorded, and must be called by all ranks in the same order. They run by
MPI for Tensors on the CPU and by NCCL on a GPU (`minigrad/parallel/processes.py`). A process that was started alone is
rank 0 of 1. All ranks are one group: `group` must be None.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from minigrad import absent
from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.backend import Array, array_module
from minigrad.functional import cat
from minigrad.parallel.processes import World, world

__all__ = [
    "ReduceOp", "Work", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier",
    "broadcast", "broadcast_object_list", "destroy_process_group", "gather", "get_backend", "get_node_local_rank",
    "get_rank", "get_world_size", "init_process_group", "is_available", "is_gloo_available", "is_initialized",
    "is_mpi_available", "is_nccl_available", "reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter",
]  # fmt: skip

_BACKENDS = "mpi", "nccl", "gloo"
_world: World | None = None


class ReduceOp(Enum):
    """The operation of a reduction over the ranks."""

    SUM = "sum"
    AVG = "mean"
    MAX = "max"
    MIN = "min"


class Work:
    """An operation with async_op=True. Its Tensors must be neither read nor written before `wait` returns."""

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait

    def wait(self, timeout: Any = None) -> bool:
        """Wait until the Tensors have the result."""
        self._wait()
        self._wait = lambda: None
        return True


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: Any = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: Any = None,
) -> None:
    """Join the ranks that the launcher (mpiexec, srun, torchrun) started.

    Args:
        backend: without effect: the device of a Tensor decides.
        init_method: None or "env://": the launcher's environment variables say which rank this is.
        world_size, rank: -1, or the launcher's numbers.
        timeout, group_name, pg_options, device_id: without effect.
    """
    global _world
    if _world is not None:
        raise ValueError("trying to initialize the default process group twice!")
    kinds = [part.split(":")[-1] for part in (backend or "mpi").lower().split(",")]  # "cpu:gloo,cuda:nccl"
    if not set(kinds) <= set(_BACKENDS):
        raise ValueError(f"init_process_group: backend must be None or one of {', '.join(_BACKENDS)}, got {backend!r}")
    if store is not None or init_method not in (None, "env://"):
        raise ValueError(
            "init_process_group: the ranks find each other by their launcher, as in mpiexec -n 4 python train.py: pass "
            f'init_method=None or "env://" and no store, got {init_method!r}'
        )
    found = world()
    if world_size not in (-1, found.size) or rank not in (-1, found.rank):
        raise ValueError(
            f"init_process_group: the launcher started rank {found.rank} of {found.size}, got rank={rank}, "
            f"world_size={world_size}"
        )
    _world = found


def destroy_process_group(group: None = None) -> None:
    """Leave the group: `init_process_group` may be called again. The connections close when the process ends."""
    global _world
    _get(group)
    _world = None


def is_available() -> bool:
    """True."""
    return True


def is_initialized() -> bool:
    """True between `init_process_group` and `destroy_process_group`."""
    return _world is not None


def get_backend(group: None = None) -> str:
    """ "mpi": arrays on a GPU are sent by NCCL nevertheless."""
    _get(group)
    return "mpi"


def is_mpi_available() -> bool:
    """True if mpi4py is installed."""
    return find_spec("mpi4py") is not None


def is_nccl_available() -> bool:
    """True if CuPy is installed with NCCL."""
    try:
        return bool(import_module("cupy.cuda.nccl").available)
    except ImportError:
        return False


def is_gloo_available() -> bool:
    """False: MPI takes its place, also for init_process_group("gloo")."""
    return False


def get_rank(group: None = None) -> int:
    """The number of this process, from 0 to get_world_size() - 1."""
    return _get(group).rank


def get_world_size(group: None = None) -> int:
    """The number of processes."""
    return _get(group).size


def get_node_local_rank(fallback_rank: int | None = None) -> int:
    """The number of this process among those of this machine."""
    return _get(None).local_rank


def barrier(group: None = None, async_op: bool = False, device_ids: Any = None) -> Work | None:
    """Wait until all ranks have called `barrier`."""
    _get(group).barrier()
    return _done(async_op)


def all_reduce(tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: None = None, async_op: bool = False) -> Work | None:
    """Replace `tensor` by its sum, mean, maximum or minimum over the ranks. async_op: `wait` of the result waits."""
    ranks, x = _get(group), tensor.data
    writes.note([x])
    if async_op and op is ReduceOp.SUM:
        return Work(ranks.start_all_reduce(x).wait)
    ranks.all_reduce(x, op=ReduceOp(op).value)
    return _done(async_op)


def reduce(
    tensor: Tensor, dst: int = 0, op: ReduceOp = ReduceOp.SUM, group: None = None, async_op: bool = False
) -> Work | None:
    """`all_reduce`, with the result on rank `dst` only."""
    result = Tensor(tensor.data.copy())
    all_reduce(result, op, group)
    _require_rank("reduce: dst", dst, _get(group))
    if get_rank() == dst:
        _write(tensor, result.data)
    return _done(async_op)


def broadcast(tensor: Tensor, src: int = 0, group: None = None, async_op: bool = False) -> Work | None:
    """Replace `tensor` by that of rank `src`."""
    _get(group).broadcast(tensor.data, root=src)
    writes.note([tensor.data])
    return _done(async_op)


def all_gather(
    tensor_list: Sequence[Tensor], tensor: Tensor, group: None = None, async_op: bool = False
) -> Work | None:
    """Write the `tensor` of each rank into `tensor_list`, on all ranks. The shapes must be equal."""
    ranks = _get(group)
    _require_length("all_gather: tensor_list", tensor_list, ranks)
    for target, x in zip(tensor_list, ranks.all_gather(tensor.data), strict=True):
        _write(target, x)
    return _done(async_op)


def gather(
    tensor: Tensor, gather_list: Sequence[Tensor] | None = None, dst: int = 0, group: None = None,
    async_op: bool = False,
) -> Work | None:  # fmt: skip
    """`all_gather`, with the result on rank `dst` only: other ranks pass gather_list=None."""
    ranks = _get(group)
    _require_rank("gather: dst", dst, ranks)
    found = ranks.all_gather(tensor.data)
    if ranks.rank == dst:
        _require_length("gather: gather_list", gather_list or (), ranks)
        for target, x in zip(gather_list or (), found, strict=True):
            _write(target, x)
    return _done(async_op)


def scatter(
    tensor: Tensor, scatter_list: Sequence[Tensor] | None = None, src: int = 0, group: None = None,
    async_op: bool = False,
) -> Work | None:  # fmt: skip
    """Write item r of the `scatter_list` of rank `src` into the `tensor` of rank r. Other ranks pass None."""
    ranks, xp = _get(group), array_module(tensor.data)
    _require_rank("scatter: src", src, ranks)
    if ranks.rank == src:
        _require_length("scatter: scatter_list", scatter_list or (), ranks)
        sent = xp.stack([x.data for x in scatter_list or ()])
    else:
        sent = xp.empty((ranks.size, *tensor.shape), tensor.dtype)
    ranks.broadcast(sent, root=src)
    _write(tensor, sent[ranks.rank])
    return _done(async_op)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: None = None, async_op: bool = False
) -> Work | None:
    """Write the inputs of all ranks one after another into the output, whose first axis is world_size times longer, or
    which has one axis more, of length world_size."""
    ranks, x, out = _get(group), input_tensor.data, output_tensor.data
    result = array_module(x).empty((ranks.size * x.size,), x.dtype)
    _require_size("all_gather_into_tensor: output_tensor", out, ranks.size * x.size, x)
    ranks.all_gather_into(x.reshape(-1), result)
    _write(output_tensor, result.reshape(out.shape))
    return _done(async_op)


def reduce_scatter_tensor(
    output: Tensor, input: Tensor, op: ReduceOp = ReduceOp.SUM, group: None = None, async_op: bool = False
) -> Work | None:
    """Write block r of the sum, or mean, of the inputs into the output of rank r. The input has a block for each rank,
    one after another."""
    ranks, x, out = _get(group), input.data, output.data
    if op not in (ReduceOp.SUM, ReduceOp.AVG):
        raise ValueError(f"reduce_scatter_tensor: op must be ReduceOp.SUM or ReduceOp.AVG, got {op}")
    _require_size("reduce_scatter_tensor: input", x, ranks.size * out.size, out)
    total = ranks.reduce_scatter(x.reshape(-1)).reshape(out.shape)
    _write(output, total / x.dtype.type(ranks.size) if op is ReduceOp.AVG else total)
    return _done(async_op)


def reduce_scatter(
    output: Tensor, input_list: Sequence[Tensor], op: ReduceOp = ReduceOp.SUM, group: None = None,
    async_op: bool = False,
) -> Work | None:  # fmt: skip
    """Write the sum, or mean, over the ranks of item r of `input_list` into the output of rank r."""
    _require_length("reduce_scatter: input_list", input_list, _get(group))
    return reduce_scatter_tensor(output, cat([x.reshape(-1) for x in input_list]).detach(), op, group, async_op)


def all_gather_object(object_list: list[Any], obj: Any, group: None = None) -> None:
    """Write the objects of all ranks into `object_list`. Only JSON values: None, bool, numbers, strings, lists, dicts
    with strings as keys. PyTorch pickles objects; unpickling would run code of other ranks."""
    ranks = _get(group)
    _require_length("all_gather_object: object_list", object_list, ranks)
    object_list[:] = ranks.all_gather_objects(obj)


def broadcast_object_list(object_list: list[Any], src: int = 0, group: None = None, device: Any = None) -> None:
    """Replace the items by those of rank `src`: JSON values, as in `all_gather_object`."""
    found = _get(group).broadcast_object(list(object_list), root=src)
    if len(found) != len(object_list):
        raise ValueError(
            f"broadcast_object_list: length of the list: {len(found)} on rank {src}, here {len(object_list)}"
        )
    object_list[:] = found


def _get(group: None) -> World:
    if group is not None:
        raise ValueError(f"group must be None: all ranks are one group, got {group!r}")
    if _world is None:
        raise ValueError("Default process group has not been initialized, please make sure to call init_process_group.")
    return _world


def _done(async_op: bool) -> Work | None:
    return Work() if async_op else None


def _write(tensor: Tensor, x: Array) -> None:
    if tensor.shape != x.shape or tensor.dtype != x.dtype:
        raise ValueError(f"the result is {x.shape} {x.dtype}, and the Tensor for it {tensor.shape} {tensor.dtype}")
    tensor.data[...] = x
    writes.note([tensor.data])


def _require_rank(name: str, rank: int, ranks: World) -> None:
    if not 0 <= rank < ranks.size:
        raise ValueError(f"{name} must be a rank from 0 to {ranks.size - 1}, got {rank}")


def _require_length(name: str, values: Sequence[Any], ranks: World) -> None:
    if len(values) != ranks.size:
        raise ValueError(f"{name} must have one item for each rank, {ranks.size}, got {len(values)}")


def _require_size(name: str, x: Array, size: int, like: Array) -> None:
    if x.size != size or x.dtype != like.dtype:
        raise ValueError(f"{name} must have {size} elements of {like.dtype}, got {x.shape} {x.dtype}")


__getattr__ = absent.module_getattr(__name__)
