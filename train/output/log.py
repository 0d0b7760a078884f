"""L7: progress bar, epoch lines and the table of metrics."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from minigrad.serialize import replacing
from models.terminal import plural as plural  # used by other modules too

# The note, with loss and accuracy, comes before the bar: tqdm cuts a line that is too long at its end.
_BAR = "{desc}{postfix} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}"


class Progress:
    """A tqdm bar if stderr is a terminal and tqdm is installed; otherwise no output."""

    def __init__(self, total: int | None, unit: str, title: str, *, done: int = 0) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=title,
                unit=unit,
                unit_scale=unit == "B",
                leave=False,
                dynamic_ncols=True,
                bar_format=_BAR if total else None,  # a percentage needs the total
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
        """The row as one line of at most `columns` characters: speed, learning rate and time are left out first."""
        required = [
            f"epoch {self.epoch:{len(str(epochs))}}/{epochs}",
            f"train loss {self.train_loss:.4f} acc {self.train_acc:6.2%}",
            f"{tested} loss {self.test_loss:.4f} acc {self.test_acc:6.2%}",
        ]
        optional = [f"{self.seconds:.1f} s", f"lr {self.lr:.1e}", f"{self.images_per_second:.0f} images/s"]
        skipped = [f"{plural(self.skipped, 'step')} skipped"] if self.skipped else []
        lines = ["  ".join([*required, *optional[:n], *skipped]) for n in (3, 2, 1, 0)]
        return next((line for line in lines if columns is None or len(line) <= columns), lines[-1])


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
