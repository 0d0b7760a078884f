"""L3: checks before an in-place write into a tensor's array, with PyTorch's errors and a likely fix.

Without these checks, some writes would silently give a wrong gradient, or change other elements.
"""

import numpy as np

from minigrad.autograd.node import Leaf, Node, Output
from minigrad.backend import Array
from minigrad.backend.dtypes import is_floating
from minigrad.backend.meta import MetaArray
from minigrad.ops.indexing import GetItem
from minigrad.ops.shape import Diagonal, Expand, Permute, Reshape, Unbind

_VIEWS = (GetItem, Permute, Diagonal, Expand, Reshape, Unbind, Output)


def expect_no_leaf(node: Node, name: str) -> None:
    """Raise RuntimeError if a recorded op `name` would write into a leaf that requires a gradient, or into its view."""
    prefix = _leaf_prefix(node)
    if prefix is not None:
        raise RuntimeError(
            f"a {prefix}leaf Variable that requires grad is being used in an in-place operation: {name} would "
            "overwrite the leaf. Update parameters under no_grad(), or create a new tensor: x = x + y"
        )


def expect_fits(result: Array, target: Array, name: str) -> None:
    """Raise RuntimeError if `result` differs in shape from `target`, or has a dtype of a higher category."""
    if result.shape != target.shape:
        raise RuntimeError(
            f"output with shape {list(target.shape)} doesn't match the broadcast shape {list(result.shape)}: "
            f"{name} keeps the shape of its left operand; create a new tensor: x = x + y"
        )
    if _category(result.dtype) > _category(target.dtype):
        raise RuntimeError(
            f"result type {result.dtype} can't be cast to the desired output type {target.dtype}: {name} keeps the "
            "dtype of its left operand; convert x first, as in x = x.float()"
        )


def expect_writable(data: Array, name: str) -> None:
    """Raise RuntimeError if several elements of `data` share memory, or if `data` is read-only."""
    if isinstance(data, MetaArray):
        return
    if any(size > 1 and stride == 0 for size, stride in zip(data.shape, data.strides, strict=True)):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory "
            f"location, as after expand(): {name} would change all of them. Copy first: x = Tensor(x.numpy().copy())"
        )
    if not getattr(data.flags, "writeable", True):
        raise RuntimeError(f"{name}: this tensor's array is read-only. Copy first: x = Tensor(x.numpy().copy())")


def _leaf_prefix(node: Node) -> str | None:
    """The prefix of "leaf" in the message: "" for a leaf, "view of a " for a view of a leaf; None for other nodes."""
    prefix, reshaped = "", False
    while not isinstance(node, Leaf):
        if not isinstance(node, _VIEWS) or not node.edges or (isinstance(node, GetItem) and node.copies):
            return None
        if reshaped and not isinstance(node, Reshape):  # a reshape of a non-contiguous view copies
            return None
        reshaped = reshaped or isinstance(node, Reshape)
        edge = node.edges[0]
        if edge is None:
            return None
        prefix, node = "view of a ", edge[0]
    return prefix


def _category(dtype: np.dtype) -> int:
    """0 for bool, 1 for integers, 2 for floating point. A result is never cast to a lower category, as in PyTorch."""
    return 2 if is_floating(dtype) else 1 if dtype.kind in "iu" else 0
