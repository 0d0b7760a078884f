"""NCCL, streams and events without a GPU: ranks are threads; the calls of each thread are logged in order."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np

from tests.cupy_on_cpu import in_place_of_cupy
from tests.cupy_on_cpu.capture import Stream, do

DTYPES = [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32, np.float64,
          ml_dtypes.bfloat16]  # fmt: skip
OPS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    0: lambda x: x.sum(0, x.dtype), 2: lambda x: x.max(0), 3: lambda x: x.min(0), 4: lambda x: x.mean(0, x.dtype),
}  # fmt: skip


class Local(threading.local):
    """The state of a rank."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.group: list[Callable[[], None]] | None = None
        self.streams: list[FakeStream] = []


class NcclError(RuntimeError):
    pass


def memory(ptr: int, size: int, dtype: int) -> np.ndarray:
    item = np.dtype(DTYPES[dtype]).itemsize
    return np.frombuffer((ctypes.c_char * (size * item)).from_address(ptr), DTYPES[dtype])


class FakeStream(Stream):
    """A stream with a number; operations run immediately."""

    numbers = count(1)
    local: Local

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = next(self.numbers) if non_blocking else 0

    def __enter__(self) -> "FakeStream":
        self.local.streams.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.local.streams.pop()

    def wait_event(self, event: "FakeEvent") -> None:
        self.local.log.append(("wait", self.ptr, event.number))


class FakeEvent:
    numbers = count(1)
    local: Local
    done = True

    def __init__(self, disable_timing: bool = False) -> None:
        assert disable_timing
        self.number = next(self.numbers)

    def record(self, stream: FakeStream) -> None:
        self.local.log.append(("record", stream.ptr, self.number))


class FakeNccl:
    """The module cupy.cuda.nccl for `size` threads. With `alone`, one thread: the other ranks have the same arrays."""

    available, NcclError = True, NcclError

    def __init__(self, size: int, local: Local, alone: bool) -> None:
        self.size, self.local, self.alone = size, local, alone
        self.barrier, self.calls = threading.Barrier(size, timeout=20), [()] * size
        self.error: str | None = None  # raised by the next call
        self.async_error: str | None = None
        self.aborted, self.destroyed = [], []
        outer = self

        class NcclCommunicator(_Communicator):
            nccl = outer

        self.NcclCommunicator = NcclCommunicator

    def get_unique_id(self) -> bytes:
        return bytes(range(128))

    def groupStart(self) -> None:
        assert self.local.group is None
        self.local.group = []
        self.local.log.append(("groupStart",))

    def groupEnd(self) -> None:
        group, self.local.group = self.local.group, None
        assert group is not None
        self.local.log.append(("groupEnd",))
        for operation in group:
            operation()

    def gather(self, rank: int, call: tuple[Any, ...], x: np.ndarray) -> np.ndarray:
        """The arrays of all ranks; all ranks must make the same call."""
        if self.alone:
            return np.stack([x] * self.size)
        self.calls[rank] = (call, x.copy())
        self.barrier.wait()
        calls = list(self.calls)
        self.barrier.wait()
        assert all(other == call for other, _ in calls), calls
        return np.stack([x for _, x in calls])


class _Communicator:
    nccl: FakeNccl

    def __init__(self, size: int, identity: bytes, rank: int) -> None:
        assert (size, identity) == (self.nccl.size, bytes(range(128)))
        self.rank, self.size = rank, size

    def _call(self, name: str, stream: int, send: np.ndarray, receive: np.ndarray, *options: Any, result: Any) -> None:
        if self.nccl.error is not None:
            error, self.nccl.error = self.nccl.error, None
            raise NcclError(error)
        assert self.nccl.local.group is not None
        self.nccl.local.log.append((name, send.ctypes.data, receive.ctypes.data, len(send), *options, stream))

        def operation(send: np.ndarray) -> np.ndarray:
            value = result(self.nccl.gather(self.rank, (name, len(send), *options), send))
            receive[...] = value
            return receive

        self.nccl.local.group.append(lambda: do(operation, send))

    def allReduce(self, send: int, receive: int, size: int, dtype: int, op: int, stream: int) -> None:
        x, y = memory(send, size, dtype), memory(receive, size, dtype)
        self._call("allReduce", stream, x, y, dtype, op, result=OPS[op])

    def broadcast(self, send: int, receive: int, size: int, dtype: int, root: int, stream: int) -> None:
        x, y = memory(send, size, dtype), memory(receive, size, dtype)
        self._call("broadcast", stream, x, y, dtype, root, result=lambda every: every[root])

    def allGather(self, send: int, receive: int, size: int, dtype: int, stream: int) -> None:
        x, y = memory(send, size, dtype), memory(receive, self.size * size, dtype)
        self._call("allGather", stream, x, y, dtype, result=lambda every: every.reshape(-1))

    def reduceScatter(self, send: int, receive: int, size: int, dtype: int, op: int, stream: int) -> None:
        x, y = memory(send, self.size * size, dtype), memory(receive, size, dtype)
        block = slice(self.rank * size, (self.rank + 1) * size)
        self._call("reduceScatter", stream, x, y, dtype, op, result=lambda every: OPS[op](every)[block])

    def check_async_error(self) -> None:
        if self.nccl.async_error is not None:
            raise NcclError(self.nccl.async_error)

    def abort(self) -> None:
        self.nccl.aborted.append(self.rank)

    def destroy(self) -> None:
        self.nccl.destroyed.append(self.rank)


@contextmanager
def in_place_of_nccl(size: int, alone: bool = False) -> Iterator[FakeNccl]:
    """Within the block, NumPy arrays replace CuPy's, and threads can be ranks of NCCL."""
    local = Local()
    nccl = FakeNccl(size, local, alone)
    with in_place_of_cupy():
        cuda: Any = sys.modules["cupy"].cuda
        cuda.Stream, cuda.Event = type("S", (FakeStream,), {"local": local}), type("E", (FakeEvent,), {"local": local})
        null = cuda.Stream(null=True)
        cuda.get_current_stream = lambda: local.streams[-1] if local.streams else null
        cuda.runtime = SimpleNamespace(getDeviceCount=lambda: 1)
        module: Any = nccl
        assert isinstance(sys.modules["cupy"], ModuleType)
        with patch.dict(sys.modules, {"cupy.cuda.nccl": module}):
            yield nccl
