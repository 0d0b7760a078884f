"""L3: the methods of Tensor, one for each op, with the names, arguments and defaults of torch.Tensor.

The op of each method, in `minigrad/ops/`, has the equations of forward and backward. Most methods are also functions of
the package: `minigrad.exp(x)` is `x.exp()`.

For all methods: shapes or values that do not fit raise a ValueError, an axis that does not exist an IndexError, and
"floating-point only" means that another dtype raises a TypeError. In arithmetic, operands broadcast, and different
dtypes are promoted to one, as in PyTorch.

Each file adds the methods of one subject to the class before it, whose methods it may call:

    TensorBase < Operators < Conversion < Indexing < Shapes < Elementwise < Logic < Reductions < Sorting < Products <
    InPlace < Methods
"""

from minigrad.methods.base import numpy_names, raw_array, sequence
from minigrad.methods.conversion import target
from minigrad.methods.in_place import InPlace
from minigrad.methods.indexing import raw_index

__all__ = ["Methods", "numpy_names", "raw_array", "raw_index", "sequence", "target"]


class Methods(InPlace):
    """The methods of Tensor that apply ops. The class Tensor adds the data, the graph and `apply`."""

    __slots__ = ()
