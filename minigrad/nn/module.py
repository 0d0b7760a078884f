"""L5: Module, the base class of layers and models, a tree of modules with parameters."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.autograd.grad_mode import mode
from minigrad.autograd.hooks import RemovableHandle
from minigrad.backend import plain, to_device
from minigrad.backend.dtypes import cast, is_floating
from minigrad.backend.meta import MetaArray
from minigrad.methods import target
from minigrad.nn import hooks, init
from minigrad.nn.checkpoint import Checkpoint
from minigrad.nn.misfits import misfits
from minigrad.ops import checks

Self = TypeVar("Self", bound="Module")


class IncompatibleKeys(NamedTuple):
    """The result of `load_state_dict`: names that the state_dict lacks, and names that the module lacks."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not any(self):
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


class Parameter(Tensor):
    """A learnable Tensor. Assigned to an attribute of a Module, it is registered as a parameter."""

    def __init__(self, data: Any, requires_grad: bool = True, *, dtype: Any = None, device: str | None = None) -> None:
        super().__init__(data, requires_grad, dtype, device)
        if init.is_meta():
            self.data = MetaArray(self.shape, self.dtype)


class Buffer(Tensor):
    """A Tensor in a Module's state that is not learned, such as a running mean."""

    def __init__(self, data: Any, *, dtype: Any = None, device: str | None = None) -> None:
        super().__init__(data, dtype=dtype, device=device)
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
        self._assign(name, Parameter, param, Parameter)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Assign a buffer. A buffer that is not persistent is not part of the state_dict."""
        self._assign(name, Buffer, tensor, Tensor)
        others = vars(self).get("_not_saved", frozenset()) - {name}
        vars(self)["_not_saved"] = others if persistent else others | {name}

    def add_module(self, name: str, module: "Module | None") -> None:
        """Assign a sub-module. The name need not be a Python identifier: "0" is valid."""
        self._assign(name, Module, module, Module)

    register_module = add_module

    def _assign(self, name: str, kind: type, value: Any, accepted: type) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{_KINDS[kind]} name must be a string, got {type(name).__name__}")
        if hasattr(self, name) and self._kinds.get(name) is not kind:
            raise KeyError(f"attribute {name!r} already exists in {type(self).__name__}")
        if value is not None and not isinstance(value, accepted):
            wrong = type(value).__name__
            raise TypeError(f"cannot assign {wrong!r} as {_KINDS[kind]} {name!r} ({_EXPECTED[kind]} or None expected)")
        self._register(name, kind)
        setattr(self, name, value)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run the forward pre-hooks, `forward`, and the forward hooks."""
        own = self.__dict__
        if "_forward_pre_hooks" in own:
            inputs, options = hooks.before_forward(self, inputs, options)
        backward_hooks = hooks.BackwardHooks(self) if own.get("_backward_hooks") else None
        if backward_hooks is not None:
            inputs = backward_hooks.inputs(inputs)
        forward = self._checkpointed if self.checkpointing and mode.grad_enabled else self.forward
        if mode.observer is None:
            output = forward(*inputs, **options)
        else:
            mode.observer.path.append(self)
            try:
                output = forward(*inputs, **options)
            finally:
                mode.observer.path.pop()
        if "_forward_hooks" in own:
            output = hooks.after_forward(self, inputs, options, output)
        return output if backward_hooks is None else backward_hooks.output(output)

    def _checkpointed(self, x: Tensor) -> Tensor:
        return Tensor.apply(Checkpoint, x, *self.parameters(), module=self)

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args)` before each forward. A return value other than None, a tuple or one value, replaces
        the positional arguments.

        Args:
            prepend: run this hook before the hooks that are registered already.
            with_kwargs: call `hook(module, args, kwargs)`, which returns None or both.
        """
        return hooks.register(self, hooks.PRE, hooks.Hook(hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args, output)`, with_kwargs `hook(module, args, kwargs, output)`, after each forward. A
        return value other than None replaces the output. `prepend`: as for forward pre-hooks."""
        return hooks.register(self, hooks.FORWARD, hooks.Hook(hook, with_kwargs), prepend)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(module, grad_input, grad_output)` when backward has computed the gradients of the inputs. A return
        value other than None replaces grad_input.

        grad_input and grad_output are tuples: a gradient for each positional argument and for each output, or None.
        """
        return hooks.register(self, hooks.BACKWARD, hooks.Hook(hook), prepend)

    # The tree -------------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The direct sub-modules, with their names; shared modules only once."""
        seen: set[Module] = set()
        for name, child in self._own(Module):
            if child not in seen:
                seen.add(child)
                yield name, child

    def children(self) -> Iterator["Module"]:
        """The direct sub-modules; shared modules only once."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, "Module"]]:
        """This module, named `prefix`, and all nested modules, parents first; by default shared modules only once."""
        return self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, name: str, seen: "set[Module] | None") -> Iterator[tuple[str, "Module"]]:
        if seen is not None and self in seen:
            return
        if seen is not None:
            seen.add(self)
        yield name, self
        for child_name, child in self._own(Module):
            yield from child._walk(f"{name}.{child_name}" if name else child_name, seen)

    def modules(self) -> Iterator["Module"]:
        """This module and all nested modules."""
        return (module for _, module in self.named_modules())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters, their names preceded by `prefix`; recurse=False: only this module's own. By default shared
        parameters only once."""
        return self._named([Parameter], prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters; recurse=False: only this module's own."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """All buffers, with the arguments of `named_parameters`."""
        return self._named([Buffer], prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers; recurse=False: only this module's own."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def _named(
        self, kinds: Sequence[type], prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Any]]:
        seen = set()
        modules = self.named_modules(prefix, remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in (entry for kind in kinds for entry in module._own(kind)):
                if not remove_duplicate or id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def _state(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """All parameters and persistent buffers under every name, in the order of modules."""
        for path, module in self.named_modules(prefix, remove_duplicate=False):
            not_saved = vars(module).get("_not_saved", ())
            for name, value in (*module._own(Parameter), *module._own(Buffer)):
                if name not in not_saved:
                    yield f"{path}.{name}" if path else name, value

    def get_submodule(self, target: str) -> Any:
        """The nested module of this dotted name, such as "blocks.0.attn"; "" is this module."""
        module = self
        for name in target.split(".") if target else ():
            children = dict(module._own(Module))
            if name not in children:
                raise AttributeError(f"{type(module).__name__} has no sub-module {name!r}, of {target!r}")
            module = children[name]
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter of this dotted name, such as "blocks.0.attn.qkv.weight"."""
        return self._get(target, Parameter)

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of this dotted name."""
        return self._get(target, Buffer)

    def _get(self, target: str, kind: type) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        own = dict(module._own(kind))
        if name not in own:
            raise AttributeError(f"{type(module).__name__} has no {_KINDS[kind]} {name!r}, of {target!r}")
        return own[name]

    def apply(self: Self, function: Callable[["Module"], Any]) -> Self:
        """Call `function(module)` for all nested modules, then this module, as to initialise a model."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def _own(self, kind: type) -> Iterator[tuple[str, Any]]:
        """The registered values of one kind in this module itself, without None."""
        values = vars(self)
        return ((name, values[name]) for name, k in self._kinds.items() if k is kind and values.get(name) is not None)

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> "OrderedDict[str, Tensor]":
        """All parameters and persistent buffers by name, in the order of modules. The Tensors share memory with the
        module's; with keep_vars, they are the module's.

        As in PyTorch, a shared parameter has an entry for each of its names.
        """
        return OrderedDict((prefix + name, x if keep_vars else x.detach()) for name, x in self._state())

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy values into the parameters and buffers of this module, cast to their dtypes and devices.

        Args:
            state_dict: Tensors or arrays by name.
            strict: raise an error for missing and unexpected names, instead of ignoring them. A shared parameter needs
                only one of its names. `num_batches_tracked` of BatchNorm2d is optional.

        Returns:
            The missing and the unexpected names, in attributes missing_keys and unexpected_keys.

        Raises:
            ValueError: a name is missing or unexpected, a shape differs, two names of one shared parameter have
                different values, values are out of range for the dtype here or not real, or one side has meta arrays,
                as created under `init.meta_init()`. In each case, no parameter is changed.
        """
        own = dict(self._state())
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
        missing, unexpected = ([name for name in names if name not in others and name not in optional]
                               for names, others in ((own, arrays), (arrays, own)))  # fmt: skip
        return IncompatibleKeys(missing, unexpected)

    # Modes ----------------------------------------------------------------------------------------------------------

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode: dropout is active, and batch normalisation uses the statistics of the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Set evaluation mode: dropout is off, and batch normalisation uses running statistics."""
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Set `requires_grad` of all parameters: False freezes them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None, or with set_to_none=False to 0, in place."""
        zero_grad(self.parameters(), set_to_none)

    def to(self: Self, *targets: Any, dtype: Any = None, device: str | None = None) -> Self:
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

    def float(self: Self) -> Self:
        """`to(dtype=float32)`."""
        return self.to(dtype="float32")

    def double(self: Self) -> Self:
        """`to(dtype=float64)`."""
        return self.to(dtype="float64")

    def half(self: Self) -> Self:
        """`to(dtype=float16)`."""
        return self.to(dtype="float16")

    def bfloat16(self: Self) -> Self:
        """`to(dtype="bfloat16")`."""
        return self.to(dtype="bfloat16")

    def cpu(self: Self) -> Self:
        """`to("cpu")`."""
        return self.to("cpu")

    def cuda(self: Self, device: int | None = None) -> Self:
        """`to("cuda")`, or the GPU of this index."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def __repr__(self) -> str:
        children = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self._own(Module)]
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


def zero_grad(parameters: Iterable[Tensor], set_to_none: bool = True) -> None:
    """Set gradients to None, or to 0, in place."""
    for parameter in parameters:
        if set_to_none:
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad[...] = 0
