"""L0: fast paths: how a faster implementation takes the place of the one that is read.

The reference implementation says what is computed: an op in `minigrad/ops/`, or a function such as `cast`. For some
there are further implementations in `minigrad/kernels/`, faster on one kind of machine and for some inputs. All of
them, on the CPU and on the GPU, are registered with the inputs that they support,

    @fast_path_of(LayerNorm)
    class CPULayerNorm(LayerNorm):
        @staticmethod
        def supports(x, weight, bias, *, shape, eps): return x.dtype == np.float32 and ...

    @fast_path_of(cast, supports=lambda x, dtype: on_gpu(x))
    def convert(x, dtype): ...

and are looked up by `fast_path(LayerNorm, x, weight, bias, shape=shape, eps=eps)`; `run(function, ...)` looks up and
calls. Each has a test that both give the same, and with the gain that was measured:
`python -m tests.benchmarks.fast_paths`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

Implementation = TypeVar("Implementation", bound=Callable[..., Any])

FAST_PATHS: dict[Any, tuple[Any, ...]] = {}
"""For each reference implementation its fast paths, in the order of registration; empty in `without_fast_paths`."""

_registered: dict[Any, tuple[Any, ...]] = {}
_blocks_without = 0
_lock = Lock()


def fast_path_of(
    reference: Any, supports: Callable[..., bool] | None = None
) -> Callable[[Implementation], Implementation]:
    """Decorates a class or function that computes the same as `reference`, where it supports the arguments.

    Args:
        reference: an op's class, or a function.
        supports: whether it is for these arguments; by default the method `supports` of the decorated class.
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


def run(reference: Any, *arrays: Any, **options: Any) -> Any:
    """Call the first fast path of the function `reference` that supports these arguments, or else `reference`."""
    return (fast_path(reference, *arrays, **options) or reference)(*arrays, **options)


def fast_paths_of(reference: Any) -> tuple[Any, ...]:
    """All fast paths of `reference`, also within `without_fast_paths`."""
    return _registered.get(reference, ())


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Within the block, and in all threads, the reference implementations run. Also a decorator; blocks may be nested.

    with minigrad.without_fast_paths():
        y = F.layer_norm(x, (64,))     # a breakpoint in minigrad/ops/norm.py is reached
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
