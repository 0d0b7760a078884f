"""The options that tests/conftest.py adds to pytest."""

import subprocess
import sys
from pathlib import Path

from tests.cuda.runner import barriers

ROOT = Path(__file__).parent.parent


def collected(*options):
    """The tests that pytest, without pytest-xdist, collects for norm.cu's barriers."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--collect-only", *options]
    command += ["tests/cuda/test_norm.py", "-k", "barrier"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_exhaustive_runs_every_case():
    assert len(collected()) == 1
    assert len(collected("--exhaustive")) == len(barriers("norm.cu")) > 1
