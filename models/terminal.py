"""L6: text for a terminal: tables, and characters that the encoding of the terminal lacks."""

import io
import sys
from collections.abc import Sequence


def table(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """The lines as aligned columns. Columns whose index is in `left` are left-aligned, the others right-aligned."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    left_aligned = {i % len(columns) for i in left}
    for i, column in enumerate(columns):
        width = max(map(len, column))
        columns[i] = [cell.ljust(width) if i in left_aligned else cell.rjust(width) for cell in column]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def escape_unencodable() -> None:
    """Print a character that the encoding of stdout or stderr lacks as an escape such as `\\u03bb`, not an error.

    Windows code pages and the C locale lack most characters, so programs call this function first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a caller may have replaced the stream by another object
            stream.reconfigure(errors="backslashreplace")
