"""L7: the metrics of a run for TensorBoard: `--tensorboard`, then `tensorboard --logdir runs`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from train.config.errors import InputError
from train.output.log import Metrics

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_SECONDS = 10  # at most, until the scalars of an epoch are in the file


def writer_class() -> "type[SummaryWriter]":
    """The writer of the package tensorboardX.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs its library: pip install tensorboardX") from None
    return SummaryWriter


class TensorBoard:
    """An event file in the folder of a run, with the scalars of each epoch: losses, accuracies, learning rate.

    TensorBoard reads all event files of a folder. A resumed run opens another file, and writes the epochs of `history`
    again, as a killed process may not have written all of them. `purge_step` hides all epochs of earlier files.
    """

    def __init__(self, folder: Path, history: Sequence[Metrics]) -> None:
        self.writer = writer_class()(str(folder), purge_step=1, flush_secs=_SECONDS)
        for metrics in history:
            self.add(metrics)

    def add(self, metrics: Metrics) -> None:
        """Write the scalars of an epoch, in a thread of tensorboardX."""
        for split in ("train", "test"):
            self.writer.add_scalar(f"loss/{split}", getattr(metrics, f"{split}_loss"), metrics.epoch)
            self.writer.add_scalar(f"accuracy/{split}", getattr(metrics, f"{split}_acc"), metrics.epoch)
        self.writer.add_scalar("lr", metrics.lr, metrics.epoch)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self.writer.close()
