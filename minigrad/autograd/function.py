"""L1: what an op is. It knows arrays, never Tensors: a graph of Functions holds only what their backwards need."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.backend import Array, array_module, scatter_add
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.backend.sums import sum_over

Edge = tuple["Function", tuple[int, ...], np.dtype]
"""Where a gradient goes on to: the node that made the input, and the input's shape and dtype."""


next_age = itertools.count(1).__next__


class Function:
    """One op: `forward` on arrays, and `backward`, which maps ∂loss/∂output to ∂loss/∂input.

    An instance is one application of the op and, where a gradient is wanted, one node of the graph. `forward` assigns
    to `self` what `backward` will need, by name and as little as will do; the engine clears it all after use.

    The contract:
      * arrays come positionally, options by keyword; an input that is not there (no bias) is None;
      * inputs and `grad_output` are never written to;
      * `forward` may return a tuple: several outputs. Then `backward` gets a list, with None for one that was not used;
      * `backward` returns one gradient for each array, or None; a single one need not be in a tuple;
      * a gradient may have the shape of the output where the input was broadcast: the engine sums it back;
      * a returned array is new, or `grad_output` or a view of it: never one that was saved, and none twice but
        `grad_output`, so that the engine may add to it in place (what an op of several outputs returns, it never does);
      * first order only: `backward` works on raw arrays, in place where it can, and is not itself differentiable.
    """

    broadcasts: ClassVar[bool] = False  # elementwise in all its inputs: a shape error can be explained for it
    promote: ClassVar[Callable[..., list[Any]] | None] = None  # brings its inputs to one dtype before `forward`
    narrow: ClassVar[bool] = False  # takes float16 and bfloat16 as they are; else they are upcast (Tensor.apply)
    autocast: ClassVar[int | str] = "follow"  # what that does with its inputs: see minigrad/autograd/autocast.py

    twins: ClassVar["tuple[type[Function], ...]"] = ()  # the same op, faster for what each `takes` (minigrad/kernels/)

    needs_input_grad: Sequence[object] = ()  # for each input, true if anyone wants its gradient: skip the others' work
    edges: Sequence[Edge | None] | None = None  # for each input, where its gradient goes, if anywhere; None: freed
    age: int = 0  # a node is younger than its inputs, so falling age is a topological order
    rounded: np.dtype | None = None  # its inputs were upcast for it, and its output was rounded to this
    hooks: tuple[Callable[[Array], Array | None], ...] = ()
    where: str = ""  # the module path, noted while the NaN guard is on

    def __init_subclass__(cls) -> None:
        cls.twins = ()  # a twin is of one class, and not of those derived from it

    @staticmethod
    def supports(*arrays: Any, **options: Any) -> bool:
        """Of a twin: whether it is for these inputs."""
        return True

    @classmethod
    def twin_for(cls, *arrays: Any, **options: Any) -> "Function | None":
        """A new instance of the first twin that takes these inputs, if there is one."""
        for twin in cls.twins:
            if twin.supports(*arrays, **options):
                return twin()
        return None

    def forward(self, *arrays: Any, **options: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, grad_output: Array) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or a node from another process, is as young as the ops recorded here: its inputs were made first."""
        self.__dict__.update(state)
        if self.age:
            self.age = next_age()

    def grad_dtype(self, i: int, default: np.dtype) -> np.dtype:
        """The dtype that the gradient of input i should have: in autocast, an op sees a narrow copy of a parameter, and
        the parameter itself is float32."""
        edge = self.needs_input_grad[i]
        return edge[2] if isinstance(edge, tuple) else default

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Partial:
    """The gradient of `x[index]` with respect to x: `values` at `index`, zero elsewhere, never built in full.

    Slicing one array k times would cost k arrays of zeros in backward; the engine adds each Partial into one buffer.
    """

    __slots__ = ("index", "repeats", "values")

    def __init__(self, values: Array, index: Any, *, repeats: bool) -> None:
        self.values, self.index, self.repeats = values, index, repeats  # repeats: index may name an entry twice

    def add_to(self, buffer: Array) -> Array:
        """Add the values to `buffer`, an array of the shape of x, in place; return it."""
        if self.repeats and is_half(buffer.dtype):  # sums are in float32
            total = array_module(buffer).zeros(buffer.shape, FLOAT32)
            scatter_add(total, self.index, cast(self.values, FLOAT32))
            buffer += cast(total, buffer.dtype)
        elif self.repeats:
            scatter_add(buffer, self.index, self.values)
        else:
            buffer[self.index] += self.values
        return buffer


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an input of `shape` was broadcast: y_ij = x_j gives ∂x_j = Σ_i ∂y_ij."""
    added = grad.ndim - len(shape)
    stretched = tuple(i for i, size in enumerate(shape, added) if size == 1 and grad.shape[i] != 1)
    return sum_over(grad, tuple(range(added)) + stretched, keepdims=True).reshape(shape)
