"""The runner of the table of results: it runs, stops, and continues the rows."""

import os
import subprocess
import time

import pytest

from tests.train.command import ROOT, rows
from train import table

FLAGS = ["--train-num-samples", "40", "--val-num-samples", "20", "--batch-size", "20", "--threads", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    group = {"one": ("--epochs", "1"), "two": ("--model", "swin_nano_cifar", "--epochs", "2")}
    monkeypatch.setattr(table, "GROUPS", {"cpu": group})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def test_table_has_a_row_and_a_log_for_each_run(tmp_path, capsys):
    assert table.main(["cpu", "--output", str(tmp_path), *FLAGS]) == 0
    _, _, one, two = (tmp_path / "table.md").read_text().splitlines()
    accuracy = 100 * float(rows(tmp_path / "two")[-1]["test_acc"])
    flags = f"--model swin_nano_cifar --epochs 2 {' '.join(FLAGS)}"
    assert two == (
        f"| shapes | `swin_nano_cifar`, 567,046 parameters | `{flags}` | {accuracy:.1f} % ([log](two.csv)) | 0 min |"
    )
    assert "142,026 parameters" in one
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "two" / "metrics.csv").read_bytes()
    before = (tmp_path / "two" / "resume.npz").stat().st_mtime_ns
    assert table.main(["cpu", "--output", str(tmp_path), *FLAGS]) == 0
    assert (tmp_path / "two" / "resume.npz").stat().st_mtime_ns == before  # a finished run is not repeated


def test_a_stopped_run_continues(tmp_path, monkeypatch):
    """The time of the first call is over after an epoch, that of the second after another."""
    folder = tmp_path / "one"

    class Popen(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            while self.poll() is None and (not (folder / "metrics.csv").exists() or len(rows(folder)) < limit):
                time.sleep(0.02)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setitem(table.GROUPS, "cpu", {"one": ("--epochs", "400")})
    limit = 1
    assert table.main(["cpu", "--output", str(tmp_path), *FLAGS]) == 0
    before = rows(folder)
    limit = len(before) + 1
    assert table.main(["cpu", "--output", str(tmp_path), *FLAGS]) == 0
    assert len(rows(folder)) >= limit and rows(folder)[: limit - 1] == before
    assert f"% after {len(rows(folder))} of 400 epochs" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_without_time_nothing_runs(tmp_path, minutes):
    assert table.main(["cpu", "--output", str(tmp_path), f"--minutes={minutes}"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_failed_run_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(table.GROUPS["cpu"], "one", ("--model", "vit_cifar"))
    assert table.main(["cpu", "--output", str(tmp_path), *FLAGS]) == 1
    assert "there is no model 'vit_cifar'" in capfd.readouterr().err
    assert len((tmp_path / "table.md").read_text().splitlines()) == 3
