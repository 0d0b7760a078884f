"""Stages `training` and `runs`: the training program on CIFAR-10, to its accuracy; metrics.csv has every epoch."""

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.gpu.stages.stage import Options, Parts, Row, cifar10

ROOT = Path(__file__).parents[3]
RUNS = (  # model and recipe, most important first
    ("vit_tiny_cifar", "fast"), ("swin_tiny_cifar", "fast"), ("convnext_atto_cifar", "fast"), ("hybrid_cifar", "fast"),
    ("convnext_atto_cifar", "standard"), ("vit_tiny_cifar", "standard"), ("swin_tiny_cifar", "standard"),
    ("hybrid_cifar", "standard"),
)  # fmt: skip
STOPS = 8  # seconds before its limit at which a run is told to save its state and stop


def parts(options: Options) -> Parts:
    """A new run of the first model."""
    return {"vit_tiny_cifar fast": partial(new_run, *RUNS[0], options)}


def new_run(model: str, recipe: str, options: Options) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        yield from trained(f"{model} {recipe}", flags(model, recipe, options), Path(folder) / "run", options)


def all_runs(options: Options) -> Parts:
    """The runs in --runs, each begun or continued. A finished run only gives its row."""
    return {
        f"{model} {recipe}": partial(
            trained, f"{model} {recipe}", [*flags(model, recipe, options), "--resume", "auto"],
            Path(options.runs) / f"{model}-{recipe}", options,
        )
        for model, recipe in RUNS
    }  # fmt: skip


def flags(model: str, recipe: str, options: Options) -> list[str]:
    return [
        "--device", "cuda", "--dataset", "cifar10", "--data-dir", str(cifar10(options)), "--recipe", recipe, "--amp",
        "--model", model, "--validation-batch-size", "5000",
    ]  # fmt: skip


def short(options: Options, device: str = "cuda") -> Iterator[Row]:
    """An epoch on the dataset `shapes`: what is compiled here is not compiled in the stage `training`."""
    chosen = ["--device", device, "--recipe", "fast", "--amp", "--model", "vit_tiny_cifar", "--epochs", "1"]
    chosen += ["--train-num-samples", "1024", "--val-num-samples", "1000"]
    with tempfile.TemporaryDirectory() as folder:
        yield from trained("train, shapes", chosen, Path(folder) / "run", options)


def trained(name: str, chosen: Sequence[str], folder: Path, options: Options) -> Iterator[Row]:
    """Run the training program, and stop it before the stage's time is over. After each of its lines, metrics.csv in
    the output folder has the epochs so far."""
    left = options.deadline - STOPS - time.time()
    if left < STOPS:
        yield {"what": name, "value": "no time left"}
        return
    command, start = [sys.executable, "-m", "train", *chosen, "--output", str(folder)], time.perf_counter()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace", cwd=ROOT) as run,
    ):
        stopper = threading.Timer(min(left, threading.TIMEOUT_MAX), run.terminate)
        stopper.start()
        for _ in run.stdout:  # type: ignore[union-attr]
            publish(name, folder, options.output)
        code = run.wait()
        stopper.cancel()
        said.seek(0)
        if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            raise RuntimeError(said.read())
    epochs = publish(name, folder, options.output)
    row: Row = {"what": name, "value": max((float(x["test_acc"]) for x in epochs), default=0.0), "unit": "accuracy"}
    row |= {"epochs": len(epochs), "seconds": sum(float(x["seconds"]) for x in epochs)}
    yield row | {"stopped": code != 0, "wall_s": time.perf_counter() - start}


def publish(name: str, folder: Path, output: Path) -> list[dict[str, str]]:
    """Copy the epochs of a run to metrics.csv in the output folder, which has those of all runs. Returns the epochs."""
    if not (folder / "metrics.csv").exists():
        return []
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    name, table = name.replace(",", ""), Path(output) / "metrics.csv"
    others = table.read_text().splitlines()[1:] if table.exists() else []
    others = [line for line in others if not line.startswith(f"{name},")]
    table.write_text("\n".join([f"run,{header}", *others, *(f"{name},{line}" for line in lines)]) + "\n")
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
