"""L1: collective operations on NumPy arrays by MPI (mpi4py), for the class `World`.

Every operation is nonblocking in MPI and is waited for by polling, so that Python's signal handlers run while a rank
waits. Between two polls the rank yields its core (`sched_yield`), as ranks may outnumber cores. After 0.2 ms the rank
sleeps between polls: a rank that waits for long, such as for rank 0's checkpoint, leaves the core to others.

MPI has no 16-bit floating-point type and no sum of bool: float16 and bfloat16 are summed in float32 and cast back, and
the sum of bool is "or", as in PyTorch.

Ranks that end are noticed: `close` tells the other ranks how many operations this rank has taken part in. A rank that
waits for a later operation raises RuntimeError. A rank that is killed is the launcher's task: mpiexec ends the others.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from minigrad.backend.dtypes import FLOAT32, cast, is_half

SPIN, SLEEP = 2e-4, 5e-5  # seconds: yield the core between polls for SPIN, then sleep for SLEEP
SMALL = 1 << 16  # bytes: smaller arrays share a buffer
_GOODBYE = 1  # the tag of the message that a rank sends when it closes
_FRONT, _BACK = 0, 1  # the communicators of operations that are waited for at once, and of `start_all_reduce`

_yield_core: Callable[[], Any] = getattr(os, "sched_yield", lambda: time.sleep(0))


class MpiWork:
    """Sums that are under way."""

    def __init__(self, engine: "Mpi", requests: list[Any], number: int, finish: Callable[[], None]) -> None:
        self.engine, self.requests, self.number, self.finish = engine, requests, number, finish

    def wait(self) -> None:
        """Wait for the sums. A second call does nothing."""
        requests, self.requests = self.requests, []
        with self.engine.lock:  # the communication thread no longer tests these requests
            self.engine.pending = [r for r in self.engine.pending if all(r is not own for own in requests)]
        if requests:
            self.engine.wait(requests, "start_all_reduce", _BACK, self.number)
            self.finish()


class Mpi:
    """The engine for NumPy arrays.

    Args:
        mpi: the module `mpi4py.MPI`.
    """

    def __init__(self, mpi: ModuleType) -> None:
        self.mpi: Any = mpi
        self.timeout = float(os.environ.get("MINIGRAD_TIMEOUT", "inf"))
        everyone = self.mpi.COMM_WORLD
        self.rank, self.size = everyone.rank, everyone.size
        self.comms = [everyone.Dup(), everyone.Dup()]
        self.control = everyone.Dup()
        self.started = [0, 0]  # the number of operations on each communicator
        self.ended: dict[int, np.ndarray] = {}  # for ranks that have closed: `started`
        self.abandoned: list[Any] = []  # requests that an exception interrupted: MPI still uses their arrays
        self.lock, self.pending, self.closed = threading.Lock(), list[Any](), False
        self.wake = threading.Event()
        # The MPI library may not support several threads. Then sums progress during other operations and in `wait`.
        self.thread: threading.Thread | None = None
        self.threaded = self.mpi.Query_thread() == self.mpi.THREAD_MULTIPLE

    def of_machine(self) -> tuple[int, int]:
        """The rank among the processes of this machine, and their number."""
        local = self.mpi.COMM_WORLD.Split_type(self.mpi.COMM_TYPE_SHARED)
        rank, size = int(local.rank), int(local.size)
        local.Free()
        return rank, size

    def all_reduce(self, arrays: Sequence[np.ndarray], op: str) -> None:
        """In place: the sum, mean, maximum or minimum over the ranks."""
        if op in ("sum", "mean"):
            requests, finish = self._start(arrays, op, _FRONT)
            self.wait(requests, "all_reduce", _FRONT)
            finish()
            return
        # MPI's maximum of x and NaN depends on their order, which differs between ranks. NumPy's is NaN.
        function = np.maximum if op == "max" else np.minimum
        for buffer, owners in _buffers(arrays):
            function.reduce(self._gather(buffer, "all_reduce"), axis=0, out=buffer)
            _copy_back(buffer, owners)

    def start_all_reduce(self, arrays: Sequence[np.ndarray]) -> MpiWork:
        """Start to sum over the ranks, in place."""
        requests, finish = self._start(arrays, "sum", _BACK)
        if self.threaded:
            if self.thread is None:
                self.thread = threading.Thread(target=self._progress, name="minigrad-mpi", daemon=True)
                self.thread.start()
            with self.lock:
                self.pending += requests
            self.wake.set()
        return MpiWork(self, requests, self.started[_BACK], finish)

    def _start(self, arrays: Sequence[np.ndarray], op: str, comm: int) -> tuple[list[Any], Callable[[], None]]:
        buffers = _buffers(arrays)
        requests = []
        for buffer, owners in buffers:
            # bool has type uint8 here; a buffer is for arrays of one dtype
            mpi_op = self.mpi.MAX if owners and owners[0].dtype == bool else self.mpi.SUM
            requests.append(self.comms[comm].Iallreduce(self.mpi.IN_PLACE, buffer, mpi_op))
        self.started[comm] += 1

        def finish() -> None:
            for buffer, owners in buffers:
                if op == "mean":
                    np.divide(buffer, self.size, out=buffer)
                _copy_back(buffer, owners)

        return requests, finish

    def broadcast(self, arrays: Sequence[np.ndarray], root: int) -> None:
        """In place: the arrays of rank `root`."""
        buffers = [np.ascontiguousarray(x) for x in arrays]
        requests = [self.comms[_FRONT].Ibcast(self._bytes(buffer), root) for buffer in buffers]
        self.started[_FRONT] += 1
        self.wait(requests, "broadcast", _FRONT)
        for x, buffer in zip(arrays, buffers, strict=True):
            if buffer is not x and self.rank != root:
                x[...] = buffer.reshape(x.shape)

    def all_gather(self, x: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks."""
        out = self._gather(x, "all_gather")
        return [out[rank, ...] for rank in range(self.size)]  # arrays: out[rank] may be a scalar

    def _gather(self, x: np.ndarray, operation: str) -> np.ndarray:
        out = np.empty((self.size, *x.shape), x.dtype)
        self.all_gather_into(x, out, operation)
        return out

    def all_gather_into(self, x: np.ndarray, out: np.ndarray, operation: str = "all_gather_into") -> None:
        """x (n,) of each rank -> out (size * n,)."""
        buffer = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        sent = self._bytes(np.ascontiguousarray(x))
        request = self.comms[_FRONT].Iallgather(sent, self._bytes(buffer))
        self.started[_FRONT] += 1
        self.wait([request], operation, _FRONT)
        if buffer is not out:
            out[...] = buffer

    def reduce_scatter(self, x: np.ndarray) -> np.ndarray:
        """x (size * n,) -> the sum of block `rank`, (n,)."""
        [(buffer, _)] = _buffers([x])
        out = np.empty(len(x) // self.size, buffer.dtype)
        mpi_op = self.mpi.MAX if x.dtype == bool else self.mpi.SUM
        request = self.comms[_FRONT].Ireduce_scatter_block(buffer, out, mpi_op)
        self.started[_FRONT] += 1
        self.wait([request], "reduce_scatter", _FRONT)
        return cast(out, x.dtype)

    def barrier(self) -> None:
        """Wait until all ranks have called `barrier`."""
        request = self.comms[_FRONT].Ibarrier()
        self.started[_FRONT] += 1
        self.wait([request], "barrier", _FRONT)

    def abort(self, code: int) -> None:
        """End all ranks."""
        self.mpi.COMM_WORLD.Abort(code)

    def close(self) -> None:
        """Tell the other ranks that this rank ends, and wait until they end, too: MPI needs all ranks for its end."""
        if self.closed:
            return
        self.closed = True
        self.wake.set()
        if self.thread is not None:
            self.thread.join()
        message = np.array(self.started, np.int64)
        others = [rank for rank in range(self.size) if rank != self.rank]
        self.wait([self.control.Isend(message, rank, _GOODBYE) for rank in others], "close")
        while len(self.ended) < len(others):
            self._hear()
            time.sleep(SLEEP)
        if not self.abandoned:
            for comm in (*self.comms, self.control):
                comm.Free()

    def wait(self, requests: list[Any], operation: str, comm: int | None = None, number: int | None = None) -> None:
        """Poll until all requests are complete.

        Raises:
            RuntimeError: a rank has ended without taking part in the operation.
        """
        number = self.started[comm] if number is None and comm is not None else number
        start = time.monotonic()
        try:
            for request in requests:
                while not request.Test():
                    if time.monotonic() - start < SPIN:
                        _yield_core()
                        continue
                    time.sleep(SLEEP)
                    if time.monotonic() - start > self.timeout:
                        raise RuntimeError(
                            f"{operation} has not finished within MINIGRAD_TIMEOUT, {self.timeout:g} s: do all ranks "
                            "call the same operations in the same order?"
                        )
                    if comm is not None:
                        self._hear()
                        missing = [rank for rank, started in self.ended.items() if started[comm] < number]
                        if missing:
                            raise RuntimeError(
                                f"{operation} needs all ranks, but rank {missing[0]} has ended: all ranks must call "
                                "the same operations in the same order"
                            )
        except BaseException:
            self.abandoned += requests
            raise

    def _hear(self) -> None:
        """Receive the messages of ranks that have closed."""
        status = self.mpi.Status()
        while self.control.Iprobe(self.mpi.ANY_SOURCE, _GOODBYE, status):
            started = np.empty(2, np.int64)
            self.control.Recv(started, status.source, _GOODBYE)
            self.ended[status.source] = started

    def _progress(self) -> None:
        """The communication thread: MPI makes progress only while a thread is inside MPI."""
        while not self.closed:
            with self.lock:
                self.pending = [request for request in self.pending if not request.Test()]
                waiting = bool(self.pending)
            if waiting:
                time.sleep(SLEEP)
            else:
                self.wake.wait()
                self.wake.clear()

    def _bytes(self, x: np.ndarray) -> list[Any]:
        """The memory of a contiguous array, of any dtype, as MPI's bytes."""
        return [x.reshape(-1).view(np.uint8), self.mpi.BYTE]


def _buffers(arrays: Sequence[np.ndarray]) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Flat buffers in dtypes that MPI can sum, each with the arrays that the result is to be copied to.

    Small arrays of one dtype share a buffer: one message instead of several. The buffers depend on sizes and dtypes
    only, which are the same on all ranks; memory layouts may differ.
    """
    found: list[tuple[np.ndarray, list[np.ndarray]]] = []
    small: dict[np.dtype, list[np.ndarray]] = {}
    for x in arrays:
        if x.nbytes < SMALL:
            small.setdefault(x.dtype, []).append(x)
        else:
            found.append(_buffer([x]))
    return found + [_buffer(xs) for xs in small.values()]


def _buffer(xs: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    x = xs[0]
    dtype = FLOAT32 if is_half(x.dtype) else np.dtype(np.uint8) if x.dtype == bool else x.dtype.newbyteorder("=")
    if len(xs) == 1 and dtype == x.dtype and x.flags.c_contiguous and x.flags.aligned:
        return x.reshape(-1), []
    return np.concatenate([cast(x, dtype).reshape(-1) for x in xs]), xs


def _copy_back(buffer: np.ndarray, owners: list[np.ndarray]) -> None:
    start = 0
    for x in owners:
        x[...] = cast(buffer[start : start + x.size].reshape(x.shape), x.dtype)
        start += x.size
