"""L1: the modes of a thread: whether ops are recorded, what observes them, and autocast."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any


class _Mode(threading.local):
    """What each thread decides for itself; a new thread starts with these defaults."""

    grad_enabled: bool = True
    observer: Any = None  # an anomaly.Observer
    autocast: Any = None  # an autocast.Autocast


mode = _Mode()
open_blocks = 0  # with an observer or autocast, in all threads: reading this is cheaper than reading `mode`
_lock = threading.Lock()


@contextmanager
def mode_set(**values: Any) -> Iterator[None]:
    """Within the block, this thread's mode has these values."""
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
    """A context manager that sets this thread's grad mode; also a decorator, with or without brackets."""

    enabled: bool

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        self = super().__new__(cls)
        return self if function is None else self(function)

    def __call__(self, function: Callable[..., Any]) -> Any:
        """Decorate: of a generator, each step runs in this mode, and what is between the steps does not."""
        if not isgeneratorfunction(function):
            return super().__call__(function)

        @wraps(function)
        def in_steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
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
                except BaseException as error:  # thrown in, or the end: the generator's own `finally` is to run too
                    resume, sent = generator.throw, error

        return in_steps

    def __enter__(self) -> None:
        self._stack().append(mode.grad_enabled)
        mode.grad_enabled = self.enabled

    def __exit__(self, *exception: object) -> None:
        mode.grad_enabled = self._stack().pop()

    @staticmethod
    def _stack() -> list[bool]:
        stack: list[bool] = mode.__dict__.setdefault("previous", [])
        return stack


class no_grad(_GradMode):  # noqa: N801 (PyTorch's name)
    """Record nothing in this block, or in this function when used as a decorator: nothing can be differentiated."""

    enabled = False


class enable_grad(_GradMode):  # noqa: N801 (PyTorch's name)
    """Record again, inside a `no_grad` block."""

    enabled = True


def is_grad_enabled() -> bool:
    """Whether this thread is recording operations."""
    return mode.grad_enabled
