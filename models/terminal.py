"""L6: programs in a terminal: their flags, tables, and characters that the encoding of the terminal lacks."""

import argparse
import io
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

_DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser without abbreviated flags; the error for an unknown flag suggests a known one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, except for the error."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(unrecognized(unknown, self._option_string_actions))
        return found


def unrecognized(arguments: Iterable[str], flags: Iterable[str]) -> str:
    """The error message for unknown arguments. For an unknown flag, it suggests the flag of `flags` that starts with
    the same letters, else the closest. A dash of another kind, as word processors write, counts as `-`."""
    known, hints = {flag.lstrip(_DASHES): flag for flag in flags}, []
    for argument in arguments:
        name = argument.partition("=")[0].lstrip(_DASHES).replace("_", "-")
        if name and argument[0] in _DASHES:
            longer = [other for other in known if other.startswith(name)]
            hints += [known[close] for close in longer[:1] or get_close_matches(name, known, n=1)]
    hint = f"; did you mean {', '.join(hints)}?" if hints else ""
    return f"unrecognized arguments: {' '.join(arguments)}{hint}"


def table(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """The lines as aligned columns. Columns whose index is in `left` are left-aligned, the others right-aligned."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    left_aligned = {i % len(columns) for i in left}
    for i, column in enumerate(columns):
        widths = [_width(cell) for cell in column]
        spaces = [" " * (max(widths) - width) for width in widths]
        pairs = zip(column, spaces, strict=True)
        columns[i] = [cell + space if i in left_aligned else space + cell for cell, space in pairs]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _width(text: str) -> int:
    """The columns of a terminal that a string takes: two for a wide letter, as in Chinese, none for an accent alone."""
    return sum(0 if unicodedata.combining(x) else 1 + (unicodedata.east_asian_width(x) in "WF") for x in text)


def escape_unencodable() -> None:
    """Print a character that the encoding of stdout or stderr lacks as an escape such as `\\u03bb`, not an error.

    Windows code pages and the C locale lack most characters, so programs call this function first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a caller may have replaced the stream by another object
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """A name from a file, with unprintable characters escaped: they could send commands to the terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


def plural(count: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`, `10,000 classes`."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"
