"""L3: Tensor, an array that remembers how it was made.

`Tensor.apply` runs an op's forward on the arrays and, if any input wants a gradient, keeps the op as a node of the
graph; `backward` starts the walk through that graph (`minigrad/autograd/tape.py`). What a Tensor can do is in
`minigrad/methods.py`, one line an op.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minigrad import in_place
from minigrad.autograd import grad_mode, tape, writes
from minigrad.autograd.anomaly import describe
from minigrad.autograd.dispatch import dispatch
from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import mode
from minigrad.autograd.node import Leaf, Node, Output, next_age
from minigrad.backend import Array, array_module, as_array, device_of, plain, to_device
from minigrad.backend.dtypes import FLOAT32, as_dtype, cast, is_floating
from minigrad.backend.fast_paths import FAST_PATHS, fast_path
from minigrad.backend.meta import MetaArray
from minigrad.methods import Methods, raw_index
from minigrad.ops import (
    checks,
    rules,  # noqa: F401 (importing it fills the table that `dispatch` reads)
)
from minigrad.ops.indexing import steps

_DTYPES = {np.dtype(t) for t in (np.float16, np.float32, np.float64, bool, "u1", "i1", "i2", "i4", "i8")}
_new, _ndarray = object.__new__, np.ndarray
_ALL_WANTED = [(True,) * n for n in range(4)]  # made once: `needs_input_grad` where all inputs require a gradient


class Tensor(Methods):
    """An array with a gradient.

    Args:
        data: numbers, nested lists, an array (which is not copied) or another Tensor (which is detached).
        requires_grad: collect ∂loss/∂self in `grad` when `backward` is called on a loss made from it.
        dtype: float16, bfloat16, float32, float64, bool or an integer type. By default an array keeps its own, and
            Python floats become float32.
        device: "cpu" or "cuda"; by default where the data is.

    In-place operators (`x += y`) and `x[i] = v` write into the array, as in PyTorch: views of it, `detach()` and
    `state_dict()` see the new values, and backward refuses to go through an op that has saved the old ones. But a
    recorded `x += y` changes this Tensor alone: views made before keep the old values, and so does what x is a view of.
    """

    __slots__ = ("__weakref__", "_node", "_retained", "data")
    __array_ufunc__ = None  # array + tensor asks the tensor, not NumPy
    __array_priority__ = 1000  # the same, as CuPy asks

    data: Array
    _node: Node | None  # the op that made it, or a Leaf; None: no gradient is wanted
    _retained: Leaf | None  # keeps `grad` where _node does not: after retain_grad, or while requires_grad is off

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None) -> None:
        self.data = _to_array(data, dtype, device)
        self._node = self._retained = None
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def apply(function: type[Function], *inputs: Any, **options: Any) -> Any:
        """Run an op and record it.

        Args:
            function: the op's class; this call makes one instance of it.
            *inputs: the positional arguments of its `forward`: Tensors, arrays, Python numbers, or None.
            **options: the keyword arguments of its `forward`.

        Returns:
            The output, a Tensor, or a tuple of them. It requires a gradient if any input does and recording is on.
        """
        # Prepare: the array of each input, and the edge along which its gradient will go.
        arrays: list[Any] = []
        edges: list[Any] = []
        wanted, all_float32, recording = 0, True, mode.grad_enabled  # wanted: how many inputs require a gradient
        for x in inputs:
            if isinstance(x, Tensor):
                data, node = x.data, x._node
                arrays.append(data)
                dtype = data.dtype
                if dtype is not FLOAT32:
                    all_float32 = False
                if node is not None and recording:
                    edges.append((node, data.shape, dtype))
                    wanted += 1
                    continue
            else:
                if not (x is None or type(x) is float or type(x) is int):
                    all_float32, x = False, _operand(x, function)
                arrays.append(x)
            edges.append(None)
        if options:
            options = {name: x.item() if isinstance(x, np.generic) else x for name, x in options.items()}

        # Dispatch: the implementation that runs. Float32 arrays beside Python numbers need no promotion and no cast.
        special = not all_float32 or grad_mode.open_blocks  # promotion, autocast or an observer may have to act
        cast_back = None
        if special:
            op, arrays, cast_back = dispatch(function, arrays, edges, options)
        elif function in FAST_PATHS:
            op = (fast_path(function, *arrays, **options) or function)()
        else:
            op = function()
        op.needs_input_grad = _ALL_WANTED[wanted] if wanted == len(arrays) < 4 else tuple(map(bool, edges))
        try:
            output = op.forward(*arrays, **options) if options else op.forward(*arrays)
        except Exception as error:
            _explain(error, op, arrays)
            raise

        # Record: the op becomes a node of the graph if any input requires a gradient.
        if wanted:
            op.edges, op.age = edges, next_age()
        if special:
            if cast_back is not None:
                op.cast_back, output = cast_back, _cast_back(output, cast_back)
            if mode.observer is not None:
                mode.observer.forward(op, arrays, output[-1] if type(output) is tuple and output else output)
        if type(output) is tuple:
            return _several(op, output, wanted > 0)
        result = _new(Tensor)
        result.data = output if type(output) is _ndarray else _checked(output, op)
        result._retained = None
        result._node = op if wanted else None
        return result

    @staticmethod
    def constant(array: Array) -> "Tensor":
        """A Tensor on `array` that no gradient flows through."""
        return Tensor(array)

    # The graph ------------------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to or through this Tensor. It may be set on a leaf, one that no recorded op made: off
        and on again, the leaf keeps its gradient and its hooks."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if not self.is_leaf:
            if wanted:
                return
            raise RuntimeError(
                "requires_grad can be switched off only on a leaf; x.detach() is the value without history"
            )
        if wanted and not is_floating(self.data.dtype):
            raise TypeError(f"only floating-point tensors can require a gradient, this one holds {self.data.dtype}")
        if wanted == self.requires_grad:
            return
        leaf: Any = self._node or self._retained or Leaf()  # one leaf for good, with its gradient and its hooks
        leaf.requires_grad = wanted
        self._node, self._retained = (leaf, None) if wanted else (None, leaf)

    def requires_grad_(self, requires_grad: bool = True) -> "Tensor":
        """Set `requires_grad` and return self."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded op made this Tensor: it is where the graph begins."""
        return self._node is None or isinstance(self._node, Leaf)

    @property
    def grad_fn(self) -> Node | None:
        """The op that made this Tensor, if it was recorded."""
        return None if self.is_leaf else self._node

    @property
    def grad(self) -> "Tensor | None":
        """∂loss/∂self, summed over all calls of backward since it was last set to None. Leaves and retained Tensors."""
        leaf = self._node if isinstance(self._node, Leaf) else self._retained
        return None if leaf is None or leaf.grad is None else Tensor(leaf.grad)

    @grad.setter
    def grad(self, value: "Tensor | None") -> None:
        leaf = self._node if isinstance(self._node, Leaf) else self._retained
        if leaf is None:
            if value is None:
                return
            raise RuntimeError("only a tensor that requires a gradient can be given one")
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"grad must be a Tensor or None, got {type(value).__name__}")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ValueError(
                f"grad must be {self.shape} {self.dtype}, as the tensor is: got {value.shape} {value.dtype}"
            )
        leaf.grad = None if value is None else value.data

    def retain_grad(self) -> None:
        """Keep `grad` for this Tensor too, though it is not a leaf: for looking at what flows through a graph. What is
        kept is what the hooks have made of it."""
        if self._node is None:
            raise RuntimeError("retain_grad: this tensor requires no gradient")
        if not self.is_leaf and self._retained is None:
            self._retained = box = Leaf()
            self._node.hooks += (lambda grad: box.accumulate(grad, owned=False),)

    def register_hook(self, hook: Callable[["Tensor"], "Tensor | None"]) -> Callable[[], None]:
        """Call `hook(grad)` in backward, when this Tensor's gradient is complete; a Tensor it returns replaces it.

        Returns:
            A function that removes the hook.
        """
        node = self._node
        if node is None:
            raise RuntimeError("register_hook: this tensor requires no gradient, so none will ever come")

        def on_arrays(grad: Array) -> Array | None:
            replaced = hook(Tensor(grad))
            if replaced is None:
                return None
            if not isinstance(replaced, Tensor) or (replaced.shape, replaced.dtype) != (grad.shape, grad.dtype):
                raise TypeError(
                    f"a hook returns None or a Tensor like the gradient, {grad.shape} {grad.dtype}: got {replaced!r}"
                )
            return replaced.data

        def remove() -> None:
            node.hooks = tuple(h for h in node.hooks if h is not on_arrays)

        last = len(node.hooks) - (self._retained is not None)  # retain_grad's own hook comes behind all others
        node.hooks = (*node.hooks[:last], on_arrays, *node.hooks[last:])
        return remove

    def backward(self, gradient: "Tensor | None" = None, retain_graph: bool = False) -> None:
        """Add ∂self/∂x to `x.grad` for every leaf x that requires a gradient.

        Args:
            gradient: ∂loss/∂self, of self's shape; may be left out when self is a single number.
            retain_graph: keep the saved arrays, so that backward can walk this graph again.
        """
        if self._node is None:
            raise RuntimeError(
                "backward: this tensor was not made from anything that requires a gradient: "
                "set requires_grad=True on an input, and do not compute it under no_grad"
            )
        if gradient is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward: only a single number has an obvious gradient, this tensor has shape {self.shape}: "
                    "reduce it first, as in x.sum().backward(), or pass gradient=..."
                )
            grad = array_module(self.data).ones_like(self.data)
        else:
            grad = gradient.data if isinstance(gradient, Tensor) else _to_array(gradient, self.dtype, self.device)
            if grad.shape != self.shape:
                raise ValueError(f"backward: gradient must have this tensor's shape {self.shape}, got {grad.shape}")
            grad = cast(grad, self.data.dtype)
        tape.backward(self._node, grad, retain_graph)

    def detach(self) -> "Tensor":
        """The same array without the graph."""
        return Tensor(self.data)

    # Copies ---------------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        """A leaf of its own, with a copy of the values and of the gradient, and without hooks."""
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol: this one is "
                f"the output of {self._node!r}, and gradients of a copied graph would go to copies of its leaves. "
                "Copy x.detach(), or drop the Tensor from the module or object that holds it"
            )
        leaf: Any = self._node or self._retained
        grad = None if leaf is None else copy.deepcopy(leaf.grad, memo)
        return self._leaf_like(copy.deepcopy(self.data, memo), grad, copy.deepcopy(getattr(self, "__dict__", {}), memo))

    def __copy__(self) -> "Tensor":
        """The same array. Of a leaf, another leaf, without gradient; of any other, the same place in the graph."""
        other = self._leaf_like(self.data, None, dict(getattr(self, "__dict__", {})))
        if not self.is_leaf:
            other._node = self._node
        return other

    def _leaf_like(self, data: Array, grad: Array | None, attributes: dict[str, Any]) -> "Tensor":
        """A leaf of self's class, and with requires_grad as self has it."""
        other: Tensor = _new(type(self))
        other.data, other._node, other._retained = data, None, None
        if attributes:  # only subclasses have any
            other.__dict__.update(attributes)
        if self.requires_grad or grad is not None:
            leaf = Leaf()
            leaf.grad, leaf.requires_grad = grad, self.requires_grad
            other._node, other._retained = (leaf, None) if self.requires_grad else (None, leaf)
        return other

    def __getstate__(self) -> Any:
        """For pickle. The graph, if there is one, comes first and from old to young, so that a node finds those it
        points to already read: however long the graph, pickle does not go deep."""
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
    def device(self) -> str:
        return device_of(self.data)

    @property
    def ndim(self) -> int:
        return len(self.data.shape)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write into the array of a Tensor that no gradient depends on."""
        if self.requires_grad and mode.grad_enabled:
            raise RuntimeError(
                "in-place write to a tensor of the graph: its gradient would be computed from the old numbers. "
                "Build a new tensor with where(), masked_fill() or cat(), or write under no_grad() to a leaf"
            )
        if not self.is_leaf:
            raise RuntimeError("in-place write to a tensor that an op made and recorded; write to x.detach() instead")
        if isinstance(value, Tensor) and value.requires_grad and mode.grad_enabled:
            raise RuntimeError("a write is not recorded, so the value's gradient would be lost; use where() or cat()")
        if isinstance(value, int | np.integer | Sequence):
            _check_range(value, self.dtype, "x[i] = v")
        *first, last = steps(raw_index(index, self.ndim))  # the first step, if there are two, makes a view
        in_place.expect_writable(self.data, "x[i] = v")
        (self.data[first[0]] if first else self.data)[last] = value.data if isinstance(value, Tensor) else plain(value)
        self._note_write()

    def _in_place(self, name: str, compute: Callable[..., "Tensor"], *others: Any) -> "Tensor":
        """Give self the values of `compute(self, *others)`, in self's dtype; return self. Every in-place op is this.

        Where nothing is recorded, the values are written into the array itself. Where the op is recorded, the Tensor
        gets the new array and its node, and the graph keeps the old ones.

        Args:
            name: how users write it, such as `+=`, for messages.
        """
        recording = mode.grad_enabled
        if recording and self._node is not None:
            in_place.expect_no_leaf(self._node, name)
        with grad_mode.mode_set(autocast=None):  # self keeps its dtype
            result = compute(self, *others)
        in_place.expect_fits(result.data, self.data, name)
        if recording and (self._node is not None or result._node is not None):
            result = result.to(dtype=self.dtype)
            retains = self._retained is not None and self._node is not None
            self.data, self._node, self._retained = result.data, result._node, None
            if retains:
                self.retain_grad()
        else:
            in_place.expect_writable(self.data, name)
            self.data[...] = cast(result.data, self.dtype)
            self._note_write()
        return self

    def _note_write(self) -> None:
        if not isinstance(self.data, MetaArray):  # these share one memory, in which there is nothing
            writes.note([self.data])

    def numpy(self) -> np.ndarray:
        """The numbers as a NumPy array, sharing memory on the CPU (read-only where a gradient depends on them)."""
        array: np.ndarray = to_device(self.data, "cpu")
        if self.requires_grad:
            array = array.view()
            array.flags.writeable = False
        return array

    def item(self) -> Any:
        """The one number in this Tensor, as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item: needs a tensor of exactly one number, this one has shape {self.shape}")
        number = self.data.item()
        return number if isinstance(number, int | float) else float(number)  # of bfloat16

    def tolist(self) -> Any:
        """The numbers as nested lists."""
        return self.data.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a tensor with no axes")
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
            raise TypeError(f"only a tensor of one integer is an index, this one is {self.shape} {self.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        """`f"{loss:.4f}"`: a tensor without axes is formatted as its number."""
        if self.ndim and spec:
            raise TypeError(
                f"format {spec!r} is for one number, this tensor has shape {self.shape}: format x.item(), or x.tolist()"
            )
        return repr(self) if self.ndim else format(self.item(), spec)

    def __repr__(self) -> str:
        numbers = np.array2string(self.numpy(), separator=", ", precision=4, prefix="Tensor(")
        notes = "" if self.dtype in (FLOAT32, np.int64, np.bool_) else f", dtype={self.dtype}"
        notes += "" if self.device == "cpu" else f", device={self.device!r}"
        notes += f", grad_fn={self._node!r}" if self.grad_fn else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({numbers}{notes})"


def from_dlpack(x: Any) -> Tensor:
    """A Tensor on the memory of any array that speaks DLPack: NumPy, CuPy, PyTorch, JAX."""
    on_cuda = x.__dlpack_device__()[0] == 2
    xp = array_module(to_device(np.empty(0), "cuda")) if on_cuda else np
    return Tensor(xp.from_dlpack(plain(x)))


def _operand(x: Any, function: type[Function]) -> Any:
    """An input of an op that is no Tensor."""
    if isinstance(x, np.generic):
        return x.item()  # a NumPy scalar would widen float32
    if isinstance(x, int | float | np.ndarray) or hasattr(x, "__cuda_array_interface__"):
        return plain(x)
    raise TypeError(
        f"{function.__name__}: takes Tensors, arrays and real numbers, got {type(x).__name__}; wrap it in Tensor(...)"
    )


def _cast_back(output: Any, dtype: np.dtype) -> Any:
    """The output of an op that computed in float32 for 16-bit inputs; other dtypes, as of a comparison, stay."""
    if type(output) is tuple:
        return tuple(_cast_back(part, dtype) for part in output)
    return cast(output, dtype) if output.dtype == FLOAT32 else output


def _several(op: Function, outputs: tuple[Array, ...], recorded: bool) -> tuple[Tensor, ...]:
    """A Tensor for each output of an op."""
    results = tuple(Tensor(_checked(output, op)) for output in outputs)
    if recorded:
        for place, result in enumerate(results):
            result._node = Output(op, place, len(results))
    return results


def _checked(output: Any, op: Function) -> Array:
    """What an op's forward returned, as an array."""
    if not hasattr(output, "dtype"):
        raise TypeError(f"{op.op_name}.forward must return an array, it returned {type(output).__name__}")
    return as_array(output)


def _to_array(data: Any, dtype: Any, device: str | None) -> Array:
    if isinstance(data, Tensor):
        data = data.data
    data = plain(data)
    if not hasattr(data, "dtype"):
        if dtype is not None:
            _check_range(data, as_dtype(dtype), "Tensor")
        data = np.asarray(data)
        if data.dtype == np.float64 and dtype is None:
            data = data.astype(FLOAT32)
    elif not hasattr(data, "__array_interface__") and not hasattr(data, "__cuda_array_interface__"):
        raise TypeError(f"a Tensor holds NumPy or CuPy arrays, got {type(data).__name__}; from_dlpack() takes others")
    if isinstance(data, np.generic):
        data = np.asarray(data)
    if dtype is not None:
        data = cast(data, as_dtype(dtype))
    if data.dtype not in _DTYPES and data.dtype.name != "bfloat16":
        raise TypeError(
            f"a Tensor holds float16, bfloat16, float32, float64, bool or integers, got {data.dtype}"
            + ("; are the nested lists all of one length?" if data.dtype == object else "")
            + ("; is this bfloat16 from a .npz? x.view(ml_dtypes.bfloat16)" if data.dtype == np.dtype("V2") else "")
        )
    return data if device is None else to_device(data, device)


def _check_range(numbers: Any, dtype: np.dtype, op: str) -> None:
    """Python integers, in nested lists or alone, fit into an integer dtype: NumPy's cast would take them modulo 2ⁿ."""
    array = np.asarray(numbers) if dtype.kind in "iu" else np.empty(0)
    if array.size and array.dtype.kind in "iu":
        for extreme in (array.min(), array.max()):
            checks.entry(extreme, dtype, op)


def _explain(error: Exception, op: Function, arrays: list[Any]) -> None:
    """Add to an error from an op's forward what the op was given, and the likely cause."""
    devices = {device_of(x) for x in arrays if hasattr(x, "dtype")}
    if len(devices) > 1:
        error.add_note(f"the inputs are on different devices, {sorted(devices)}: move them with .to(device)")
    error.add_note(f"{op.op_name} was given {describe(arrays)}")
    shapes = [x.shape for x in arrays if hasattr(x, "shape")]
    if "could not be broadcast together" in str(error) and not _broadcast(shapes):
        raise ValueError(
            f"{op.op_name.lower()}: shapes {' and '.join(map(str, shapes))} do not broadcast: counted from the "
            "right, two sizes must be equal or one of them 1"
        ) from error


def _broadcast(shapes: list[tuple[int, ...]]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True
