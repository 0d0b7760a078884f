"""A rank that is killed, or fails, ends all ranks, and one line names the rank."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.parallel.mpiexec import MPIEXEC, needs_mpi, run
from tests.train.command import ROOT, TINY, train
from tests.train.kills import Kill, is_alive
from train.supervisor import ranks

pytestmark = [needs_mpi, pytest.mark.skipif(sys.platform != "linux", reason="the supervisor is for Linux")]


@pytest.mark.parametrize(
    "size, victim, number, delay",
    [
        (2, 1, signal.SIGKILL, 0.0),  # before MPI is initialized
        (3, 0, signal.SIGSEGV, 3.0),
        pytest.param(4, 2, signal.SIGKILL, 6.0, marks=pytest.mark.exhaustive),
    ],
)
def test_killed_rank_is_named_and_ends_all(size, victim, number, delay):
    Kill(size, victim, number, delay).run("--epochs", "50", *TINY)


def test_killed_supervisor_ends_its_rank_and_all_others():
    code = (
        "import os, sys, time\nfrom train.supervisor import ranks, supervised\n"
        "def main():\n"
        "    print(os.getpid(), flush=True)\n"
        "    if ranks()[0]: time.sleep(60)\n"
        "    os.kill(os.getppid(), 9); time.sleep(60)\n"
        "sys.exit(supervised(main))"
    )
    start = time.monotonic()
    result = run(2, code, check=False, timeout=30)
    assert result.code and time.monotonic() - start < 20
    time.sleep(0.2)
    assert not any(is_alive(int(out)) for out in filter(None, result.out))


def test_error_on_all_ranks_is_printed_once(tmp_path):
    for flags, message in ((["--epocs", "3"], "did you mean --epochs"), (["--batch-size", "1"], "use at least 2")):
        result = subprocess.run(
            [MPIEXEC, "-n", "2", sys.executable, "-m", "train", *TINY, *flags, "--output", str(tmp_path / "run")],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        text = result.stdout + result.stderr
        assert result.returncode and text.count(message) == 1 and "rank 0 of 2: python -m train" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_launcher_stops_all_ranks_gently(number, tmp_path):
    job = subprocess.Popen(
        [MPIEXEC, "-n", "2", sys.executable, "-m", "train", *TINY, "--epochs", "200", "--output", tmp_path / "run"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert any(line.startswith("epoch") for line in iter(job.stdout.readline, ""))  # reads up to the first epoch
        job.send_signal(number)
        text, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode and text.count("--resume") == text.count("stopping after this step") == 1, text
    resumed = train("--resume", tmp_path / "run", "--help", cwd=tmp_path)
    assert resumed.returncode == 0


def test_process_alone_is_not_forked(monkeypatch):
    monkeypatch.setattr(os, "fork", None)
    assert train("--help", cwd=ROOT).returncode == 0 and ranks() == (0, 1)
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "3")
    assert ranks() == (1, 3)
