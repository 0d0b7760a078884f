"""L7: `flag`, which declares a flag once: as a field of `Settings`. Imports no NumPy: `--help` is immediate."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf, nan
from typing import Any

Pair = tuple[float, float]
"""The type of a setting that is a minimum and a maximum."""


def flag(text: str, **declaration: Any) -> Any:
    """A field of `Settings`, declared as the flag of the same name. The keyword arguments are the fields of `Flag`."""
    return field(metadata={"text": text, **declaration})


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of the command line, which is also a setting of a TOML file.

    Fields:
        name, type: of the field of `Settings`. The type `int | None` is a number of images; None means all. `Pair` is
            a minimum and a maximum, two values on the command line.
        text: the line of --help.
        group: heading of the group that starts with this flag in --help.
        default: None if the default is derived from other settings.
        shapes: default for the dataset `shapes`; None: the same as `default`.
        shown: description of a derived default in --help.
        metavar: name of the value, or names of the values, in --help.
        choices: allowed strings.
        at_least, above, at_most, below: bounds of a number.
        negatable: if False, a bool has no flag --no-NAME.
    """

    name: str
    type: Any
    text: str
    group: str = ""
    default: Any = None
    shapes: Any = None
    shown: str = ""
    metavar: str | tuple[str, str] | None = None
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    negatable: bool = True

    @property
    def option(self) -> str:
        """The flag on the command line, such as `--batch-size`."""
        return option(self.name)

    @property
    def help(self) -> str:
        """The text and the default, such as `number of epochs (4 for shapes, else 50)`."""
        default = self.shown or show(self.default)
        return f"{self.text} ({default if self.shapes is None else f'{show(self.shapes)} for shapes, else {default}'})"

    def default_for(self, dataset: str) -> Any:
        """The default for one dataset."""
        return self.shapes if dataset == "shapes" and self.shapes is not None else self.default

    def read(self, argument: str) -> Any:
        """The value of a command-line argument.

        Raises:
            ValueError: the value is not allowed.
        """
        return None if self._means_all(argument) else self._allowed(argument)

    def check(self, value: Any) -> Any:
        """The value of a TOML file, a recipe or a stored run, converted to the type of the setting.

        Raises:
            ValueError: the value has another type or is not allowed.
        """
        if self._means_all(value):
            return None
        accepted, expected = _TOML_TYPES[self.type]
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.type is not bool):
            raise ValueError(f"must be {expected}, got {shorten(value)}")
        if self.type == Pair:
            return self._pair(value)
        return value if self.type is bool else self._allowed(value)

    def _pair(self, values: Any) -> tuple[float, float]:
        """Two allowed numbers, in order; else ValueError."""
        if len(values) != 2 or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"must be {_TOML_TYPES[Pair][1]}, got {shorten(values)}")
        low, high = (float(self._allowed(value)) for value in values)
        if low > high:
            raise ValueError(f"must be a minimum and a maximum, got {show((low, high))}")
        return low, high

    def _means_all(self, value: Any) -> bool:
        """Whether a value of the type `int | None` stands for all images."""
        return self.type == int | None and value in (None, "all")

    def _allowed(self, value: Any) -> str | int | float:
        """The value as a string or number of this flag; ValueError if the value is not in `choices` or out of range."""
        if self.type is str:
            if self.choices and value not in self.choices:
                close = get_close_matches(value, self.choices, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"must be one of {', '.join(self.choices)}, got {shorten(value)}{hint}")
            return value
        try:
            number = int(value) if self.type in (int, int | None) else float(value)
        except (ValueError, OverflowError):
            number = nan
        low = (self.at_least is None or number >= self.at_least) and (self.above is None or number > self.above)
        high = (self.at_most is None or number <= self.at_most) and (self.below is None or number < self.below)
        if not (-inf < number < inf and low and high):
            raise ValueError(f"must be {self._domain()}, got {shorten(value)}")
        return number

    def _domain(self) -> str:
        """The allowed numbers in words, such as `a number above 0 and at most 1`."""
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        words = " and ".join(f"{word} {limit:.10g}" for word, limit in limits.items() if limit is not None)
        if self.at_least is not None and self.at_most is not None:
            words = f"from {self.at_least:.10g} to {self.at_most:.10g}"
        kind = "a whole number" if self.type in (int, int | None) else "a number"
        return f"{kind} {words}{', or all' if self.type == int | None else ''}"


_TOML_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    int | None: ((int,), 'a whole number, or "all"'),
    float: ((int, float), "a number"),
    str: ((str,), "a string in quotation marks"),
    Pair: ((list, tuple), "two numbers in brackets"),
}
"""For each type of a setting, the accepted types of the TOML value and their description."""


def option(name: str) -> str:
    """The flag of a setting: `batch_size` -> `--batch-size`."""
    return f"--{name.replace('_', '-')}"


def show(value: Any) -> str:
    """The value of a setting as `--help` shows it: `all`, `yes`, `0.001`."""
    if value is None:
        return "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def shorten(value: Any) -> str:
    """The repr of a value, on one line and cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
