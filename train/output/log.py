"""L7: progress bar, epoch lines and the table of metrics."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from minigrad.serialize import replacing
from models.terminal import plural

# The note, with loss and accuracy, comes before the bar: tqdm cuts a line that is too long at its end.
_FORMATS = (
    "{desc}{postfix} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}",
    "{desc}{postfix} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    "{desc}{postfix} {percentage:3.0f}%|{bar}|",
    "{desc}{postfix} {percentage:3.0f}%",
    "{desc}{postfix}",
)
_BAR_WIDTH = 10  # at least


class Progress:
    """A tqdm bar if stderr is a terminal and tqdm is installed; otherwise no output."""

    def __init__(self, total: int | None, unit: str, title: str, *, done: int = 0) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                bar_class = _bar_class()
            except ImportError:
                return
            self._bar = bar_class(
                total=total,
                initial=done,
                desc=title,
                unit=unit,
                unit_scale=unit == "B",
                leave=False,
                dynamic_ncols=True,
            )

    def update(self, count: int, note: str = "") -> None:
        """Advance the bar by `count`; `note` is shown after the title."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar_class() -> Any:
    """tqdm's class, whose line has the most detailed of _FORMATS that leaves _BAR_WIDTH characters to the bar.

    Raises:
        ImportError: tqdm is not installed.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __str__(self) -> str:
            state = self.format_dict
            columns = state.pop("ncols")
            if not state["total"]:  # a percentage needs the total
                return self.format_meter(**state, ncols=columns)
            for form in _FORMATS:
                state["bar_format"] = form.replace("{bar}", f"{{bar:{_BAR_WIDTH}}}")
                if not columns or len(self.format_meter(**state)) <= columns:
                    break
            return self.format_meter(**state | {"bar_format": form}, ncols=columns)

    return Bar


@dataclass(frozen=True)
class Metrics:
    """One row of metrics.csv."""

    epoch: int
    lr: float  # of the last step
    train_loss: float  # running mean over the epoch
    train_acc: float
    test_loss: float
    test_acc: float
    seconds: float
    images_per_second: float  # in training
    skipped: int = 0  # steps skipped because of NaN or Inf

    def line(self, epochs: int, tested: str = "test", columns: int | None = None) -> str:
        """The row as one line of at most `columns` characters: speed, learning rate and time are left out first, then
        the words loss and acc."""
        required = [
            f"epoch {self.epoch:{len(str(epochs))}}/{epochs}",
            f"train loss {self.train_loss:.4f} acc {self.train_acc:6.2%}",
            f"{tested} loss {self.test_loss:.4f} acc {self.test_acc:6.2%}",
        ]
        optional = [f"{self.seconds:.1f} s", f"lr {self.lr:.1e}", f"{self.images_per_second:.0f} images/s"]
        skipped = [f"{plural(self.skipped, 'step')} skipped"] if self.skipped else []
        lines = ["  ".join([*required, *optional[:n], *skipped]) for n in (3, 2, 1, 0)]
        lines.append(lines[-1].replace(" loss ", " ").replace(" acc ", " "))
        return next((line for line in lines if columns is None or len(line) <= columns), lines[-1])


def without_libraries() -> str:
    """What a run lacks because a library is not installed, in one line with the command to install it; else empty."""
    effects = {"matplotlib": "pictures"} | ({"tqdm": "progress bar"} if sys.stderr.isatty() else {})
    absent = {name: effect for name, effect in effects.items() if find_spec(name) is None}
    return f"without  {' and '.join(absent.values())}: pip install {' '.join(absent)}" if absent else ""


def columns() -> int | None:
    """The width of the terminal that shows stdout; None if stdout is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_table(path: Path, history: Sequence[Metrics]) -> None:
    """Write all epochs so far, as .csv or as .jsonl, one JSON object a line. Replaces an existing file atomically."""
    text = io.StringIO(newline="")
    if path.suffix == ".jsonl":
        text.writelines(f"{json.dumps(asdict(metrics))}\n" for metrics in history)
    else:
        table = csv.writer(text)
        table.writerow(field.name for field in fields(Metrics))
        for metrics in history:
            table.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in asdict(metrics).values())
    with replacing(path) as file:
        file.write(text.getvalue().encode())
