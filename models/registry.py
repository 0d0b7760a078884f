"""L6: models by name."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

from models.model import ImageModel

Patterns = str | Sequence[str]
"""A pattern such as `vit_*_cifar`, or several."""

_MODELS: dict[str, tuple[type[ImageModel], dict[str, Any]]] = {}


def register(name: str, cls: type[ImageModel], **config: Any) -> None:
    """Register a model: `create_model(name)` returns `cls(**config)`."""
    if name in _MODELS:
        raise ValueError(f"a model named {name!r} is already registered")
    _MODELS[name] = (cls, config)


def matching(names: Iterable[str], filter: Patterns = "", exclude_filters: Patterns = "") -> list[str]:
    """The names that match a pattern of `filter` and none of `exclude_filters`, sorted. An empty `filter`: all."""
    wanted, unwanted = ([x] if isinstance(x, str) else [*x] for x in (filter or "*", exclude_filters))
    return sorted(
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in wanted) and not any(fnmatch(name, pattern) for pattern in unwanted)
    )


def registered() -> list[str]:
    """The names of all models, in order of registration: file by file, each by size, with its CIFAR models last."""
    return list(_MODELS)


def create_model(name: str, **overrides: Any) -> ImageModel:
    """A newly initialized model. Any argument of its class, such as `num_classes`, `img_size`, `in_chans` or
    `drop_path_rate`, overrides the value in the named configuration.

    Raises:
        ValueError: there is no model of this name.
        TypeError: the class of the model has no argument of this name.
    """
    known = model_arguments(name)
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise TypeError(f"{name} has no argument {', '.join(unknown)}; it has {', '.join(known)}")
    cls, config = _MODELS[name]
    return cls(**(config | overrides))


def model_class(name: str) -> type[ImageModel]:
    """The class of a model.

    Raises:
        ValueError: there is no model of this name.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=3)
        families = {other.partition("_")[0] for other in _MODELS}
        family = difflib.get_close_matches(name.partition("_")[0], families, n=1)
        hint = f"python -m models '{family[0]}_*' lists similar names" if family else "python -m models lists all"
        if close:
            hint = f"did you mean {', '.join(close)}?"
        raise ValueError(f"there is no model {name!r}; {hint}")
    return _MODELS[name][0]


def model_arguments(name: str) -> dict[str, Any]:
    """The arguments of a model's class, with the values that `create_model(name)` uses.

    If a class passes `**arguments` on to its base class, the arguments of the base class are included.

    Raises:
        ValueError: there is no model of this name.
    """
    found: dict[str, Any] = {}
    for cls in inspect.getmro(model_class(name)):
        parameters = inspect.signature(cls).parameters.values()
        found = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD} | found
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found | _MODELS[name][1]
