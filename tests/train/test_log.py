"""Progress bar, epoch line, table of metrics, curves."""

import csv
import io
import json
import os
import struct
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from train.output import plots
from train.output.log import Metrics, Progress, without_libraries, write_table

ROW = Metrics(3, 1e-3, 1.23456789, 0.5, 1.5, 0.4375, 12.5, 800.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with Progress(100, " images", "epoch 1/2") as progress:
        time.sleep(0.15)  # tqdm draws at most ten times a second
        progress.update(50, "loss 1.000 acc 50.0%")
    text = screen.getvalue()
    assert "epoch 1/2" in text and "images/s" in text and "loss 1.000 acc 50.0%" in text


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_progress_bar_fits_the_terminal_and_shows_the_loss(columns, monkeypatch):
    pytest.importorskip("tqdm")
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(end, "w", encoding="utf-8") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        with Progress(10_000, " images", "epoch 100/300") as progress:
            time.sleep(0.15)
            progress.update(5_000, "loss 1.234 acc 100.0%")
    drawn = b""
    with suppress(OSError):  # Linux reports the end of a terminal as an error
        while part := os.read(terminal, 10_000):
            drawn += part
    os.close(terminal)
    lines = drawn.decode().split("\r")
    assert max(map(len, lines)) <= columns
    line = next(line for line in lines if "loss 1.234 acc 100.0%" in line)
    bar = line.split("|")[1] if "|" in line else ""
    assert (len(bar) >= 10) == (columns >= 60) and ("images/s" in line) == (columns >= 100), line


def test_no_progress_bar_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    with Progress(100, " images", "epoch 1/2") as progress:
        progress.update(100, "loss")
    assert screen.getvalue() == ""


def test_no_progress_bar_without_tqdm(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(100, " images", "epoch 1/2") as progress:
        progress.update(100, "loss")
    assert screen.getvalue() == ""


def test_table_of_metrics_as_csv_and_jsonl(tmp_path):
    for history in ([], [ROW], [ROW, replace(ROW, epoch=4)]):
        for name in ("metrics.csv", "metrics.jsonl"):
            write_table(tmp_path / name, history)
        with (tmp_path / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["3", "4"][: len(history)]
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [Metrics(**json.loads(line)) for line in lines] == history
    assert rows[0]["train_loss"] == "1.23457" and rows[0]["test_acc"] == "0.4375"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "metrics.jsonl"]


def test_epoch_line_has_losses_accuracy_and_speed():
    line = ROW.line(10)
    for part in ("epoch  3/10", "train loss 1.2346", "test loss 1.5000 acc 43.75%", "800 images/s"):
        assert part in line


@pytest.mark.parametrize("tested", ["test", "EMA test"])
def test_epoch_line_fits_80_columns_with_losses_and_skips(tested):
    row = replace(ROW, epoch=100)
    line = row.line(300, tested, 80)
    assert len(line) <= 80 and "train loss 1.2346 acc 50.00%" in line and f"{tested} loss 1.5000 acc 43.75%" in line
    assert "12.5 s" in row.line(300, columns=80) and "images/s" not in line
    assert row.line(300, tested, 200) == row.line(300, tested)
    assert row.line(300, tested, 1).endswith(f"train 1.2346 50.00%  {tested} 1.5000 43.75%")
    perfect = replace(row, train_acc=1.0, test_acc=1.0, skipped=1).line(300, tested, 80)
    assert len(perfect) <= 80 and perfect.endswith("100.00%  1 step skipped")


def test_missing_libraries_are_named_once(monkeypatch):
    for library in ("matplotlib", "tqdm"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert without_libraries() == "without  pictures: pip install matplotlib"
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert without_libraries() == "without  pictures and progress bar: pip install matplotlib tqdm"
    monkeypatch.undo()
    pytest.importorskip("matplotlib"), pytest.importorskip("tqdm")
    assert without_libraries() == ""


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.curves([ROW], "a model", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_axis_of_one_epoch_has_one_tick(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.curves([ROW], "a model", tmp_path / "curves.png")
    for axes in figures[0].axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [ROW.epoch]


def test_no_curves_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plots.curves([ROW], "a model", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
