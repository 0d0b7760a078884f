"""L1: the handle of a registered hook."""

from collections.abc import Callable
from typing import Any


class RemovableHandle:
    """Removes a hook: by `remove()`, at the end of a `with` block, or when called."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self.remove = remove

    def __call__(self) -> None:
        self.remove()

    def __enter__(self) -> "RemovableHandle":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()
