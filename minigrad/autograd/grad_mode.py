"""L1: thread-local modes: grad mode (whether ops are recorded), the observer, and autocast."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any


class _Mode(threading.local):
    """The modes of the current thread; a new thread starts with these defaults."""

    grad_enabled: bool = True
    observer: Any = None  # an anomaly.Observer
    autocast: Any = None  # an autocast.Autocast


mode = _Mode()
# The number of open blocks in all threads: of `mode_set`, and of `no_grad` and `enable_grad`. Where it is 0, no thread
# has changed its `mode`, which is slower to read than a global variable.
open_blocks = grad_blocks = 0
_lock = threading.Lock()


@contextmanager
def mode_set(**values: Any) -> Iterator[None]:
    """Within the block, set these attributes of this thread's `mode`."""
    global open_blocks
    before = {name: getattr(mode, name) for name in values}
    vars(mode).update(values)
    with _lock:
        open_blocks += 1
    try:
        yield
    finally:
        with _lock:
            open_blocks -= 1
        vars(mode).update(before)


class _GradMode(ContextDecorator):
    """A context manager that sets the grad mode of this thread; also a decorator, with or without parentheses."""

    enabled: bool

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        self = super().__new__(cls)
        return self if function is None else self(function)

    def __call__(self, function: Callable[..., Any]) -> Any:
        """Decorate a function. A generator function has this mode while its code runs, not while it is suspended."""
        if not isgeneratorfunction(function):
            return super().__call__(function)

        @wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Iterator[Any]:
            generator = function(*args, **kwargs)
            resume, sent = generator.send, None
            while True:
                try:
                    with self:
                        value = resume(sent)
                except StopIteration as end:
                    return end.value
                try:
                    resume, sent = generator.send, (yield value)
                except BaseException as error:  # from throw() or close(): let the generator's except and finally run
                    resume, sent = generator.throw, error

        return decorated

    def __enter__(self) -> None:
        global grad_blocks
        with _lock:
            grad_blocks += 1
        self._stack().append(mode.grad_enabled)
        mode.grad_enabled = self.enabled

    def __exit__(self, *exception: object) -> None:
        global grad_blocks
        mode.grad_enabled = self._stack().pop()
        with _lock:
            grad_blocks -= 1

    @staticmethod
    def _stack() -> list[bool]:
        stack: list[bool] = mode.__dict__.setdefault("previous", [])
        return stack


class no_grad(_GradMode):  # noqa: N801 (PyTorch's name)
    """Disable the recording of ops in a block or a decorated function: the outputs do not require gradients."""

    enabled = False


class enable_grad(_GradMode):  # noqa: N801 (PyTorch's name)
    """Enable the recording of ops in a block or a decorated function, inside a `no_grad` block."""

    enabled = True


class inference_mode(_GradMode):  # noqa: N801 (PyTorch's name)
    """Disable the recording of ops, as `no_grad` does; with `mode=False`, enable it.

    PyTorch's inference mode is faster than its `no_grad`, and restricts its outputs. Here both modes are the same: both
    run the fast paths of inference, outputs are ordinary tensors, and nothing derived from the parameters is cached.
    """

    def __new__(cls, mode: Any = True) -> Any:
        self = super().__new__(cls)
        self.enabled = not mode
        return self(mode) if callable(mode) else self


class set_grad_enabled:  # noqa: N801 (PyTorch's name)
    """Enable or disable the recording of ops: from now on, or as a context manager or decorator."""

    def __init__(self, mode: bool) -> None:
        self.enabled = bool(mode)
        self._set(self.enabled, blocks=1)

    def _set(self, enabled: bool, blocks: int) -> None:
        global grad_blocks
        self.previous, mode.grad_enabled = mode.grad_enabled, enabled
        with _lock:
            grad_blocks += blocks

    def __call__(self, function: Callable[..., Any]) -> Any:
        self.__exit__()  # only the function runs in this mode
        return (enable_grad if self.enabled else no_grad)(function)

    def __enter__(self) -> None:
        """The mode has been set by the call."""

    def __exit__(self, *exception: object) -> None:
        self._set(self.previous, blocks=-1)


def is_grad_enabled() -> bool:
    """True if ops of this thread are recorded."""
    return mode.grad_enabled
