"""`--tensorboard`: the event files, read back by TensorBoard if it is installed, else by tensorboardX's messages."""

import struct
import sys
import warnings

import pytest

from tests.train.command import rows
from tests.train.small import FLAGS as SMALL
from train.__main__ import main
from train.output.log import Metrics
from train.output.tensorboard import TensorBoard

TAGS = {"loss/train", "loss/test", "accuracy/train", "accuracy/test", "lr"}


def history(epochs):
    return [Metrics(e, 1e-3 / e, 2.0 / e, 0.1 * e, 2.5 / e, 0.2 * e, 1.0, 60.0) for e in range(1, epochs + 1)]


def events_of(folder):
    """The events of all files of a folder, in the order of the names."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:  # a record: length, checksum, data, checksum
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def scalars(folder):
    """The values by tag and epoch, without the epochs that a later session purged."""
    found = {}
    for event in events_of(folder):
        if event.HasField("session_log"):  # the start of a session
            found = {tag: {step: x for step, x in own.items() if step < event.step} for tag, own in found.items()}
        for value in event.summary.value:
            assert event.step not in found.setdefault(value.tag, {})
            found[value.tag][event.step] = value.simple_value
    return found


def expect(folder, expected):
    """The scalars of these epochs, in the files and, if TensorBoard is installed, as TensorBoard reads the files."""
    readings = [scalars(folder)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        pass
    else:
        read = EventAccumulator(str(folder)).Reload()
        readings.append({tag: {e.step: e.value for e in read.Scalars(tag)} for tag in read.Tags()["scalars"]})
    for found in readings:
        assert set(found) == TAGS
        for tag, values in found.items():
            kind, _, split = tag.partition("/")
            field = {"loss": f"{split}_loss", "accuracy": f"{split}_acc", "lr": "lr"}[kind]
            assert values == {m.epoch: pytest.approx(float(getattr(m, field)), rel=1e-5) for m in expected}


def test_scalars_of_each_epoch(tmp_path):
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path, [])
    for metrics in history(3):
        board.add(metrics)
    board.close()
    expect(tmp_path, history(3))


@pytest.mark.parametrize("saved", [1, 3])
def test_resumed_run_shows_each_epoch_once(saved, tmp_path):
    """A killed process wrote two epochs to the event file, and one or three to its state."""
    pytest.importorskip("tensorboardX")
    killed = TensorBoard(tmp_path, [])
    for metrics in history(2):
        killed.add(metrics)
    killed.close()
    (first,) = tmp_path.iterdir()
    first.rename(first.with_name("events.out.tfevents.1.host"))  # an earlier second
    board = TensorBoard(tmp_path, history(saved))
    for metrics in history(4)[saved:]:
        board.add(metrics)
    board.close()
    expect(tmp_path, history(4))


def test_run_writes_scalars_into_its_folder(tmp_path, no_pictures):
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "run"
    assert main([*SMALL, "--epochs", "2", "--tensorboard", "--output", str(folder)]) == 0
    names = ("epoch", "lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds", "images_per_second")
    table = [Metrics(int(row["epoch"]), *(float(row[name]) for name in names[1:])) for row in rows(folder)]
    assert len(table) == 2
    expect(folder, table)


def test_missing_library_is_named_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main([*SMALL, "--tensorboard", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "python -m train: --tensorboard needs its library: pip install tensorboardX\n"
    assert not (tmp_path / "run").exists()
