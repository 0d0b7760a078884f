"""The progress bar, the table and the picture."""

import csv
import io
import json
import sys
import time
from dataclasses import replace

import pytest

from train import plots
from train.log import Metrics, Progress, write_table

ROW = Metrics(3, 1e-3, 1.23456789, 0.5, 1.5, 0.4375, 12.5, 800.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with Progress(100, " images", "epoch 1/2") as progress:
        time.sleep(0.15)  # tqdm draws at most ten times a second
        progress.update(50, "loss 1.000 acc 50.0%")
    text = screen.getvalue()
    assert "epoch 1/2" in text and "images/s" in text and "loss 1.000 acc 50.0%" in text


def test_silence_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    with Progress(100, " images", "epoch 1/2") as progress:
        progress.update(100, "loss")
    assert screen.getvalue() == ""


def test_silence_without_tqdm(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(100, " images", "epoch 1/2") as progress:
        progress.update(100, "loss")
    assert screen.getvalue() == ""


def test_table(tmp_path):
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


def test_line():
    line = ROW.line(10)
    for part in ("epoch  3/10", "train loss 1.2346", "test loss 1.5000 acc 43.75%", "800 images/s"):
        assert part in line


def test_curves(tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.curves([ROW], "a model", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_no_curves_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plots.curves([ROW], "a model", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
