"""Runs from settings to results: other processes, failed plots, closed pipes, wrong input."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from minigrad import serialize
from minigrad.optim import AdamW
from tests.train.command import TINY, rows, train
from tests.train.small import FLAGS as SMALL
from train.__main__ import main, parse
from train.config.errors import InputError
from train.data import datasets
from train.output import plots, resume
from train.run import run
from train.step import Step

ROOT = Path(__file__).parents[2]
FLAGS = [*SMALL, "--epochs", "2"]


def unchecked(monkeypatch, poisoned):
    """Disable the NaN check of each step, as on a GPU. In step number `poisoned` a gradient becomes infinite."""
    initial, update, steps = Step.__init__, AdamW.step, []

    def begin(self, **arguments):
        initial(self, **arguments)
        self.checks_finite = False

    def updated(self):
        steps.append(1)
        if len(steps) == poisoned:
            self.param_groups[-1]["params"][-1].grad.data[...] = np.inf
        update(self)

    monkeypatch.setattr(Step, "__init__", begin)
    monkeypatch.setattr(AdamW, "step", updated)


@pytest.mark.parametrize("step", [3, 6])
def test_nan_from_the_last_step_is_not_saved(step, tmp_path, monkeypatch):
    unchecked(monkeypatch, step)
    place = f"epoch {step // 3}/2"
    with pytest.raises(InputError, match=f"the loss on the test images became nan at the end of {place}.*it did not"):
        run(parse([*FLAGS, "--clip-grad", "0", "--output", str(tmp_path / "run")]))
    arrays, metadata = serialize.load(tmp_path / "run" / "resume.npz")
    assert len(metadata["history"]) == step // 3 - 1 and all(np.isfinite(x).all() for x in arrays.values())


def test_repeated_epoch_can_be_stopped(tmp_path, monkeypatch, capsys):
    unchecked(monkeypatch, 6)
    repeat = resume.repeat_with_checks

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return repeat(*arguments)

    monkeypatch.setattr(resume, "repeat_with_checks", signalled)
    code = run(parse([*FLAGS, "--clip-grad", "0", "--output", str(tmp_path / "run")]))
    assert code == 143 and "to find the first op" in capsys.readouterr().err


def test_counts_of_one_are_singular(tmp_path, capsys):
    flags = ["--train-num-samples", "40", "--val-num-samples", "1", "--epochs", "1", "--batch-size", "20"]
    assert main([*flags, "--threads", "1", "--output", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "40 training and 1 test image, 10 classes\n" in out and "1 epoch of 2 steps, batch 20" in out
    assert main([*flags, "--threads", "1", "--output", str(tmp_path / "run"), "--resume", "auto"]) == 0
    assert "has completed 1 epoch: nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize("goes_on", [False, True])
def test_folder_taken_while_data_load(goes_on, tmp_path, monkeypatch, capsys):
    """Another run starts and finishes in the folder while this run loads the data."""
    folder, flags = tmp_path / "run", [*FLAGS, "--output", str(tmp_path / "run")]
    if goes_on:
        state = parse(flags)
        monkeypatch.setattr("train.loop.Trainer.train_epoch", lambda self, title: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(state)
        monkeypatch.undo()
    load, raced = datasets.load, []

    def slow(*arguments, **options):
        if not raced:
            raced.append(None)
            raced[0] = main([*flags, "--resume", "auto"] if goes_on else flags)
        return load(*arguments, **options)

    monkeypatch.setattr(datasets, "load", slow)
    code = main([*flags, "--resume", "auto"] if goes_on else [*flags, "--seed", "7"])
    out, err = capsys.readouterr()
    assert raced == [0] and tomllib.loads((folder / "args.toml").read_text())["seed"] == 0
    assert (code, f"finished {folder}" in out) == ((0, True) if goes_on else (2, False))
    assert goes_on or "holds the results of an earlier run" in err


@pytest.mark.parametrize("error", [ZeroDivisionError("a scale of 0"), OSError("cannot open resource")])
def test_failed_plots_do_not_fail_the_run(error, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(plots, "mistakes", fail)
    folder = tmp_path / "run"
    assert main([*FLAGS, "--output", str(folder)]) == 0
    assert capsys.readouterr().err == f"picture not drawn: {type(error).__name__}: {error}\n"
    assert resume.is_finished(folder / "resume.npz") and not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "x" * 300], "File name too long"),
        (["--resume", "x" * 300], "File name too long"),
        (["--config", "nul.toml"], "--output: 'a\\x00b' cannot be encoded in UTF-8"),
        (["--data-dir", "/my/cifar"], "--data-dir is for other datasets: shapes are drawn"),
        (["--download"], "--download is for other datasets: shapes are drawn"),
        (["--eval", "none.npz", "--model", "vit_nano_cifar"], "--model has no effect with --eval"),
        (["--eval", "none.npz", "--resume", "auto"], "--resume has no effect with --eval"),
    ],
)
def test_input_error_messages(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nul.toml").write_text('output = "a\\u0000b"')
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m train: ") and message in line


def test_oserror_without_filename_is_printed(monkeypatch, capsys):
    def fail(settings):
        raise OSError("libcublas.so: cannot open shared object file")

    monkeypatch.setattr("train.run.run", fail)
    assert main([]) == 2
    assert capsys.readouterr().err == "python -m train: libcublas.so: cannot open shared object file\n"


def test_non_utf8_folder_name_is_refused(tmp_path, capsys):
    (tmp_path / "out\udcff").mkdir()
    for start in (["--output"], ["--resume"]):
        if start == ["--resume"]:
            assert main([*FLAGS, "--output", str(tmp_path / "whole")]) == 0
            (tmp_path / "whole" / "resume.npz").rename(tmp_path / "out\udcff" / "resume.npz")
        capsys.readouterr()
        assert main([*start, str(tmp_path / "out\udcff")]) == 2
        assert "cannot be encoded in UTF-8" in capsys.readouterr().err


def test_eval_uses_relevant_settings_of_a_file(tmp_path, capsys):
    assert main([*FLAGS, "--output", str(tmp_path / "run")]) == 0
    (tmp_path / "again.toml").write_text((tmp_path / "run" / "args.toml").read_text().replace("= 20", "= 30"))
    capsys.readouterr()
    assert main(["--eval", str(tmp_path / "run" / "best.npz"), "--config", str(tmp_path / "again.toml")]) == 0
    assert "30 test images" in capsys.readouterr().out


def test_closed_or_full_stdout(tmp_path):
    """A closed pipe, as in `python -m train | head -1`, and a full device: the errors name stdout, not the folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "train", *FLAGS, "--output", "out"]
    options = {"cwd": tmp_path, "env": environment, "text": True, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(timeout=100) == 141
    assert train("--resume", "out", cwd=tmp_path).returncode == 0 and len(rows(tmp_path / "out")) == 2
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            result = subprocess.run([*command[:-1], "other"], stdout=full, **options)
        assert result.returncode == 2
        assert result.stderr == "python -m train: [Errno 28] No space left on device\n"


def test_resume_auto_with_recipe_over_settings_file(tmp_path):
    (tmp_path / "run.toml").write_text("lr = 0.01\nseed = 3\n")
    command = [
        *TINY,
        "--config",
        "run.toml",
        "--recipe",
        "fast",
        "--epochs",
        "1",
        "--output",
        "out",
        "--resume",
        "auto",
    ]
    assert train(*command, cwd=tmp_path).returncode == 0
    again = train(*command, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.startswith("finished out"), again.stderr


def test_settings_file_works_on_another_device(tmp_path):
    file = tmp_path / "args.toml"
    file.write_text('device = "cpu"\nthreads = 2\ngraph = false\nseed = 3\n')
    elsewhere, here = (parse(["--config", str(file), *flags]) for flags in (["--device", "cuda"], []))
    file.write_text("threads = 7\n")
    assert parse(["--config", str(file), "--device", "cpu"]).threads == 7
    assert (elsewhere.threads, elsewhere.graph, elsewhere.seed) == (1, True, 3)
    assert (here.threads, here.graph) == (2, False)
