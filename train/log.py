"""L7: what a person sees while a run goes on, a progress bar and lines, and the table it leaves."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from minigrad.serialize import replacing


class Progress:
    """A tqdm bar on a terminal where tqdm is installed; silent otherwise."""

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
            )

    def update(self, count: int, note: str = "") -> None:
        """`count` more are done."""
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
    lr: float  # of its last step
    train_loss: float  # mean over the epoch, while the model changed
    train_acc: float
    test_loss: float
    test_acc: float
    seconds: float
    images_per_second: float  # in training
    skipped: int = 0  # steps that were left out, as a number was not finite

    def line(self, epochs: int, tested: str = "test") -> str:
        """The row for people."""
        skipped = f"   {self.skipped} steps skipped" if self.skipped else ""
        return (
            f"epoch {self.epoch:{len(str(epochs))}}/{epochs}   "
            f"train loss {self.train_loss:.4f} acc {self.train_acc:6.2%}   "
            f"{tested} loss {self.test_loss:.4f} acc {self.test_acc:6.2%}   "
            f"lr {self.lr:.1e}   {self.seconds:.1f} s   {self.images_per_second:.0f} images/s{skipped}"
        )


def write_table(path: Path, history: Sequence[Metrics]) -> None:
    """All epochs so far, as .csv or, with a JSON object in each line, as .jsonl, in the place of an earlier file."""
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
