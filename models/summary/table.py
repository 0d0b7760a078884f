"""L6: text for a terminal: tables, and characters that its encoding lacks."""

import io
import sys
from collections.abc import Sequence


def table(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Columns as wide as they must be; those in `left` begin alike, the others, of numbers, end alike."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    aligned_left = {i % len(columns) for i in left}
    for i, column in enumerate(columns):
        width = max(map(len, column))
        columns[i] = [cell.ljust(width) if i in aligned_left else cell.rjust(width) for cell in column]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def escape_unencodable() -> None:
    """From now on, print a character that the terminal's encoding lacks as `\\u03bb`, instead of failing. Programs call
    this first: Windows' code pages and the C locale lack most characters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a caller has put in its place
            stream.reconfigure(errors="backslashreplace")
