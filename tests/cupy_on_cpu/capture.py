"""Capture of a stream: each operation is recorded, so that a graph can replay the operation on the same memory.

A GPU does not execute the captured operations. So the end of the capture restores the contents of all arrays.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_tape: list[Callable[[], Any]] | None = None
alive: dict[int, Any] = {}  # weak references to all arrays, by id
Observer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
_observer: Observer | None = None


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Within the block, call `observer(function, inputs, options, result)` after each operation."""
    global _observer
    previous, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = previous


def do(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Call a function of NumPy arrays, and record the call during capture."""
    result = function(*inputs, **options)
    if isinstance(result, np.generic):
        result = np.asarray(result)
    if _observer is not None:
        _observer(function, inputs, options, result)
    if _tape is not None:
        into = result if isinstance(result, np.ndarray) and options.get("out") is None else None

        def again() -> None:
            if function in (np.empty, np.empty_like):  # a replay allocates nothing
                return
            value = function(*inputs, **options)
            if into is not None and not np.may_share_memory(into, value):
                into[...] = value

        _tape.append(again)
    return result


def refuse_in_capture(what: str) -> None:
    if _tape is not None:
        raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")  # CuPy's message


def refuse_function_in_capture(name: str) -> None:
    """Raise, as CuPy does, for products, and for a function whose result has a shape that depends on values."""
    if name == "nonzero":
        refuse_in_capture("D2H transfers")
    if name in ("dot", "matmul") and _tape is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")  # CuPy's message


def _memory(x: np.ndarray) -> np.ndarray:
    """The array that owns the memory of x."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


class Graph:
    """The operations recorded between `begin_capture` and `end_capture`."""

    def __init__(self, tape: list[Callable[[], Any]]) -> None:
        self.tape = tape

    def launch(self, stream: Any = None) -> None:
        for again in self.tape:
            again()


class Stream:
    """Operations of all streams run immediately, in the order of calls."""

    ptr = 1 << 40

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def begin_capture(self) -> None:
        global _tape
        arrays = [reference() for reference in list(alive.values())]
        memory = {id(root): root for x in arrays if x is not None for root in [_memory(x._host)]}
        self.before = [(root, root.copy()) for root in memory.values() if root.flags.writeable]
        _tape = []

    def end_capture(self) -> Graph:
        global _tape
        assert _tape is not None
        graph, _tape = Graph(_tape), None
        for root, content in self.before:
            root[...] = content
        del self.before
        return graph

    def is_capturing(self) -> bool:
        return _tape is not None

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None:
        refuse_in_capture("synchronizations")
