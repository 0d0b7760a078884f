"""A run that is killed, stopped or out of disk space resumes, with the results of an uninterrupted run."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minigrad import serialize
from tests.train.small import FLAGS as SMALL
from tests.train.small import TIMES
from train.output import naming, resume

ROOT = Path(__file__).parents[2]
FLAGS = [*SMALL, "--epochs", "12", "--model-ema", "--crop-padding", "4"]

# As `python -m train`, but the process kills itself at its N-th open, rename or remove in the output folder.
KILLED_AT_FILE = """
import os, signal, sys
from train.__main__ import main

left, folder = int(sys.argv.pop(1)), sys.argv[2]

def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(folder):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
sys.exit(main())
"""


def start(folder, *flags, how=("-m", "train"), largest_file=resource.RLIM_INFINITY):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background processes ignore SIGINT
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    command = [sys.executable, "-W", "error", *how, "--output", folder, "--resume", "auto", *flags]
    return subprocess.Popen(
        [*map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def to_the_end(folder, *flags):
    process = start(folder, *flags)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out


def table(folder):
    """The lines of metrics.csv without the times."""
    with (folder / "metrics.csv").open(newline="") as file:
        lines = [line.rstrip("\r\n").split(",") for line in file]
    kept = [i for i, name in enumerate(lines[0]) if name not in TIMES]
    return [",".join(line[i] for i in kept) for line in lines]


def same_results(folder, expected):
    assert table(folder) == table(expected)
    for name in ("best.npz", "last.npz"):
        (found, told), (wanted, tells) = serialize.load(folder / name), serialize.load(expected / name)
        assert told["epoch"] == tells["epoch"] and set(found) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
    assert not list(folder.glob("*.part"))
    assert resume.is_finished(folder / naming.STATE)


def loads(folder):
    """Check the files of a killed process: each one loads, and the table has no duplicate or truncated row."""
    for name in ("best.npz", "last.npz", naming.STATE):
        if (folder / name).exists():
            serialize.load(folder / name)
    if (folder / "metrics.csv").exists():
        rows = serialize.load_metadata(folder / naming.STATE)["history"]
        epochs = [line.split(",")[0] for line in table(folder)[1:]]
        assert epochs == [str(row["epoch"]) for row in rows][: len(epochs)] and len(rows) <= len(epochs) + 1


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    to_the_end(folder, *FLAGS)
    return folder


def test_killed_at_any_time_run_resumes(uninterrupted, tmp_path, exhaustive):
    chance, kills, run, wanted = random.Random(1), 0, 0, 12 if exhaustive else 3
    while kills < wanted or (tmp_path / str(run)).exists():
        process = start(tmp_path / str(run), *FLAGS)
        if kills < wanted:
            for line in process.stdout:
                if line.startswith("output"):
                    break
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        process.communicate(timeout=100)
        kills += process.returncode == -signal.SIGKILL
        loads(tmp_path / str(run))
        if process.returncode == 0:
            same_results(tmp_path / str(run), uninterrupted)
            run += 1


def test_killed_at_any_file_operation_run_resumes(uninterrupted, tmp_path, exhaustive):
    chance, starts, code = random.Random(2), 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        last = chance.randint(1, 60) if exhaustive or starts < 4 else 1000  # more than the number of operations
        process = start(tmp_path / "run", *FLAGS, how=("-c", KILLED_AT_FILE, last))
        _, err = process.communicate(timeout=100)
        code, starts = process.returncode, starts + 1
        loads(tmp_path / "run")
    assert code == 0 and starts > (5 if exhaustive else 4), err
    same_results(tmp_path / "run", uninterrupted)


def test_folder_is_locked_by_one_process(uninterrupted, tmp_path):
    pytest.importorskip("fcntl")
    folder = tmp_path / "run"
    first = start(folder, *FLAGS)
    for line in first.stdout:
        if line.startswith("output"):
            break
    first.send_signal(signal.SIGSTOP)
    second = start(folder, *FLAGS)
    _, err = second.communicate(timeout=100)
    assert second.returncode == 2
    message = "another process is training there; wait for its end, or name another folder\n"
    assert err == f"python -m train: --output {folder}: {message}"
    first.kill()  # releases the lock of the first process
    first.communicate(timeout=100)
    to_the_end(folder, *FLAGS)
    same_results(folder, uninterrupted)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive)]
)
def test_signal_saves_the_state_after_the_step(number, code, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *FLAGS)
    for line in process.stdout:
        if line.startswith("epoch  3"):
            break
    time.sleep(0.03)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    said = err.split("\n")
    assert said[1] == "stopping after this step; a second signal stops immediately" and said[2].startswith(
        "stopped after epoch "
    )
    assert said[2].endswith(f"--resume {folder} continues from there")
    assert "resume   after epoch " in to_the_end(folder)
    same_results(folder, uninterrupted)
    assert to_the_end(folder) == f"finished {folder} has completed 12 epochs: nothing to resume\n"


def test_full_disk_is_one_line_and_keeps_old_files(uninterrupted, tmp_path, exhaustive):
    """A limit on the file size simulates a disk that becomes full while a file is written."""
    folder = tmp_path / "run"
    weights = (uninterrupted / "last.npz").stat().st_size

    def fails(limit):
        process = start(folder, *FLAGS, largest_file=limit)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 2
        assert err == f"python -m train: cannot write to --output {folder}: File too large\n"
        assert not list(folder.glob("*.part"))
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "args.toml"}

    for limit in (1000, weights) if exhaustive else (weights,):
        assert fails(limit) == {}, limit
    process = start(folder, *FLAGS)
    for line in process.stdout:
        if line.startswith("epoch  3"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    kept = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "args.toml"}
    for limit in (1000, weights // 2, weights + 10_000, 3 * weights) if exhaustive else (weights + 10_000,):
        assert fails(limit) == kept, limit
    to_the_end(folder)
    same_results(folder, uninterrupted)
