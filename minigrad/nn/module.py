"""L5: Module, the base class of layers and models, a tree of modules with parameters."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.autograd.grad_mode import mode
from minigrad.backend import Array, plain, to_device
from minigrad.backend.dtypes import cast, is_floating
from minigrad.backend.meta import MetaArray
from minigrad.methods import target
from minigrad.nn import init
from minigrad.nn.checkpoint import Checkpoint
from minigrad.ops import checks

_hooks_lock = threading.Lock()


class Parameter(Tensor):
    """A learnable Tensor. Assigned to an attribute of a Module, it is registered as a parameter."""

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)
        if init.is_meta():
            self.data = MetaArray(self.shape, self.dtype)


class Buffer(Tensor):
    """A Tensor in a Module's state that is not learned, such as a running mean."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        if init.is_meta():
            self.data = MetaArray(self.shape, self.dtype)


class Module:
    """The base class of layers and models: named parameters, buffers and sub-modules, and a `forward`.

    A Parameter, Buffer or Module assigned to an attribute is registered under the attribute's name, in the order of
    assignment, for `parameters`, `state_dict` and other methods. As in PyTorch, modules in a list or dict are not
    registered: use a ModuleList. Names in nested modules are joined by dots: `blocks.0.attn.qkv.weight`.

    By PyTorch's rules, a registered name accepts None and values of its kind; a buffer also accepts any Tensor, a
    Parameter can replace any kind, and a Module can replace a buffer. Other assignments raise TypeError. To change
    values, use `init`, `load_state_dict` or `weight.data[...] = values`.

    With `checkpointing`, the activations of this module are not saved, but recomputed in backward (gradient
    checkpointing). Its forward must map one Tensor to one Tensor.
    """

    training: bool = True
    checkpointing: bool = False
    optional_state: ClassVar[tuple[str, ...]] = ()  # names that may be missing or unexpected in a state_dict

    def __setattr__(self, name: str, value: Any) -> None:
        kinds = self._kinds
        old, new = kinds.get(name), next((kind for kind in _KINDS if isinstance(value, kind)), None)
        if old is not None and value is not None and not isinstance(value, _ACCEPTED[old]):
            raise TypeError(
                f"cannot assign {type(value).__name__!r} as {_KINDS[old]} {name!r} of {type(self).__name__} "
                f"({_EXPECTED[old]} or None expected); for a plain attribute, del module.{name} first"
            )
        if new is not None and new is not old:
            self._register(name, new)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        if name in self._kinds:
            vars(self)["_registered"] = {other: kind for other, kind in self._kinds.items() if other != name}

    @property
    def _kinds(self) -> dict[str, type]:
        """The kind of each registered name: Parameter, Module or Buffer. The value of a registered name may be None."""
        return vars(self).get("_registered", {})

    def _register(self, name: str, kind: type) -> None:
        """Store the kind of a name in a new dict: a copy of the module shares the old dict."""
        if not name or "." in name:
            raise KeyError(f"{_KINDS[kind]} name must not be empty and must not contain '.', got {name!r}")
        others = {other: kind for other, kind in self._kinds.items() if other != name}
        vars(self)["_registered"] = {**others, name: kind}

    def register_parameter(self, name: str, param: "Parameter | None") -> None:
        """Assign a parameter, or None for an absent parameter, such as the bias of a layer with bias=False."""
        self._register(name, Parameter)
        setattr(self, name, param)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run `forward`, then the forward hooks."""
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
        """Call `hook(module, inputs, output)` after each forward. A return value other than None replaces the output.

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
        """The direct sub-modules, with their names."""
        return self._own(Module)

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, "Module"]]:
        """This module, named `prefix`, and all nested modules, parents first; by default shared modules only once."""
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
        """This module and all nested modules."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their names; by default shared parameters only once."""
        return self._named([Parameter], remove_duplicate)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All buffers with their names; by default shared buffers only once."""
        return self._named([Buffer], remove_duplicate)

    def _named(self, kinds: Sequence[type], remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        for prefix, module in self.named_modules(remove_duplicate=remove_duplicate):
            for name, value in (entry for kind in kinds for entry in module._own(kind)):
                if not remove_duplicate or id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value

    def _own(self, kind: type) -> Iterator[tuple[str, Any]]:
        """The registered values of one kind in this module itself, without None."""
        values = vars(self)
        return ((name, values[name]) for name, k in self._kinds.items() if k is kind and values.get(name) is not None)

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> "OrderedDict[str, Tensor]":
        """All parameters and buffers by name, in the order of modules. The Tensors share memory with the module's.

        As in PyTorch, a shared parameter has an entry for each of its names.
        """
        named = self._named([Parameter, Buffer], remove_duplicate=False)
        return OrderedDict((name, tensor.detach()) for name, tensor in named)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copy values into the parameters and buffers of this module, cast to their dtypes and devices.

        Args:
            state_dict: Tensors or arrays by name.
            strict: raise an error for missing and unexpected names, instead of ignoring them. A shared parameter needs
                only one of its names. `num_batches_tracked` of BatchNorm2d is optional.

        Raises:
            ValueError: a name is missing or unexpected, a shape differs, two names of one shared parameter have
                different values, values are out of range for the dtype here or not real, or one side has meta arrays,
                as created under `init.meta_init()`. In each case, no parameter is changed.
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
                f"{type(self).__name__} or the state_dict has meta arrays, without values, as created under meta_init()"
            )
        if complaints := misfits(own, arrays, strict, optional):
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
        """Set training mode: dropout is active, and batch normalisation uses the statistics of the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Set evaluation mode: dropout is off, and batch normalisation uses running statistics."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> "Module":
        """Set `requires_grad` of all parameters: False freezes them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None) -> "Module":
        """Move all parameters and buffers to a device, cast floating-point ones to a dtype, or both, in place.

        The gradient of a parameter that was moved or cast is set to None.
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
        """The arguments that `repr` shows in parentheses."""
        return ""


_KINDS = {Parameter: "parameter", Module: "child module", Buffer: "buffer"}
_EXPECTED = {Parameter: "nn.Parameter", Module: "nn.Module", Buffer: "nn.Buffer, Tensor"}
_ACCEPTED: dict[type, tuple[type, ...]] = {  # kind of a registered name -> types of values it accepts
    Parameter: (Parameter,),
    Module: (Parameter, Module),
    Buffer: (Tensor, Module),
}


def misfits(
    own: Mapping[str, Tensor], arrays: Mapping[str, Array], strict: bool, optional: Collection[str]
) -> list[str]:
    """Why `arrays` cannot be loaded into the tensors `own`: a line for each name that does not fit.

    Args:
        strict: report missing and unexpected names, other than the `optional` names.
    """
    common = [name for name in own if name in arrays]
    found = [f"mismatch    {name}: {arrays[name].shape} in the file, {own[name].shape} here"
             for name in common if arrays[name].shape != own[name].shape]  # fmt: skip
    found += [f"unfit       {name}: {arrays[name].dtype} with values that {own[name].dtype} cannot hold"
              for name in common if not can_hold(own[name].dtype, arrays[name])]  # fmt: skip
    first: dict[int, str] = {}  # id of a tensor -> the first of its names
    for name in common:
        other = first.setdefault(id(own[name]), name)
        if other != name and not _equal(arrays[other], arrays[name]):
            found.append(f"differing   {other} and {name}: one parameter here, two values in the file")
    if strict:
        found += [f"missing     {name} {tensor.shape}" for name, tensor in own.items()
                  if id(tensor) not in first and name not in optional]  # fmt: skip
        found += [f"unexpected  {name} {arrays[name].shape}" for name in arrays
                  if name not in own and name not in optional]  # fmt: skip
    return found


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def can_hold(dtype: np.dtype, array: Any) -> bool:
    """True if `array` is real and fits into `dtype`: without overflow, and for an integer dtype exactly."""
    if not is_floating(array.dtype) and array.dtype.kind not in "biu":
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        result = cast(array, dtype)
    if result is array:
        return True
    return not bool((np.isinf(result) & ~np.isinf(array)).any() if is_floating(dtype) else (result != array).any())
