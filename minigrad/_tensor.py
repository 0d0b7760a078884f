"""L3: Tensor: an array, and the node of the autograd graph that computed it.

`Tensor.apply` runs an op's forward and, if any input requires a gradient, records the op as a node of the graph.
`Tensor.backward` runs backward through that graph (`minigrad/autograd/tape.py`). The methods for the ops, one line
each, are in `minigrad/methods/`.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minigrad import absent, write_checks
from minigrad.autograd import grad_mode, tape, writes
from minigrad.autograd.dispatch import dispatch
from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import mode
from minigrad.autograd.gradients import backward, start_gradient
from minigrad.autograd.hooks import RemovableHandle
from minigrad.autograd.node import Leaf, Node, Output, next_age
from minigrad.backend import Array, Device, array_module, as_array, device_of, plain, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_floating
from minigrad.backend.fast_paths import FAST_PATHS, fast_path
from minigrad.backend.meta import MetaArray
from minigrad.inputs import check_range, explain, operand, to_array
from minigrad.methods import Methods, raw_index
from minigrad.ops import rules  # noqa: F401 (its import fills the table of rules that `dispatch` reads)
from minigrad.ops.indexing import steps

_new, _ndarray = object.__new__, np.ndarray
_NEEDS = [[tuple(bool(bits >> i & 1) for i in range(n)) for bits in range(1 << n)] for n in range(5)]
"""`needs_input_grad` of an op with n inputs, for each value of the bits `requiring` in `Tensor.apply`."""


class Tensor(Methods):
    """A multi-dimensional array of one dtype, with automatic differentiation.

    Args:
        data: a number, nested lists, an array (shared, not copied) or another Tensor (detached).
        requires_grad: record the ops on this Tensor, so that `backward` can accumulate ∂loss/∂self in `grad`.
        dtype: float16, bfloat16, float32, float64, bool or an integer type. By default an array keeps its dtype, and
            Python floats become float32.
        device: "cpu" or "cuda"; by default the device of the data.

    In-place operators (`x += y`) and `x[i] = v` write into the array, as in PyTorch: views, `detach()` and
    `state_dict()` share the new values, and backward raises an error at an op that saved the old values. Unlike in
    PyTorch, a recorded `x += y` changes x alone: views of x, and the base if x is a view, keep the old values.
    """

    __slots__ = ("__weakref__", "_node", "_retained", "data")
    __array_priority__ = 1000  # array + tensor calls Tensor.__radd__, not a NumPy or CuPy ufunc

    data: Array
    _node: Node | None  # the op that computed this Tensor, or a Leaf; None: requires_grad is False
    _retained: Leaf | None  # holds `grad` if _node does not: after retain_grad(), or while requires_grad is False

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None) -> None:
        self.data = to_array(data.data if isinstance(data, Tensor) else data, dtype, device)
        self._node = self._retained = None
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def apply(function: type[Function], *inputs: Any, **options: Any) -> Any:
        """Run an op, and record it if any input requires a gradient.

        Args:
            function: the op's class; each call creates one instance.
            *inputs: the positional arguments of the op's `forward`: Tensors, arrays, Python numbers, or None.
            **options: the keyword arguments of the op's `forward`.

        Returns:
            The output Tensor, or a tuple of Tensors. Outputs require gradients if any input does and grad mode is on.
        """
        # Prepare: the array of each input, and the edge along which backward sends the gradient of this input.
        arrays: list[Any] = []
        edges: list[Any] = []
        requiring, all_float32 = 0, True  # requiring: bit i for input i
        recording = not grad_mode.grad_blocks or mode.grad_enabled
        for x in inputs:
            if isinstance(x, Tensor):
                data, node = x.data, x._node
                arrays.append(data)
                dtype = data.dtype
                if dtype is not FLOAT32:
                    all_float32 = False
                if node is not None and recording:
                    requiring += 1 << len(edges)
                    edges.append((node, data.shape, dtype))
                    continue
            else:
                if not (x is None or type(x) is float or type(x) is int):
                    all_float32, x = False, operand(x, function)
                arrays.append(x)
            edges.append(None)
        if options:  # a NumPy scalar would promote float32
            options = {name: x.item() if isinstance(x, np.generic) else x for name, x in options.items()}

        # Dispatch: choose the implementation, and cast the inputs.
        needs_dispatch = not all_float32 or grad_mode.open_blocks  # open_blocks: autocast or an observer may be active
        cast_back = None
        if needs_dispatch:
            op, arrays, cast_back = dispatch(function, arrays, edges, options)
        elif function in FAST_PATHS:
            op = (fast_path(function, *arrays, **options) or function)()
        else:
            op = function()
        op.needs_input_grad = _NEEDS[len(edges)][requiring] if len(edges) < 5 else tuple(map(bool, edges))

        # Run: forward; the output of an op that computed in float32 is cast back.
        try:
            output = op.forward(*arrays, **options) if options else op.forward(*arrays)
        except Exception as error:
            explain(error, op, arrays)
            raise
        if needs_dispatch:
            if cast_back is not None:
                op.cast_back, output = cast_back, _cast_float32(output, cast_back)
            if mode.observer is not None:  # Observer.forward: the last of several outputs
                mode.observer.forward(op, arrays, output[-1] if type(output) is tuple and output else output)

        # Record: the op becomes a node of the graph if any input requires a gradient.
        if requiring:
            op.edges, op.age = edges, next_age()
        if type(output) is tuple:
            return _output_tensors(op, output, requiring > 0)
        result = _new(Tensor)
        result.data = output if type(output) is _ndarray else _output_array(output, op)
        result._retained = None
        result._node = op if requiring else None
        return result

    @staticmethod
    def constant(array: Array) -> "Tensor":
        """A Tensor that shares `array` and does not require a gradient."""
        return Tensor(array)

    # The graph ------------------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """True if backward computes gradients for or through this Tensor. Only on a leaf can it be set to False; when
        set to True again, the leaf still has its gradient and hooks."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        if not self.is_leaf:
            if requires_grad:
                return
            raise RuntimeError("requires_grad can be set to False only on a leaf; use x.detach() for other tensors")
        if requires_grad and not is_floating(self.data.dtype):
            raise TypeError(f"only floating-point tensors can require a gradient, got dtype {self.data.dtype}")
        if requires_grad == self.requires_grad:
            return
        leaf: Any = self._node or self._retained or Leaf()  # an existing Leaf is reused with its gradient and hooks
        leaf.requires_grad = requires_grad
        self._node, self._retained = (leaf, None) if requires_grad else (None, leaf)

    def requires_grad_(self, requires_grad: bool = True) -> "Tensor":
        """Set `requires_grad` and return self."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """True if this Tensor is not the output of a recorded op."""
        return self._node is None or isinstance(self._node, Leaf)

    @property
    def grad_fn(self) -> Node | None:
        """The recorded op that computed this Tensor; None for a leaf."""
        return None if self.is_leaf else self._node

    @property
    def grad(self) -> "Tensor | None":
        """∂loss/∂self of a leaf (or after `retain_grad`), accumulated over calls of `backward` until set to None."""
        leaf = self._node if isinstance(self._node, Leaf) else self._retained
        return None if leaf is None or leaf.grad is None else Tensor(leaf.grad)

    @grad.setter
    def grad(self, value: "Tensor | None") -> None:
        leaf = self._node if isinstance(self._node, Leaf) else self._retained
        if leaf is None:
            if value is None:
                return
            raise RuntimeError("grad can be set only on a tensor that requires a gradient")
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"grad must be a Tensor or None, got {type(value).__name__}")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ValueError(
                f"grad must have the tensor's shape and dtype, {self.shape} {self.dtype}, "
                f"got {value.shape} {value.dtype}"
            )
        leaf.grad = None if value is None else value.data

    def retain_grad(self) -> None:
        """Accumulate `grad` also for a Tensor that is not a leaf. All hooks run before the gradient is stored."""
        if self._node is None:
            raise RuntimeError("retain_grad: this tensor does not require a gradient")
        if not self.is_leaf and self._retained is None:
            self._retained = leaf = Leaf()
            self._node.hooks += (lambda grad: leaf.accumulate(grad, owned=False),)

    def register_hook(self, hook: Callable[["Tensor"], "Tensor | None"]) -> RemovableHandle:
        """Call `hook(grad)` in backward once this Tensor's gradient is complete. A returned Tensor replaces `grad`."""
        node = self._node
        if node is None:
            raise RuntimeError("register_hook: this tensor does not require a gradient")

        def array_hook(grad: Array) -> Array | None:
            replaced = hook(Tensor(grad))
            if replaced is None:
                return None
            if not isinstance(replaced, Tensor) or (replaced.shape, replaced.dtype) != (grad.shape, grad.dtype):
                raise TypeError(
                    "a hook must return None or a Tensor of the gradient's shape and dtype, "
                    f"{grad.shape} {grad.dtype}: got {replaced!r}"
                )
            return replaced.data

        def remove() -> None:
            node.hooks = tuple(h for h in node.hooks if h is not array_hook)

        last = len(node.hooks) - (self._retained is not None)  # the hook of retain_grad stays the last
        node.hooks = (*node.hooks[:last], array_hook, *node.hooks[last:])
        return RemovableHandle(remove)

    def register_post_accumulate_grad_hook(self, hook: Callable[["Tensor"], None]) -> RemovableHandle:
        """Call `hook(self)` in backward once the gradient of this leaf has been accumulated in `grad`, as to update a
        parameter, or to send its gradient to other processes, while backward runs on.

        Backward visits a leaf with such a hook directly after the last op that uses the leaf, and not at its end. The
        hook runs once for each call of `backward`, also if gradient checkpointing adds gradients several times.
        """
        if self._node is None:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        if not isinstance(self._node, Leaf):
            raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
        reference = weakref.ref(self)  # the Leaf must not refer to the Tensor: a cycle would delay freeing

        def run() -> None:
            tensor = reference()
            if tensor is not None:
                hook(tensor)

        return self._node.add_post_hook(run)

    def backward(
        self,
        gradient: "Tensor | None" = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: "Sequence[Tensor] | Tensor | None" = None,
    ) -> None:
        """Add ∂self/∂x to `x.grad` for every leaf x that requires a gradient.

        Args:
            gradient: ∂loss/∂self, of self's shape; optional if self has one element.
            retain_graph: keep the arrays that the ops saved, so that backward can run through this graph again.
            create_graph: refused: gradients of gradients do not exist here.
            inputs: the only leaves whose `grad` changes; all by default.
        """
        if self._node is None:
            raise RuntimeError(
                "backward: this tensor does not require a gradient: set requires_grad=True on an input, and compute "
                "outside no_grad()"
            )
        if gradient is not None and not isinstance(gradient, Tensor):
            gradient = Tensor(gradient, dtype=self.dtype, device=self.device)
        if inputs is not None or create_graph:
            backward(self, gradient, retain_graph, create_graph, inputs)
            return
        tape.backward({self._node: start_gradient(self, gradient, "backward")}, bool(retain_graph))

    def detach(self) -> "Tensor":
        """A Tensor that shares this array and is detached from the graph."""
        return Tensor(self.data)

    # Copies ---------------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        """A new leaf with copies of the values and the gradient, without hooks."""
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol: this Tensor "
                f"is the output of {self._node!r}, and backward through a copy would reach copies of the leaves. "
                "Copy x.detach(), or remove the Tensor from the object that is copied"
            )
        leaf: Any = self._node or self._retained
        grad = None if leaf is None else copy.deepcopy(leaf.grad, memo)
        return self._leaf_like(copy.deepcopy(self.data, memo), grad, copy.deepcopy(getattr(self, "__dict__", {}), memo))

    def __copy__(self) -> "Tensor":
        """A Tensor that shares the array and grad_fn. The copy of a leaf is a leaf without a gradient."""
        other = self._leaf_like(self.data, None, dict(getattr(self, "__dict__", {})))
        if not self.is_leaf:
            other._node = self._node
        return other

    def _leaf_like(self, data: Array, grad: Array | None, attributes: dict[str, Any]) -> "Tensor":
        """A new leaf with self's class and requires_grad."""
        other: Tensor = _new(type(self))
        other.data, other._node, other._retained = data, None, None
        if attributes:  # only subclasses have attributes
            other.__dict__.update(attributes)
        if self.requires_grad or grad is not None:
            leaf = Leaf()
            leaf.grad, leaf.requires_grad = grad, self.requires_grad
            other._node, other._retained = (leaf, None) if self.requires_grad else (None, leaf)
        return other

    def __getstate__(self) -> Any:
        """For pickle. The nodes of the graph come first, in order of creation, so that each node refers to nodes that
        are already pickled: otherwise a long graph would exceed the recursion limit."""
        slots = {"data": self.data, "_node": self._node, "_retained": self._retained}
        return ([] if self._node is None else tape.history(self._node)), getattr(self, "__dict__", {}), slots

    def __setstate__(self, state: Any) -> None:
        _, attributes, slots = state
        for name, value in slots.items():
            setattr(self, name, value)
        if attributes:
            self.__dict__.update(attributes)

    # The array ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def dtype(self) -> np.dtype:
        dtype: np.dtype = self.data.dtype
        return dtype

    @property
    def device(self) -> Device:
        return Device(device_of(self.data))

    @property
    def ndim(self) -> int:
        return len(self.data.shape)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write into the array. The write is not recorded, so no gradient may depend on this Tensor."""
        if self.requires_grad and mode.grad_enabled:
            raise RuntimeError(
                "in-place write to a tensor that requires a gradient: x[i] = v is not recorded. "
                "Create a new tensor with where(), masked_fill() or cat(), or write to a leaf under no_grad()"
            )
        if not self.is_leaf:
            raise RuntimeError("in-place write to the output of a recorded op; write to x.detach() instead")
        if isinstance(value, Tensor) and value.requires_grad and mode.grad_enabled:
            raise RuntimeError("x[i] = v is not recorded, so v's gradient would be lost; use where() or cat()")
        if isinstance(value, int | np.integer | Sequence):
            check_range(value, self.dtype, "x[i] = v")
        *first, last = steps(raw_index(index, self.data))  # if there are two steps, the first returns a view
        write_checks.expect_writable(self.data, "x[i] = v")
        value = value.to(self.device).data if isinstance(value, Tensor) else plain(value)
        if getattr(value, "size", 0) == 1:  # NumPy refuses an array with axes as the value of one element
            value = value.reshape(())
        (self.data[first[0]] if first else self.data)[last] = value
        self._note_write()

    def _in_place(self, name: str, compute: Callable[..., "Tensor"], *others: Any) -> "Tensor":
        """Assign `compute(self, *others)`, cast to self's dtype, to self; return self. Used by every in-place op.

        An op that is not recorded writes its result into self's array. After a recorded op, self has the array and the
        node of the result, and the graph keeps the old array and node.

        Args:
            name: the op as users write it, such as `+=`, for error messages.
        """
        recording = mode.grad_enabled
        if recording and self._node is not None:
            write_checks.expect_no_leaf(self._node, name)
        with grad_mode.mode_set(autocast=None):  # self keeps its dtype
            result = compute(self, *others)
        write_checks.expect_fits(result.data, self.data, name)
        if recording and (self._node is not None or result._node is not None):
            result = result.to(dtype=self.dtype)
            retains = self._retained is not None and self._node is not None
            self.data, self._node, self._retained = result.data, result._node, None
            if retains:
                self.retain_grad()
        else:
            write_checks.expect_writable(self.data, name)
            self.data[...] = cast(result.data, self.dtype)
            self._note_write()
        return self

    def _note_write(self) -> None:
        if not isinstance(self.data, MetaArray):  # all meta arrays share one dummy element
            writes.note([self.data])

    def numpy(self) -> np.ndarray:
        """A NumPy array, sharing memory if self is on the CPU, and read-only if self requires a gradient."""
        array: np.ndarray = to_device(self.data, "cpu")
        if self.requires_grad:
            array = array.view()
            array.flags.writeable = False
        return array

    def item(self) -> Any:
        """The value of a Tensor with one element, as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item: the tensor must have exactly one element, got shape {self.shape}")
        value = self.data.item()
        return value if isinstance(value, int | float) else float(value)  # a bfloat16 scalar

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self.data.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> "Tensor":
        """The result of a NumPy function of this Tensor, as a Tensor: NumPy records no ops, so it has no gradient."""
        if self.requires_grad and mode.grad_enabled:
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad: a NumPy function is not recorded, so the gradient "
                "would be lost. Use the method of the Tensor, as in x.exp(), or x.detach() for the values alone"
            )
        return Tensor(array)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.data.size != 1 or self.dtype.kind not in "iu":
            raise TypeError(f"only an integer tensor with one element is an index, got {self.shape} {self.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        """`f"{loss:.4f}"`: a 0-d tensor is formatted as a Python number."""
        if self.ndim and spec:
            raise TypeError(
                f"format {spec!r} needs a 0-d tensor, got shape {self.shape}: format x.item(), or numbers of x.tolist()"
            )
        return repr(self) if self.ndim else format(self.item(), spec)

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", precision=4, prefix="Tensor(")
        notes = "" if self.dtype in (FLOAT32, np.int64, np.bool_) else f", dtype={self.dtype}"
        notes += "" if self.device == "cpu" else f", device={self.device!r}"
        notes += f", grad_fn={self._node!r}" if self.grad_fn else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({values}{notes})"


for _name in absent.NAMES:
    if not hasattr(Tensor, _name):  # (a `__getattr__` would slow down every access to an attribute)
        setattr(Tensor, _name, absent.Absent(_name))

Function.apply = classmethod(Tensor.apply)  # type: ignore[assignment]


def from_dlpack(x: Any) -> Tensor:
    """A Tensor that shares memory with an array of any library that supports DLPack: NumPy, CuPy, PyTorch, JAX."""
    on_cuda = x.__dlpack_device__()[0] == 2
    xp = array_module(to_device(np.empty(0), "cuda")) if on_cuda else np
    return Tensor(xp.from_dlpack(plain(x)))


def _cast_float32(output: Any, dtype: np.dtype) -> Any:
    """`output` with float32 arrays cast to `dtype`; other dtypes, such as bool of a comparison, stay."""
    if type(output) is tuple:
        return tuple(_cast_float32(x, dtype) for x in output)
    return cast(output, dtype) if output.dtype == FLOAT32 else output


def _output_tensors(op: Function, outputs: tuple[Array, ...], recorded: bool) -> tuple[Tensor, ...]:
    """A Tensor for each output of an op."""
    results = tuple(Tensor(_output_array(output, op)) for output in outputs)
    if recorded:
        for i, result in enumerate(results):
            result._node = Output(op, i, len(results))
    return results


def _output_array(output: Any, op: Function) -> Array:
    """The return value of an op's forward, as an array."""
    if isinstance(output, Tensor) or not hasattr(output, "dtype"):
        hint = ": forward and backward of an op compute on arrays" if isinstance(output, Tensor) else ""
        raise TypeError(f"{op.op_name}.forward must return an array, got {type(output).__name__}{hint}")
    return as_array(output)
