"""Stage `training`: the test accuracy of the training program, with and without a CUDA graph."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.gpu.stages.stage import Options, Parts, Row

ROOT = Path(__file__).parents[3]


def parts(options: Options) -> Parts:
    return {mode: partial(trained, mode, options) for mode in ("--graph", "--no-graph")}


def trained(mode: str, options: Options, device: str = "cuda") -> Iterator[Row]:
    flags = ["--epochs", "2"]
    if options.data_dir:
        flags = ["--dataset", "cifar10", "--data-dir", options.data_dir, "--model", "vit_tiny_cifar", "--epochs", "3"]
        flags += ["--batch-size", "512", "--lr", "2e-3", "--warmup-epochs", "1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "train", "--device", device, *flags, mode, "--output", f"{folder}/run"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if result.returncode:
            raise RuntimeError(result.stderr[-2000:])
        header, *epochs = (Path(folder) / "run" / "metrics.csv").read_text().splitlines()
    for line in epochs:
        metrics = dict(zip(header.split(","), line.split(","), strict=True))
        yield {
            "what": f"{mode}, epoch {metrics.pop('epoch')}",
            "value": float(metrics.pop("test_acc")),
            "unit": "accuracy",
            **metrics,
        }
