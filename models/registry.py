"""L6: models by name."""

import difflib
import inspect
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

from minigrad import nn

_MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {}


def register(name: str, build: Callable[..., nn.Module], **config: Any) -> None:
    """Let `create_model(name)` call `build(**config)`."""
    if name in _MODELS:
        raise ValueError(f"two models are called {name!r}")
    _MODELS[name] = (build, config)


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a pattern such as `vit_*_cifar`, sorted."""
    return sorted(name for name in _MODELS if fnmatch(name, pattern))


def create_model(name: str, **overrides: Any) -> nn.Module:
    """A freshly initialised model; `num_classes`, `img_size`, `in_chans`, `drop_path_rate` and the other arguments of
    its class may be given to override the named configuration.

    Raises:
        ValueError: there is no model of this name.
        TypeError: the model has no such argument.
    """
    if name not in _MODELS:
        close = ", ".join(difflib.get_close_matches(name, _MODELS, n=3))
        raise ValueError(f"there is no model {name!r}; " + (f"did you mean {close}?" if close else "see list_models()"))
    build, config = _MODELS[name]
    known = inspect.signature(build).parameters
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise TypeError(f"{name} has no argument {', '.join(unknown)}; it has {', '.join(known)}")
    return build(**(config | overrides))
