"""L6: predictions for images as a table, as CSV and as JSON."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from minigrad import serialize
from models.terminal import printable, table

Ranked = Sequence[Sequence[tuple[str, float]]]
"""For each image, the most probable classes with their probabilities."""


def as_table(files: Sequence[Path], best: Ranked) -> str:
    """The predictions for a terminal, a line for each image."""
    ranks = range(1, len(best[0]) + 1)
    lines = [["image", *(cell for rank in ranks for cell in (str(rank), ""))]]
    for file, ranked in zip(files, best, strict=True):
        cells = (cell for name, p in ranked for cell in (printable(name), f"{100 * p:.1f} %"))
        lines.append([printable(str(file)), *cells])
    return table(lines, left=[0, *range(1, 2 * len(ranks), 2)])


def as_csv(files: Sequence[Path], best: Ranked) -> str:
    """A row for each image: its path, then class and probability by descending probability. All names are quoted."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    rows.writerow(
        ["image", *(f"{name}_{rank + 1}" for rank in range(len(best[0])) for name in ("class", "probability"))]
    )
    for file, ranked in zip(files, best, strict=True):
        rows.writerow([str(file), *(cell for name, p in ranked for cell in (name, float(f"{p:.6g}")))])
    return text.getvalue()


def as_json(files: Sequence[Path], best: Ranked) -> str:
    """A list of {"image": path, "predictions": [{"class": name, "probability": p}, ...]}, a line for each image."""
    images = (
        {"image": str(file), "predictions": [{"class": name, "probability": float(f"{p:.6g}")} for name, p in ranked]}
        for file, ranked in zip(files, best, strict=True)
    )
    return "[\n" + ",\n".join(map(json.dumps, images)) + "\n]\n"


def check_output(flag: str, path: str | None) -> None:
    """Raise ValueError unless the file of --csv or --json can be written. The suffix is checked because an image may
    stand in its place: `--csv photo.jpg`."""
    if path in (None, "-"):
        return
    suffix = f".{flag[2:]}"
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"{flag} writes a file that ends in {suffix}, or - for stdout; got {path}")
    if Path(path).is_dir():
        raise ValueError(f"{flag} {path} is a folder: name a file")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {Path(path).parent}")


def write(path: Path, text: str) -> None:
    """Write a file in UTF-8, replaced atomically. Bytes of a name that are not UTF-8 are escaped."""
    with serialize.replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))
