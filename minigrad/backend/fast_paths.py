"""L0: fast paths: the registry of faster implementations, and the choice of one for given arguments.

A reference implementation, an op in `minigrad/ops/` or a function such as `cast`, is written to be read. Some
reference implementations have fast paths in `minigrad/kernels/`, which are faster on one kind of hardware and for some
arguments. A fast path, for the CPU or a GPU, is registered with a condition `supports` on the arguments,

    @fast_path_of(LayerNorm)
    class CPULayerNorm(LayerNorm):
        @staticmethod
        def supports(x, weight, bias, *, shape, eps): return x.dtype == np.float32 and ...

    @fast_path_of(cast, supports=lambda x, dtype: on_gpu(x))
    def convert(x, dtype): ...

and is found by `fast_path(LayerNorm, x, weight, bias, shape=shape, eps=eps)`; `call(function, ...)` calls a fast path
of a function, or the function. A function decorated by `with_fast_paths` is called as by `call`. Tests compare every
fast path with its reference implementation; `python -m tests.benchmarks.fast_paths` measures the speedups.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

Implementation = TypeVar("Implementation", bound=Callable[..., Any])

FAST_PATHS: dict[Any, tuple[Any, ...]] = {}
"""Reference implementation -> its fast paths, in order of registration. Empty within `without_fast_paths`."""

_registered: dict[Any, tuple[Any, ...]] = {}
_blocks_without = 0  # number of open `without_fast_paths` blocks, in all threads
_lock = Lock()


def fast_path_of(
    reference: Any, supports: Callable[..., bool] | None = None
) -> Callable[[Implementation], Implementation]:
    """Register the decorated class or function as a fast path of `reference`.

    Args:
        reference: the reference implementation, an op's class or a function.
        supports: returns True if the fast path supports these arguments; by default the decorated class's `supports`.
    """

    def register(implementation: Implementation) -> Implementation:
        if supports is not None:
            implementation.supports = supports  # type: ignore[attr-defined]
        _registered[reference] = (*_registered.get(reference, ()), implementation)
        if not _blocks_without:
            FAST_PATHS[reference] = _registered[reference]
        return implementation

    return register


def fast_path(reference: Any, *arrays: Any, **options: Any) -> Any:
    """The first fast path of `reference` that supports these arguments, or None."""
    for implementation in FAST_PATHS.get(reference, ()):
        if implementation.supports(*arrays, **options):
            return implementation
    return None


def call(reference: Any, *arrays: Any, **options: Any) -> Any:
    """Call the first fast path of the function `reference` that supports these arguments, or else `reference`."""
    return (fast_path(reference, *arrays, **options) or reference)(*arrays, **options)


def with_fast_paths(reference: Implementation) -> Implementation:
    """Decorate a reference implementation: a call of the function or method runs a fast path, as by `call`."""

    @wraps(reference)
    def dispatch(*arrays: Any, **options: Any) -> Any:
        return (fast_path(dispatch, *arrays, **options) or reference)(*arrays, **options)

    return dispatch  # type: ignore[return-value]


def fast_paths_of(reference: Any) -> tuple[Any, ...]:
    """All registered fast paths of `reference`, also within `without_fast_paths`."""
    return _registered.get(reference, ())


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Within the block, run only reference implementations, in all threads. Also a decorator; blocks may be nested.

    with minigrad.without_fast_paths():
        y = F.layer_norm(x, (64,))     # reaches a breakpoint in minigrad/ops/norm.py
    """
    global _blocks_without
    with _lock:
        _blocks_without += 1
        FAST_PATHS.clear()
    try:
        yield
    finally:
        with _lock:
            _blocks_without -= 1
            if not _blocks_without:
                FAST_PATHS.update(_registered)
