"""L4: embeddings of class indices."""

from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import array_module
from minigrad.methods import raw_array
from minigrad.ops import checks
from minigrad.ops.indexing import Embedding, in_range


def embedding(input: Any, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """y[i,j,..] = weight[input[i,j,..]]: a row of the weight for each index.

    Shapes: input (...) of integers, weight (V, D), y (..., D). An index out of range is an IndexError (CPU only).
    padding_idx: a row, also counted from the end, whose gradient is 0.
    """
    rows = weight.shape[0] if weight.ndim else 0
    if padding_idx is not None:
        padding_idx = checks.integer(padding_idx, "padding_idx", "embedding")
        if not -rows <= padding_idx < rows:
            raise ValueError(f"embedding: padding_idx must be one of the {rows} rows of weight, got {padding_idx}")
        padding_idx %= rows
    return Tensor.apply(Embedding, weight, index=raw_array(input, "input", "embedding"), padding_idx=padding_idx)


def one_hot(target: Tensor, num_classes: int = -1) -> Tensor:
    """1 at the class index, 0 elsewhere, as int64.

    Shapes: target (...) of integers (else TypeError), result (..., num_classes). A class index out of range is an
    IndexError (CPU only). num_classes=-1: the largest class index + 1, which is read back from a GPU.
    """
    index, num_classes = raw_array(target, "target", "one_hot"), checks.integer(num_classes, "num_classes", "one_hot")
    if index.dtype.kind not in "iu":
        raise TypeError(f"one_hot: target must hold integers, got {index.dtype}")
    if num_classes < -1:
        raise ValueError(f"one_hot: num_classes must be -1 or not negative, got {num_classes}")
    if num_classes == -1:
        if not index.size:
            raise ValueError("one_hot: an empty target needs num_classes")
        num_classes = int(index.max()) + 1
    in_range(index, num_classes, "one_hot")
    xp = array_module(index)
    return Tensor((index[..., None] == xp.arange(num_classes)).astype(np.int64))
