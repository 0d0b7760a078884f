"""L1: in-place writes, and how backward notices that an array which it needs has been overwritten.

A node saves arrays in forward. A write to their memory before backward, such as an optimizer step, would make the
gradient silently wrong. PyTorch counts a version in every tensor and compares the counts; arrays have no room for a
count, so the writes are listed here: the memory that was written, and the age of the latest write to it, taken from the
same counter as the ages of nodes. A node older than a write to memory that it saved cannot compute its gradient.

Noted are in-place operators, `x[i] = v`, optimizer steps, `load_state_dict`, initialisers, running statistics and
gradient clipping. A write to `x.data` or `x.numpy()` by NumPy's own means is not.
"""

import threading
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from minigrad.autograd.node import Node, next_age
from minigrad.backend import Array
from minigrad.backend.cublas import pointer

latest = 0  # the age of the latest write: a node that is younger needs no check
_ages: dict[int, int] = {}  # of the latest write to each memory, which is named as `_memory` does
_owners: dict[int, weakref.ref] = {}  # an entry goes with the array that owns the memory
_lock = threading.Lock()
_NOT_SAVED = {"edges", "needs_input_grad", "hooks"}


def note(arrays: Iterable[Array]) -> None:
    """These arrays have been written to."""
    global latest
    with _lock:
        latest = next_age()
        for x in arrays:
            key, owner = _memory(x)
            _ages[key] = latest
            if key not in _owners:
                _owners[key] = weakref.ref(owner, partial(_forget, key))


def overwritten(node: Node) -> Array | None:
    """An array that the node saved and whose memory has been written to since, if there is one."""
    saved = [value for name, value in vars(node).items() if name not in _NOT_SAVED]
    for x in saved:  # the list grows while it is walked
        if isinstance(x, list | tuple):
            saved.extend(x)
        elif _is_array(x) and _ages.get(_memory(x)[0], 0) > node.age:
            return x
    return None


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray) or hasattr(x, "__cuda_array_interface__")


def _memory(x: Array) -> tuple[int, Any]:
    """A name for the memory of x, which all views of it share, and the array that owns it.

    Memory that is not NumPy's own, such as a file's or another library's, has the name of what NumPy got it from.
    """
    if not isinstance(x, np.ndarray):
        while x.base is not None:
            x = x.base
        return pointer(x), x
    owner, base = x, x.base  # None where x owns its memory
    while base is not None:
        if isinstance(base, np.ndarray):
            owner = base
        x, base = base, base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return id(x), owner


def _forget(key: int, _: weakref.ref) -> None:
    """Drop the entry of memory that is gone."""
    _ages.pop(key, None)
    _owners.pop(key, None)
