"""L5: Module, a tree of layers with parameters."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.autograd import writes
from minigrad.autograd.grad_mode import mode
from minigrad.backend import Array, plain, to_device
from minigrad.backend.dtypes import cast, is_floating
from minigrad.backend.meta import MetaArray
from minigrad.methods import target
from minigrad.nn import init
from minigrad.nn.checkpoint import Checkpoint
from minigrad.ops import checks
from minigrad.tensor import Tensor

_hooks_lock = threading.Lock()


class Parameter(Tensor):
    """A Tensor that is learned: assigned to an attribute of a Module, it is one of its parameters."""

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)
        if init.is_meta():
            self.data = MetaArray(self.shape, self.dtype)


class Buffer(Tensor):
    """A Tensor that belongs to a Module's state but is not learned, such as a running mean."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        if init.is_meta():
            self.data = MetaArray(self.shape, self.dtype)


class Module:
    """A layer or a model: parameters, buffers and sub-modules by name, and a `forward`.

    Whatever Parameter, Buffer or Module is assigned to an attribute is registered under its name, and found again, in
    the order of assignment, by `parameters`, `state_dict` and the others; what is in a list or a dict is not, as in
    PyTorch: use a ModuleList. Names are joined by dots: `blocks.0.attn.qkv.weight`.

    A registered name keeps its kind, by PyTorch's rules: it takes another of its kind, or None; a buffer's takes any
    Tensor; a Parameter takes the place of anything, a Module that of a buffer. Anything else is a TypeError. Change the
    values themselves with `init`, `load_state_dict` or `weight.data[...] = values`.

    A module that is `checkpointing` keeps none of its activations, and makes them again in backward. It takes one
    Tensor and returns one.
    """

    training: bool = True
    checkpointing: bool = False
    optional_state: ClassVar[tuple[str, ...]] = ()  # buffers that a state may lack, or have where the module does not

    def __setattr__(self, name: str, value: Any) -> None:
        kinds = self._kinds
        held, given = kinds.get(name), next((kind for kind in _KINDS if isinstance(value, kind)), None)
        if held is not None and value is not None and not isinstance(value, _TAKEN_BY[held]):
            raise TypeError(
                f"cannot assign {type(value).__name__!r} as {_KINDS[held]} {name!r} of {type(self).__name__} "
                f"({_EXPECTED[held]} or None expected); del it first to have a plain attribute of this name"
            )
        if given is not None and given is not held:
            self._register(name, given)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        if name in self._kinds:
            vars(self)["_registered"] = {other: kind for other, kind in self._kinds.items() if other != name}

    @property
    def _kinds(self) -> dict[str, type]:
        """The kind of each registered name: Parameter, Module or Buffer, also where its value is None."""
        return vars(self).get("_registered", {})

    def _register(self, name: str, kind: type) -> None:
        """Note the kind of a name, in a new dict: a copy of the module keeps its own."""
        if not name or "." in name:
            raise KeyError(f"{_KINDS[kind]} name must not be empty and must not contain '.', got {name!r}")
        others = {other: kind for other, kind in self._kinds.items() if other != name}
        vars(self)["_registered"] = {**others, name: kind}

    def register_parameter(self, name: str, param: "Parameter | None") -> None:
        """Assign a parameter, or None where a layer is made without it: the name takes nothing else later."""
        self._register(name, Parameter)
        setattr(self, name, param)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run `forward`, then the hooks on it."""
        forward = self._checkpointed if self.checkpointing and mode.grad_enabled else self.forward
        if mode.observer is None:
            output = forward(*inputs, **options)
        else:
            mode.observer.path.append(self)
            try:
                output = forward(*inputs, **options)
            finally:
                mode.observer.path.pop()
        for hook in self.__dict__.get("_forward_hooks", ()):
            replaced = hook(self, inputs, output)
            output = output if replaced is None else replaced
        return output

    def _checkpointed(self, x: Tensor) -> Tensor:
        return Tensor.apply(Checkpoint, x, *self.parameters(), module=self)

    def register_forward_hook(self, hook: Callable[["Module", tuple[Any, ...], Any], Any]) -> Callable[[], None]:
        """Call `hook(module, inputs, output)` after each forward; what it returns, unless None, is the new output.

        Returns:
            A function that removes the hook.
        """
        with _hooks_lock:
            self.__dict__["_forward_hooks"] = [*self.__dict__.get("_forward_hooks", []), hook]

        def remove() -> None:
            with _hooks_lock:
                self.__dict__["_forward_hooks"] = [h for h in self.__dict__["_forward_hooks"] if h is not hook]

        return remove

    # The tree -------------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The sub-modules directly below this one."""
        return self._own(Module)

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, "Module"]]:
        """This module, named `prefix`, and all below it, parents first; one that is shared comes once, or each time."""
        return self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, name: str, seen: "set[Module] | None") -> Iterator[tuple[str, "Module"]]:
        if seen is not None and self in seen:
            return
        if seen is not None:
            seen.add(self)
        yield name, self
        for child_name, child in self.named_children():
            yield from child._walk(f"{name}.{child_name}" if name else child_name, seen)

    def modules(self) -> Iterator["Module"]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """All parameters by their dotted names; one that is shared comes once, or under each of its names."""
        return self._named([Parameter], remove_duplicate)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All buffers by their dotted names; one that is shared comes once, or under each of its names."""
        return self._named([Buffer], remove_duplicate)

    def _named(self, kinds: Sequence[type], remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        for prefix, module in self.named_modules(remove_duplicate=remove_duplicate):
            for name, value in (entry for kind in kinds for entry in module._own(kind)):
                if not remove_duplicate or id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value

    def _own(self, kind: type) -> Iterator[tuple[str, Any]]:
        """What is registered in this module itself as of this kind, and is not None."""
        values = vars(self)
        return ((name, values[name]) for name, k in self._kinds.items() if k is kind and values.get(name) is not None)

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> "OrderedDict[str, Tensor]":
        """All parameters and buffers by name, module by module. The Tensors share memory with the module's.

        One that is shared has an entry for each of its names, as in PyTorch.
        """
        named = self._named([Parameter, Buffer], remove_duplicate=False)
        return OrderedDict((name, tensor.detach()) for name, tensor in named)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copy values into the parameters and buffers of these names, keeping this module's dtypes and devices.

        Args:
            state_dict: Tensors or arrays by name.
            strict: refuse a missing or an unexpected name; otherwise these are passed over. Of the names of one shared
                parameter any will do. A batch normalisation's `num_batches_tracked` may be missing, or be there where
                the module has no need of it.

        Raises:
            ValueError: a name is missing or unexpected, a shape differs, two names of one shared parameter have
                different values, or a value is not of real numbers that the dtype here can hold; or one side has no
                numbers, as in a model made under `init.meta_init()`. Nothing has been loaded then.
        """
        own: dict[str, Tensor] = dict(self._named([Parameter, Buffer], remove_duplicate=False))
        optional = {f"{prefix}.{name}" if prefix else name
                    for prefix, module in self.named_modules(remove_duplicate=False)
                    for name in module.optional_state}  # fmt: skip
        arrays = {
            name: value.data if isinstance(value, Tensor) else np.asarray(plain(value))
            for name, value in state_dict.items()
        }
        if any(isinstance(x, MetaArray) for x in [*arrays.values(), *(tensor.data for tensor in own.values())]):
            raise ValueError(
                f"{type(self).__name__}, or what is to be loaded, has no numbers: it was made under meta_init()"
            )
        complaints = [f"misshapen   {name}: {arrays[name].shape} in the file, {own[name].shape} here"
                      for name in own if name in arrays and arrays[name].shape != own[name].shape]  # fmt: skip
        complaints += [f"unfit       {name}: {arrays[name].dtype} with values that {own[name].dtype} cannot hold"
                       for name in own if name in arrays and not can_hold(own[name].dtype, arrays[name])]  # fmt: skip
        first: dict[int, str] = {}  # of the names in the state of each tensor here
        for name, tensor in own.items():
            other = first.setdefault(id(tensor), name) if name in arrays else name
            if other != name and not _equal(arrays[other], arrays[name]):
                complaints.append(f"differing   {other} and {name}: one parameter here, two in the file")
        if strict:
            complaints += [f"missing     {name} {tensor.shape}" for name, tensor in own.items()
                           if id(tensor) not in first and name not in optional]  # fmt: skip
            complaints += [f"unexpected  {name} {arrays[name].shape}" for name in arrays
                           if name not in own and name not in optional]  # fmt: skip
        if complaints:
            raise ValueError(
                f"these weights do not fit {type(self).__name__}, and none was loaded:\n  {checks.listed(complaints)}\n"
                "Was the model created with the same name, num_classes and img_size?"
            )
        for name, tensor in own.items():
            if name in arrays:
                tensor.data[...] = to_device(cast(arrays[name], tensor.dtype), tensor.device)
        writes.note(tensor.data for name, tensor in own.items() if name in arrays)

    # Modes ----------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Training mode: dropout drops, batch normalisation uses the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Evaluation mode."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> "Module":
        """Make all parameters learnable, or freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None) -> "Module":
        """Move all parameters and buffers to a device, or floating-point ones to a dtype, or both. In place.

        A gradient that no longer fits its parameter is forgotten.
        """
        dtype, device = target(*targets, dtype=dtype, device=device)
        for _, tensor in [*self.named_parameters(), *self.named_buffers()]:
            data = tensor.data if device is None else to_device(tensor.data, device)
            data = data if dtype is None or not is_floating(data.dtype) else cast(data, dtype)
            if data is not tensor.data:
                tensor.data, tensor.grad = data, None
        return self

    def __repr__(self) -> str:
        children = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.named_children()]
        inner = "\n  " + "\n  ".join(children) + "\n" if children else self.extra_repr()
        return f"{type(self).__name__}({inner})"

    def extra_repr(self) -> str:
        """What a layer shows of itself between the brackets."""
        return ""


_KINDS = {Parameter: "parameter", Module: "child module", Buffer: "buffer"}
_EXPECTED = {Parameter: "nn.Parameter", Module: "nn.Module", Buffer: "nn.Buffer, Tensor"}
_TAKEN_BY: dict[type, tuple[type, ...]] = {
    Parameter: (Parameter,),
    Module: (Parameter, Module),
    Buffer: (Tensor, Module),
}


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def can_hold(dtype: np.dtype, array: Any) -> bool:
    """Whether the numbers of an array are real, and in this dtype neither another one, if whole, nor infinite."""
    if not is_floating(array.dtype) and array.dtype.kind not in "biu":
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        held = cast(array, dtype)
    if held is array:
        return True
    return not bool((np.isinf(held) & ~np.isinf(array)).any() if is_floating(dtype) else (held != array).any())
