"""L5: containers of modules and parameters, whose elements are registered, unlike those of a list or a dict."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, ClassVar, TypeVar

from minigrad._tensor import Tensor
from minigrad.nn.module import Module, Parameter

List = TypeVar("List", bound="_List")


class _List(Module):
    """Elements of one kind, registered under their indices: "0", "1", ..."""

    kind: ClassVar[type] = Module

    def __len__(self) -> int:
        return sum(1 for _ in self._own(self.kind))

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._own(self.kind))

    def __getitem__(self, index: int | slice) -> Any:
        """The element at an index; for a slice, a container of the same class that shares the elements."""
        found = list(self)[index]
        return self._like(found) if isinstance(index, slice) else found

    def __setitem__(self, index: int, value: Any) -> None:
        name, _ = [*self._own(self.kind)][index]
        setattr(self, name, self._checked(value))

    def __delitem__(self, index: int | slice) -> None:
        values = list(self)
        del values[index]
        self._replace(values)

    def __add__(self: List, other: Iterable[Any]) -> List:
        return self._like([*self, *other])

    def _like(self: List, values: list[Any]) -> List:
        """A container of the same class."""
        return type(self)(values)  # type: ignore[call-arg]

    def append(self: List, value: Any) -> List:
        """Append an element."""
        self._put(str(len(self)), value)
        return self

    def extend(self: List, values: Iterable[Any]) -> List:
        """Append several elements."""
        for value in list(values):
            self.append(value)
        return self

    __iadd__ = extend

    def insert(self: List, index: int, value: Any) -> List:
        """Insert an element before the element at `index`; later elements are renamed."""
        values = list(self)
        values.insert(index, self._checked(value))
        self._replace(values)
        return self

    def pop(self, index: int = -1) -> Any:
        """Remove the element at `index`, and return it; later elements are renamed."""
        value = self[index]
        del self[index]
        return value

    def _replace(self, values: Iterable[Any]) -> None:
        for name, _ in [*self._own(self.kind)]:
            delattr(self, name)
        self.extend(values)

    def _put(self, name: str, value: Any) -> None:
        self._assign(name, self.kind, self._checked(value), self.kind)

    def _checked(self, value: Any) -> Any:
        if not isinstance(value, Module):
            raise TypeError(f"{type(self).__name__}: elements must be Modules, got {type(value).__name__}")
        return value


class ModuleList(_List):
    """A list of modules, named by their indices: "0", "1", ..."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        self.extend(modules or ())


class Sequential(ModuleList):
    """Apply modules in sequence: `Sequential(Linear(4, 8), GELU(), Linear(8, 2))`.

    A dict, `Sequential({"fc": Linear(4, 2), "act": GELU()})`, names the modules; a slice keeps the names.
    """

    def __init__(self, *modules: Any) -> None:
        named = modules[0].items() if len(modules) == 1 and isinstance(modules[0], Mapping) else enumerate(modules)
        for name, module in named:
            self._put(str(name), module)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(dict([*self._own(Module)][index]))
        return super().__getitem__(index)

    def __add__(self, other: Iterable[Any]) -> "Sequential":
        return type(self)(*self, *other)


def _as_parameter(value: Any) -> Any:
    """A Tensor as a Parameter, as PyTorch's containers of parameters convert their elements."""
    if not isinstance(value, Tensor):
        raise TypeError(f"a ParameterList or ParameterDict holds Parameters and Tensors, got {type(value).__name__}")
    return value if isinstance(value, Parameter) else Parameter(value)


class ParameterList(_List):
    """A list of parameters, named by their indices."""

    kind = Parameter

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        self.extend(values or ())

    def _checked(self, value: Any) -> Any:
        return _as_parameter(value)


class _Dict(Module, MutableMapping):
    """A dict whose values, of one kind, are registered under their keys."""

    kind: ClassVar[type] = Module
    __eq__, __hash__ = object.__eq__, object.__hash__  # by identity, as for every module

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._own(self.kind))

    def __getitem__(self, key: str) -> Any:
        return dict(self._own(self.kind))[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._assign(key, self.kind, value, self.kind)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        delattr(self, key)


class ModuleDict(_Dict):
    """A dict of modules, named by their keys. A key must not be the name of a method, such as "items"."""

    def __init__(self, modules: Any = None) -> None:
        self.update(modules or {})


class ParameterDict(_Dict):
    """A dict of parameters, named by their keys; Tensors become Parameters."""

    kind = Parameter

    def __init__(self, parameters: Any = None) -> None:
        self.update(parameters or {})

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _as_parameter(value))
