"""L7: the output folder of a run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from minigrad.parallel.processes import World
from minigrad.serialize import replacing
from models.predict import one_line
from train.config import file as config
from train.config.errors import InputError
from train.loop import Trainer
from train.output import checkpoint, naming, plots, report, resume
from train.output.info import RunInfo
from train.output.log import Metrics, write_table
from train.output.tensorboard import TensorBoard


class Results:
    """The output folder of a run:

        resume.npz            the state of the run (train/output/resume.py)
        args.toml             the settings
        metrics.csv, .jsonl   one row an epoch
        events.out.tfevents.* for TensorBoard, with --tensorboard (train/output/tensorboard.py)
        last, best            .npz or .safetensors: the model of the last epoch, and of the epoch with the best accuracy
        curves, confusion, mistakes.png
        bad_images.txt        with --skip-bad-images: path and reason of each file left out

    A process may be killed at any moment. So every file is replaced atomically, and the state is written first: the
    other files can be written again from the state.

    Every rank has this object, with the history of the run, and calls its methods; rank 0 alone writes files.

    Args:
        state: the path of the state file, in the output folder.
        trainer: the run. `restore` loads the state into it.
        info: the settings, model and dataset to record in the files.
        checkpoint_format: "npz" or "safetensors".
        tensorboard: write an event file.
    """

    def __init__(
        self, state: Path, trainer: Trainer, info: RunInfo, checkpoint_format: str, *, tensorboard: bool = False
    ) -> None:
        self.state, self.trainer, self.info, self.folder = state, trainer, info, state.parent
        self.checkpoint_format = checkpoint_format
        self.history: list[Metrics] = []
        self.writes = trainer.world.rank == 0
        self.tensorboard = tensorboard and self.writes
        self.events: TensorBoard | None = None

    def begin(self) -> None:
        """Write state and settings of a new run, before its first step."""
        self.save()
        self._write_settings()
        self._open_events()

    def restore(self) -> None:
        """Load the state into the trainer, and rewrite the files that a killed process may have left incomplete."""
        self.history = resume.load(self.state, self.trainer, self.info)
        if self.writes:
            with writing(self.folder):
                for incomplete in self.folder.glob("*.[0-9]*.part"):
                    incomplete.unlink()
        self._write_settings()
        self._write_outputs()
        self._open_events()

    def add(self, metrics: Metrics) -> None:
        """Append the metrics of an epoch, and save."""
        self.history.append(metrics)
        self.save()
        if self.events is not None:
            self.events.add(metrics)

    def save(self) -> None:
        """Write the state, then the models and tables. Called between two steps."""
        with writing(self.folder):
            resume.save(self.state, self.trainer, self.info, self.history)
        self._write_outputs()

    def finish(self) -> None:
        """After the last epoch: draw the pictures and mark the state as finished."""
        if self.writes:
            self._finish()
        if self.events is not None:
            self.events.close()
        self.trainer.world.barrier()  # no rank ends while another writes: a launcher may then end all ranks

    def _finish(self) -> None:
        dataset, best = self.trainer.dataset, self.best()
        title = f"{self.info.model['name']} on {dataset.name}: {best.test_acc:.2%} in epoch {best.epoch}"
        can_draw = False
        with _drawing():
            can_draw = plots.curves(self.history, title, self.folder / "curves.png")
        if can_draw:
            alone = replace(self.trainer.evaluation, world=World())
            predictions = report.predictions(self._checkpoint("best"), dataset, alone)
            with _drawing():
                plots.mistakes(predictions, dataset.test.images, self.folder)
        with writing(self.folder):
            resume.finish(self.state, self.info, self.history)

    def best(self) -> Metrics:
        """The first epoch with the best test accuracy."""
        return max(self.history, key=lambda metrics: metrics.test_acc)

    def epochs_since_best(self) -> int:
        """The number of completed epochs after that of `best`."""
        return self.history[-1].epoch - self.best().epoch if self.history else 0

    def _write_outputs(self) -> None:
        """Write models and tables. Within an epoch no model is written: the model would not match the last row."""
        if not self.writes:
            return
        with writing(self.folder):
            if self.history and not self.trainer.position:
                names = ("last", "best") if self.best() is self.history[-1] else ("last",)
                with self.trainer.tested():
                    for name in names:
                        checkpoint.save(self._checkpoint(name), self.trainer.model, self.info, self.history[-1])
            for name in (naming.TABLE, "metrics.jsonl"):
                write_table(self.folder / name, self.history)

    def _write_settings(self) -> None:
        if not self.writes:
            return
        with writing(self.folder), replacing(self.folder / "args.toml") as file:
            file.write(config.text(self.info.settings).encode())
        if bad := self.info.dataset.bad_images:
            with writing(self.folder), replacing(self.folder / naming.BAD_IMAGES) as file:
                file.write("".join(f"{line}\n" for line in bad).encode("utf-8", "backslashreplace"))

    def _open_events(self) -> None:
        if self.tensorboard:
            with writing(self.folder):
                self.events = TensorBoard(self.folder, self.history)

    def _checkpoint(self, name: str) -> Path:
        return self.folder / f"{name}.{self.checkpoint_format}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder if missing, and lock it within the block. The lock ends with the process.

    Raises:
        InputError: another process holds the lock, or the folder cannot be created.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file, not a folder: name another folder")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no locks of folders
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise InputError(
            f"--output {folder}: another process is training there; wait for its end, or name another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(opened)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within the block, an OSError becomes an InputError that names the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to --output {folder}: {error.strerror or error}") from None


@contextmanager
def _drawing() -> Iterator[None]:
    """Within the block, an error is printed, not raised: a failure of matplotlib does not stop the run."""
    try:
        yield
    except Exception as error:
        print(f"picture not drawn: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
