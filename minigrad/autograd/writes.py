"""L1: a record of in-place writes, by which backward detects that a saved array was overwritten.

If an array that a node saved in forward is written to before backward, as by an optimizer step, the gradient would be
silently wrong. PyTorch keeps a version counter in every tensor. Arrays cannot have a version counter, so this file
numbers the writes, by the counter that numbers nodes in order of creation (`Node.age`), and keeps the number of the
latest write to each block of memory. A node created before the latest write to an array it saved cannot compute its
gradient.

Recorded are in-place operators, `x[i] = v`, optimizer steps, `load_state_dict`, initialisers, updates of running
statistics, and gradient clipping. Writes by NumPy to `x.data` or `x.numpy()` are not recorded.
"""

import threading
import weakref
from collections.abc import Iterable
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np

from minigrad.autograd.node import Node, next_age
from minigrad.backend import Array
from minigrad.backend.cublas import pointer

latest = 0  # the number of the latest write; nodes created later need no check
_numbers: dict[int, int] = {}  # key of the memory (`_memory`) -> number of the latest write
_owners: dict[int, weakref.ref] = {}  # key -> the array that owns the memory; when freed, the entries are removed
_lock = threading.Lock()
_NOT_SAVED = {"edges", "needs_input_grad", "hooks"}


def note(arrays: Iterable[Array]) -> list[int]:
    """Record a write to each of these arrays. Returns the keys of their memory."""
    memory = [_memory(x) for x in arrays]
    with _lock:
        for key, owner in memory:
            if key not in _owners:
                _owners[key] = weakref.ref(owner, partial(_forget, key))
    keys = [key for key, _ in memory]
    note_again(keys)
    return keys


def note_again(keys: Iterable[int]) -> None:
    """Record a write to the arrays of an earlier `note`, by their keys. The arrays must still exist."""
    global latest
    with _lock:
        latest = next_age()
        _numbers.update(dict.fromkeys(keys, latest))


def overwritten(node: Node) -> Array | None:
    """The node's first saved array with a write later than the node's creation, or None."""
    saved: list[Any] = [node]
    for x in saved:  # `saved` grows during the loop
        if isinstance(x, list | tuple):
            saved.extend(x)
        elif isinstance(x, Node) or is_dataclass(x):  # the node, an op that it runs inside, or a group of arrays
            saved.extend(value for name, value in vars(x).items() if name not in _NOT_SAVED)
        elif _is_array(x) and _numbers.get(_memory(x)[0], 0) > node.age:
            return x
    return None


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray) or hasattr(x, "__cuda_array_interface__")


def _memory(x: Array) -> tuple[int, Any]:
    """A key for the memory of x, the same for all views of one array, and the array that owns the memory.

    The key is the id of the last object in the chain of bases: the owning array, or a buffer that is not NumPy's, such
    as an mmap or another library's array. On a GPU the key is the address of the owning array.
    """
    if not isinstance(x, np.ndarray):
        while x.base is not None:
            x = x.base
        return pointer(x), x
    owner, base = x, x.base  # base is None if x owns its memory
    while base is not None:
        if isinstance(base, np.ndarray):
            owner = base
        x, base = base, base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return id(x), owner


def _forget(key: int, _: weakref.ref) -> None:
    """Forget the recorded writes to freed memory."""
    _numbers.pop(key, None)
    _owners.pop(key, None)
