"""Out of memory: a one-line error with advice; saved results are kept."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import minigrad.functional as F
from tests.train.command import ROOT, rows
from train.__main__ import main

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = ["--train-num-samples", "60", "--val-num-samples", "20", "--batch-size", "20", "--epochs", "2"]
ADVICE = "; lower --batch-size, and raise --grad-accum-steps for an equal step, or lower --validation-batch-size\n"


@pytest.mark.parametrize(("threads", "calls", "epochs"), [(2, 0, 0), (1, 3, 0), (2, 5, 1), (2, 7, 1)])
def test_out_of_memory_keeps_completed_epochs(threads, calls, epochs, tmp_path, monkeypatch, capsys):
    """Memory runs out after `calls` steps or evaluations; an epoch has three steps and one evaluation."""
    cross_entropy, left = F.cross_entropy, [calls // 4 * (3 * threads + 1) + calls % 4 * threads]

    def greedy(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            np.empty((1 << 30, 1 << 26), np.uint8)
        return cross_entropy(*args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", greedy)
    flags = [*SMALL, "--threads", str(threads), "--output", str(tmp_path / "out")]
    assert main(flags) == 2
    said = r"python -m train: out of memory \(Unable to allocate 64.0 PiB for an array with shape .*\)"
    assert re.fullmatch(said + re.escape(ADVICE), capsys.readouterr().err)
    assert len(rows(tmp_path / "out")) == epochs
    monkeypatch.setattr(F, "cross_entropy", cross_entropy)
    assert main([*flags, "--resume", "auto"]) == 0
    assert len(rows(tmp_path / "out")) == 2


def test_memory_error_without_a_message(monkeypatch, tmp_path, capsys):
    """Python itself raises MemoryError without a message."""

    def empty(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(F, "cross_entropy", empty)
    assert main([*SMALL, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"python -m train: out of memory{ADVICE}"


# The first run loads everything and fills the caches of the libraries. The second may use 100 MB more.
LIMITED = """
import re, resource, sys
from pathlib import Path
from train.__main__ import main

small, large = sys.argv[1:3]
flags = ["--train-num-samples", "600", "--val-num-samples", "20", "--epochs", "1", "--threads", "1"]
assert main([*flags, "--batch-size", small, "--output", "small"]) == 0
size = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20), resource.RLIM_INFINITY))
sys.exit(main([*flags, "--batch-size", large, "--output", "large"]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_out_of_memory_in_a_process_with_a_limit(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", LIMITED, "60", "600"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"python -m train: out of memory( \(.*\))?" + re.escape(ADVICE), result.stderr)
    assert "best     " in result.stdout and result.stdout.endswith("\noutput   large\n")
    assert not list(tmp_path.rglob("*.part"))
