"""Run `python -m train` in a process of its own."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = ["--train-num-samples", "200", "--val-num-samples", "50", "--batch-size", "20"]
"""Flags of a run of ten steps an epoch."""


def train(*flags, cwd, **options):
    """Run `python -m train` in a process; a warning is an error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "train", *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, **options)


def rows(folder):
    """The rows of metrics.csv."""
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
