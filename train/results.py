"""L7: the output folder of a run: what is written into it, and when."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from minigrad.serialize import replacing
from models.predict import one_line
from train import checkpoint, config, naming, plots, report, resume
from train.errors import InputError
from train.log import Metrics, write_table
from train.loop import Trainer


class Results:
    """The folder of a run. Its state comes first, and all else follows from it:

        resume.npz            the state of the run (train/resume.py)
        args.toml             its settings
        metrics.csv, .jsonl   a row for each epoch
        last, best            .npz or .safetensors: the model after the last epoch, and after that of the best accuracy
        curves, confusion, mistakes.png

    Every file is replaced all at once, so that a process may end anywhere in between.

    Args:
        state: the file of the state, in that folder.
        trainer: the run; one that goes on is brought to its state by `go_on`.
    """

    def __init__(self, state: Path, trainer: Trainer) -> None:
        self.state, self.trainer, self.folder = state, trainer, state.parent
        self.history: list[Metrics] = []

    def begin(self) -> None:
        """A new run, before its first step."""
        self.keep()
        self._describe()

    def go_on(self) -> None:
        """Bring the trainer to the state, and the folder, in which a process may have been killed while it wrote."""
        self.history = resume.load(self.state, self.trainer)
        with writing(self.folder):
            for left in self.folder.glob("*.[0-9]*.part"):
                left.unlink()
        self._describe()
        self._publish()

    def add(self, metrics: Metrics) -> None:
        """An epoch has ended."""
        self.history.append(metrics)
        self.keep()

    def keep(self) -> None:
        """Write the state, and what follows from it. The trainer is between two steps."""
        with writing(self.folder):
            resume.save(self.state, self.trainer, self.history)
        self._publish()

    def finish(self) -> None:
        """All epochs are done: draw, and leave, of the state, that nothing is left to do."""
        settings, dataset, best = self.trainer.settings, self.trainer.dataset, self.best()
        title = f"{settings.model} on {dataset.name}: {best.test_acc:.2%} in epoch {best.epoch}"
        can_draw = False
        with _drawing():
            can_draw = plots.curves(self.history, title, self.folder / "curves.png")
        if can_draw:
            answers = report.answers(self._checkpoint("best"), dataset, settings)
            with _drawing():
                plots.mistakes(answers, dataset.test.images, self.folder)
        with writing(self.folder):
            resume.finish(self.state, settings, self.history)

    def best(self) -> Metrics:
        """The epoch, the first of them, with the best accuracy on the test images."""
        return max(self.history, key=lambda metrics: metrics.test_acc)

    def _publish(self) -> None:
        """What follows from the state. Amid an epoch the model is not that of the last row: it is not kept."""
        model, dataset, settings = self.trainer.model, self.trainer.dataset, self.trainer.settings
        with writing(self.folder):
            if self.history and not self.trainer.position:
                names = ("last", "best") if self.best() is self.history[-1] else ("last",)
                with self.trainer.tested():
                    for name in names:
                        checkpoint.save(self._checkpoint(name), model, dataset, settings, self.history[-1])
            for name in (naming.TABLE, "metrics.jsonl"):
                write_table(self.folder / name, self.history)

    def _describe(self) -> None:
        with writing(self.folder), replacing(self.folder / "args.toml") as file:
            file.write(config.text(asdict(self.trainer.settings)).encode())

    def _checkpoint(self, name: str) -> Path:
        return self.folder / f"{name}.{self.trainer.settings.checkpoint_format}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the block, the folder, made if it is not there, belongs to this process; the lock ends with the process.

    Raises:
        InputError: another process has it, or it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # on Windows, where folders cannot be locked
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise InputError(
            f"--output {folder}: another process is training there; wait for its end, or name another"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(opened)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within the block, files of the folder are written: what fails is one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to --output {folder}: {error.strerror or error}") from None


@contextmanager
def _drawing() -> Iterator[None]:
    """Within the block, a picture is drawn. What fails, such as what matplotlib makes of a name, ends no run."""
    try:
        yield
    except Exception as error:
        print(f"picture not drawn: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
