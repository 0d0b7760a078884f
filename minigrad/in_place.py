"""L3: what must hold before a write into a tensor's array. The errors are PyTorch's, each with the way out.

Without these checks, some of the writes would silently give a wrong gradient, or wrong values elsewhere.
"""

import numpy as np

from minigrad.autograd.node import Leaf, Node, Output
from minigrad.backend import Array
from minigrad.backend.dtypes import is_floating
from minigrad.backend.meta import MetaArray
from minigrad.ops.indexing import GetItem
from minigrad.ops.shape import Expand, Permute, Reshape, Unbind

_VIEWS = (GetItem, Permute, Expand, Reshape, Unbind, Output)


def expect_no_leaf(node: Node, name: str) -> None:
    """Raises a RuntimeError if a recorded op `name` would write into a leaf that requires a gradient, or its view."""
    view = _view_of_leaf(node)
    if view is not None:
        raise RuntimeError(
            f"a {view}leaf Variable that requires grad is being used in an in-place operation: {name} would change "
            "what its gradient is taken of. Update parameters under no_grad(), or make a new tensor: x = x + y"
        )


def expect_fits(result: Array, target: Array, name: str) -> None:
    """Raises a RuntimeError if a result has another shape than the array it goes to, or a higher kind of dtype."""
    if result.shape != target.shape:
        raise RuntimeError(
            f"output with shape {list(target.shape)} doesn't match the broadcast shape {list(result.shape)}: "
            f"{name} cannot make a tensor larger; make a new one: x = x + y"
        )
    if _category(result.dtype) > _category(target.dtype):
        raise RuntimeError(
            f"result type {result.dtype} can't be cast to the desired output type {target.dtype}: {name} keeps the "
            "dtype of its left side; convert that first, as with x = x.float()"
        )


def expect_writable(data: Array, name: str) -> None:
    """Raises a RuntimeError if a write would reach several elements at once, or an array that must not change."""
    if isinstance(data, MetaArray):
        return
    if any(size > 1 and stride == 0 for size, stride in zip(data.shape, data.strides, strict=True)):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory "
            f"location, as after expand(): {name} would write them all. Copy first: x = Tensor(x.numpy().copy())"
        )
    if not getattr(data.flags, "writeable", True):
        raise RuntimeError(f"{name}: this tensor's array is read-only. Copy first: x = Tensor(x.numpy().copy())")


def _view_of_leaf(node: Node) -> str | None:
    """What a message says before "leaf": nothing, or "view of a "; None for neither a leaf nor a view of one."""
    view, reshaped = "", False
    while not isinstance(node, Leaf):
        if not isinstance(node, _VIEWS) or not node.edges or (isinstance(node, GetItem) and node.copies):
            return None
        if reshaped and not isinstance(node, Reshape):  # the reshape may have made a copy
            return None
        reshaped = reshaped or isinstance(node, Reshape)
        edge = node.edges[0]
        if edge is None:
            return None
        view, node = "view of a ", edge[0]
    return view


def _category(dtype: np.dtype) -> int:
    """0 for booleans, 1 for integers, 2 for floating-point numbers: a result may not fall to a lower one."""
    return 2 if is_floating(dtype) else 1 if dtype.kind in "iu" else 0
