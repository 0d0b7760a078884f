"""L4: embeddings of class indices."""

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import array_module
from minigrad.methods import raw_array
from minigrad.ops import checks


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """1 at the class index, 0 elsewhere, as int64.

    Shapes: target (...) of integers (else TypeError), result (..., num_classes). A class index out of range is an
    IndexError (CPU only).
    """
    index, num_classes = raw_array(target, "target", "one_hot"), checks.integer(num_classes, "num_classes", "one_hot")
    if index.dtype.kind not in "iu":
        raise TypeError(f"one_hot: target must hold integers, got {index.dtype}")
    if isinstance(index, np.ndarray) and index.size and not 0 <= index.min() <= index.max() < num_classes:
        raise IndexError(
            f"one_hot: class indices must be from 0 to {num_classes - 1}, got {index.min()} to {index.max()}"
        )
    xp = array_module(index)
    return Tensor((index[..., None] == xp.arange(num_classes)).astype(np.int64))
