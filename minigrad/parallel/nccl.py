"""L1: collective operations on CuPy arrays by NCCL, for the class `World`: one GPU per rank.

Operations are launched on the current stream, like kernels: the host does not wait. They can be captured in a CUDA
graph, if all ranks capture and launch the same ones. `start_all_reduce` uses a stream of its own, which is forked from
the current stream and joined by `wait`, by events: this works during capture, too. NCCL executes the operations of a
communicator in the order of their launches, on all streams.

A rank that fails must not leave the others waiting for ever. A thread asks NCCL for errors every second, and checks
that operations finish in time (MINIGRAD_TIMEOUT, 600 s); operations inside a CUDA graph are checked for errors only.
"""

import ctypes
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from typing import Any, TypeVar

import numpy as np

from minigrad.backend.arrays import Array, cupy_module, require_gpu

Result = TypeVar("Result")
DTYPES = {
    "int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5, "float16": 6, "float32": 7, "float64": 8,
    "bfloat16": 9, "bool": 1,
}  # fmt: skip
"""ncclDataType_t. NCCL has no 16-bit integers."""
OPS = {"sum": 0, "max": 2, "min": 3, "mean": 4}
"""ncclRedOp_t. Whether maxima of NaN are NaN is not specified."""


def choose_gpu(environ: Mapping[str, str], local_rank: int | None, count: int | None = None) -> tuple[str | None, str]:
    """The value of CUDA_VISIBLE_DEVICES for this rank, or None to leave it, and why the rank has no GPU of its own.

    A list with one entry is the launcher's choice for this rank. `count` is the number of GPUs of the machine, or None
    to count the device files.
    """
    text = environ.get("CUDA_VISIBLE_DEVICES")
    listed = [] if text is None else [entry.strip() for entry in text.split(",") if entry.strip()]
    if text is not None and len(listed) < 2:
        return None, ""
    if local_rank is None:
        return None, "the launcher does not say the rank on this machine: set LOCAL_RANK, or CUDA_VISIBLE_DEVICES"
    if text is None:
        count = len(glob("/dev/nvidia[0-9]*")) if count is None else count
        listed = [str(i) for i in range(count or local_rank + 1)]  # without device files, CuPy will say what is there
    if local_rank >= len(listed):
        return None, f"there are {len(listed)} GPUs here: start at most {len(listed)} ranks per machine, one per GPU"
    return listed[local_rank], ""


class NcclWork:
    """Sums that are under way on a stream of their own."""

    def __init__(self, engine: "Nccl", done: Any, finish: Callable[[], None]) -> None:
        self.engine, self.done, self.finish = engine, done, finish

    def wait(self) -> None:
        """Later work on the current stream waits for the sums; the host does not. A second call does nothing."""
        if self.done is not None:
            self.engine.cuda.get_current_stream().wait_event(self.done)
            self.done = None
            self.engine.works.discard(self)
            self.finish()


class Nccl:
    """The engine for CuPy arrays.

    Args:
        rank, size: of this process, and the number of processes.
        send_to_all: returns rank 0's string on all ranks.
        abort: ends all ranks with a message.
        timeout: seconds that an operation may take.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        send_to_all: Callable[[str | None], str],
        abort: Callable[[str], Any],
        timeout: float | None = None,
    ) -> None:
        cupy = cupy_module()
        require_gpu(cupy)
        self.rank, self.size, self.abort_all = rank, size, abort
        self.timeout = float(os.environ.get("MINIGRAD_TIMEOUT", "600")) if timeout is None else timeout
        self.cupy, self.cuda = cupy, cupy.cuda
        self.nccl: Any = importlib.import_module("cupy.cuda.nccl")
        if not self.nccl.available:
            raise RuntimeError("several GPUs need NCCL: pip install nvidia-nccl-cu13 (or nvidia-nccl-cu12 for CUDA 12)")
        if self.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                "the first operation on GPU arrays connects the ranks: call it before CUDA graph capture"
            )
        self.works: set[NcclWork] = set()  # their arrays must not be freed before `wait`
        self.last: tuple[str, float, Any] | None = None  # the latest operation outside capture: name, time, event
        self.captured = False  # whether a CUDA graph has operations of the communicator
        self.side = self.cuda.Stream(non_blocking=True)
        identity = send_to_all(self.nccl.get_unique_id().hex() if rank == 0 else None)
        # The constructor blocks until all ranks have called it: in a thread, so that signals and the timeout count.
        create = self.nccl.NcclCommunicator
        self.comm: Any = self._in_time("connecting the ranks", lambda: create(size, bytes.fromhex(identity), rank))
        first = cupy.zeros(1, np.float32)
        self._in_time("the first all_reduce", lambda: self.all_reduce([first], "sum"))
        self._finish("the first all_reduce")
        self.closed = threading.Event()
        threading.Thread(target=self._watch, name="minigrad-nccl", daemon=True).start()

    def all_reduce(self, arrays: Sequence[Array], op: str) -> None:
        """In place: the sum, mean, maximum or minimum over the ranks."""
        buffers = self._launch_all_reduce(arrays, op, self.cuda.get_current_stream())
        _copy_back(arrays, buffers)

    def start_all_reduce(self, arrays: Sequence[Array]) -> NcclWork:
        """Start to sum over the ranks, in place."""
        ready, done = self.cuda.Event(disable_timing=True), self.cuda.Event(disable_timing=True)
        contiguous = [self._contiguous(x) for x in arrays]  # copies are made on the current stream
        ready.record(self.cuda.get_current_stream())
        self.side.wait_event(ready)
        self._launch_all_reduce(contiguous, "sum", self.side)
        done.record(self.side)
        work = NcclWork(self, done, lambda: _copy_back(arrays, contiguous))
        self.works.add(work)
        return work

    def _launch_all_reduce(self, arrays: Sequence[Array], op: str, stream: Any) -> list[Array]:
        buffers = [self._contiguous(x) for x in arrays]
        kinds = [(self._dtype(x, "all_reduce"), OPS["max" if x.dtype == bool and op == "sum" else op]) for x in arrays]
        with self._group("all_reduce", stream):
            for x, (dtype, nccl_op) in zip(buffers, kinds, strict=True):
                if x.size:
                    self.comm.allReduce(x.data.ptr, x.data.ptr, x.size, dtype, nccl_op, stream.ptr)
        return buffers

    def broadcast(self, arrays: Sequence[Array], root: int) -> None:
        """In place: the arrays of rank `root`."""
        buffers = [self._contiguous(x) for x in arrays]
        stream = self.cuda.get_current_stream()
        with self._group("broadcast", stream):
            for x in buffers:
                if x.size:
                    self.comm.broadcast(x.data.ptr, x.data.ptr, x.nbytes, DTYPES["uint8"], root, stream.ptr)
        _copy_back(arrays, buffers)

    def all_gather(self, x: Array) -> list[Array]:
        """The arrays of all ranks."""
        out = self.cupy.empty((self.size, *x.shape), x.dtype)
        self._all_gather("all_gather", x, out)
        return [out[rank] for rank in range(self.size)]

    def all_gather_into(self, x: Array, out: Array) -> None:
        """x (n,) of each rank -> out (size * n,)."""
        buffer = self._contiguous(out)
        self._all_gather("all_gather_into", x, buffer)
        _copy_back([out], [buffer])

    def _all_gather(self, operation: str, x: Array, out: Array) -> None:
        x, stream = self._contiguous(x), self.cuda.get_current_stream()
        if x.size:
            with self._group(operation, stream):
                self.comm.allGather(x.data.ptr, out.data.ptr, x.nbytes, DTYPES["uint8"], stream.ptr)

    def reduce_scatter(self, x: Array) -> Array:
        """x (size * n,) -> the sum of block `rank`, (n,)."""
        x, stream = self._contiguous(x), self.cuda.get_current_stream()
        out = self.cupy.empty(len(x) // self.size, x.dtype)
        dtype, op = self._dtype(x, "reduce_scatter"), OPS["max" if x.dtype == bool else "sum"]
        if x.size:
            with self._group("reduce_scatter", stream):
                self.comm.reduceScatter(x.data.ptr, out.data.ptr, out.size, dtype, op, stream.ptr)
        return out

    def barrier(self) -> None:
        """Wait until all ranks have called `barrier`, and their GPUs have finished the work on the current stream."""
        self.all_reduce([self.cupy.zeros(1, np.float32)], "sum")
        self._finish("barrier")

    def to_host(self, x: Array) -> np.ndarray:
        """Wait for the operation that makes x, and copy x to the host."""
        self._finish("a collective operation")
        return np.asarray(x.get())

    def abort(self, code: int) -> None:
        """Stop operations that are under way on the GPU; the launcher ends the ranks."""
        self.closed.set()
        # ncclCommAbort waits for kernels that may wait for a peer: bounded.
        thread = threading.Thread(target=self.comm.abort, daemon=True)
        thread.start()
        thread.join(5)

    def close(self) -> None:
        """Finish all work, and release NCCL's memory, unless a CUDA graph has operations of NCCL: ncclCommDestroy would
        wait until all these graphs are destroyed. Then the end of the process releases the memory."""
        if not self.closed.is_set():
            if self.captured:
                self.barrier()
            self._finish("close")
            self.closed.set()
            if not self.captured:
                self._in_time("close", self.comm.destroy)

    def _contiguous(self, x: Array) -> Array:
        return x if x.flags.c_contiguous else self.cupy.ascontiguousarray(x)

    def _dtype(self, x: Array, operation: str) -> int:
        if x.dtype.name not in DTYPES:
            raise TypeError(f"{operation} on a GPU: NCCL has no {x.dtype}: cast to int32 or float32")
        return DTYPES[x.dtype.name]

    @contextmanager
    def _group(self, operation: str, stream: Any) -> Iterator[None]:
        """Launch the operations within the block together. A failure names rank and operation."""
        try:
            self.nccl.groupStart()
            try:
                yield
            except BaseException:
                with suppress(Exception):  # a consequence of the first exception
                    self.nccl.groupEnd()
                raise
            self.nccl.groupEnd()
        except self.nccl.NcclError as error:
            raise RuntimeError(f"rank {self.rank} of {self.size}: {operation}: {error}{_hint(error)}") from error
        if self.cuda.get_current_stream().is_capturing():
            if not self.captured:  # from now on, nothing may call ncclCommDestroy: see `close`
                self.captured = True
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.comm))  # the destructor in CuPy calls ncclCommDestroy
        else:
            event = self.cuda.Event(disable_timing=True)
            event.record(stream)
            self.last = operation, time.monotonic(), event

    def _finish(self, operation: str) -> None:
        """Wait for the work on the current stream; signal handlers run, and errors of other ranks end the wait."""
        event = self.cuda.Event(disable_timing=True)
        event.record(self.cuda.get_current_stream())
        start = checked = time.monotonic()
        while not event.done:
            now = time.monotonic()
            if now - start > 0.01:
                time.sleep(1e-4)
            if now - checked > 1:
                checked = now
                self._check(operation, now - start)

    def _check(self, operation: str, seconds: float) -> None:
        try:
            self.comm.check_async_error()
        except self.nccl.NcclError as error:
            self.abort_all(f"{operation}: {error}{_hint(error)}")
        if seconds > self.timeout:
            self.abort_all(f"{operation} has not finished after {self.timeout:g} s: a rank has not called it, or hangs")

    def _watch(self) -> None:
        """The thread that ends this rank when NCCL reports an error, or an operation takes too long."""
        while not self.closed.wait(1):
            last = self.last
            operation, started = last[:2] if last is not None else ("NCCL", time.monotonic())
            if last is not None and last[2].done:
                self.last, started = (None if self.last is last else self.last), time.monotonic()
            self._check(operation, time.monotonic() - started)

    def _in_time(self, operation: str, function: Callable[[], Result]) -> Result:
        """Call a function that may block in a thread of its own, within the timeout."""
        results: list[Result] = []
        errors: list[BaseException] = []
        stream = self.cuda.get_current_stream()

        def call() -> None:
            try:
                with stream:
                    results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        end = time.monotonic() + self.timeout
        while thread.is_alive():
            thread.join(0.05)
            if time.monotonic() > end:
                self.abort_all(f"{operation} has not finished after {self.timeout:g} s: not all ranks have come")
        if errors:
            error = errors[0]
            raise RuntimeError(f"rank {self.rank} of {self.size}: {operation}: {error}{_hint(error)}") from error
        return results[0]


class ThroughGpu:
    """The engine for NumPy arrays and objects without MPI: arrays are copied to the GPU and back.

    Args:
        get: returns the engine for CuPy arrays.
    """

    def __init__(self, get: Callable[[], Any]) -> None:
        self.get = get

    def all_reduce(self, arrays: Sequence[np.ndarray], op: str) -> None:
        """In place: the sum, mean, maximum or minimum over the ranks."""
        self._in_place(arrays, lambda engine, xs: engine.all_reduce(xs, op))

    def start_all_reduce(self, arrays: Sequence[np.ndarray]) -> NcclWork:
        """Start to sum over the ranks, in place."""
        engine = self.get()
        xs = [engine.cupy.asarray(x) for x in arrays]
        work: NcclWork = engine.start_all_reduce(xs)
        finish = work.finish

        def copy() -> None:
            finish()
            self._to_host(engine, arrays, xs)

        work.finish = copy
        return work

    def broadcast(self, arrays: Sequence[np.ndarray], root: int) -> None:
        """In place: the arrays of rank `root`."""
        self._in_place(arrays, lambda engine, xs: engine.broadcast(xs, root))

    def all_gather(self, x: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks."""
        engine = self.get()
        return [engine.to_host(y) for y in engine.all_gather(engine.cupy.asarray(x))]

    def reduce_scatter(self, x: np.ndarray) -> np.ndarray:
        """x (size * n,) -> the sum of block `rank`, (n,)."""
        engine = self.get()
        return np.asarray(engine.to_host(engine.reduce_scatter(engine.cupy.asarray(x))))

    def all_gather_into(self, x: np.ndarray, out: np.ndarray) -> None:
        """x (n,) of each rank -> out (size * n,)."""
        out[...] = np.concatenate(self.all_gather(x))

    def barrier(self) -> None:
        """Wait until all ranks have called `barrier`."""
        self.get().barrier()

    def abort(self, code: int) -> None:
        """Nothing: the engine for CuPy arrays does it."""

    def close(self) -> None:
        """Nothing: the engine for CuPy arrays does it."""

    def _in_place(self, arrays: Sequence[np.ndarray], function: Callable[[Any, list[Array]], None]) -> None:
        engine = self.get()
        xs = [engine.cupy.asarray(x) for x in arrays]
        function(engine, xs)
        self._to_host(engine, arrays, xs)

    def _to_host(self, engine: Any, arrays: Sequence[np.ndarray], xs: list[Array]) -> None:
        for x, y in zip(arrays, xs, strict=True):
            x[...] = engine.to_host(y)


def _copy_back(arrays: Sequence[Array], buffers: Sequence[Array]) -> None:
    for x, buffer in zip(arrays, buffers, strict=True):
        if buffer is not x:
            x[...] = buffer


def _hint(error: BaseException) -> str:
    if "INVALID_USAGE" in str(error):
        return ": two ranks may use the same GPU, or ranks passed different arguments (see NCCL_DEBUG=WARN)"
    if "REMOTE" in str(error) or "SYSTEM" in str(error):
        return ": another rank has ended, or the network fails (see NCCL_DEBUG=WARN)"
    return ""


def require_one_gpu(problem: str, chosen: bool, local_rank: int) -> None:
    """Raise RuntimeError if this rank has no GPU of its own.

    Args:
        problem: the reason that `choose_gpu` gave, or "".
        chosen: CUDA_VISIBLE_DEVICES was set by `choose_gpu`, so CuPy must see one GPU.
        local_rank: of this process.
    """
    if not problem and chosen:
        seen = cupy_module().cuda.runtime.getDeviceCount()
        if seen > 1:
            problem = f"CuPy sees {seen} GPUs: call minigrad.parallel.world() before CuPy is imported"
    if problem:
        raise RuntimeError(f"no GPU for local rank {local_rank}: {problem}")
