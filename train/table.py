"""L7: the table of results: runs its rows one after another, and writes the table. `python -m train.table --help`."""

import argparse
import csv
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from signal import SIGTERM

from minigrad.nn import init
from models.registry import create_model
from models.terminal import escape_unencodable
from train.output.naming import TABLE

_CIFAR10 = ("--dataset", "cifar10")
_STANDARD = (*_CIFAR10, "--recipe", "standard", "--device", "cuda", "--amp")
_MODELS = ("vit_tiny_cifar", "swin_tiny_cifar", "convnext_mid_cifar", "hybrid_cifar")
GROUPS: dict[str, dict[str, Sequence[str]]] = {
    "cpu": {
        model: (*_CIFAR10, "--recipe", "laptop", "--model", model)
        for model in ("convnext_micro_cifar", "hybrid_micro_cifar", "swin_micro_cifar", "vit_micro_cifar")
    },
    "gpu": {
        f"{model}-seed{seed}": (*_STANDARD, "--model", model, "--seed", str(seed))
        for seed in (0, 1, 2)
        for model in _MODELS
    },
}
"""The flags of each row of the table, most important first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows of a group that are not finished. Returns the exit code: 1 if a run failed, else 0."""
    escape_unencodable()
    parser = argparse.ArgumentParser(
        prog="python -m train.table",
        allow_abbrev=False,
        usage="python -m train.table GROUP [--minutes M] [--output DIR] [FLAG ...]",
        description="Runs `python -m train` for each row of the table of results, one after another, and "
        "writes table.md and a copy of each metrics.csv. The same command continues: finished rows are kept, "
        "and a run that was stopped goes on from its last step.",
        epilog="Any other flag, such as --data-dir, is passed to each run.",
    )
    parser.add_argument("group", choices=list(GROUPS), help="cpu: recipe laptop; gpu: recipe standard, three seeds")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="stop after M minutes (never)")
    parser.add_argument("--output", type=Path, default=Path("runs/table"), metavar="DIR", help="folder (runs/table)")
    options, flags = parser.parse_known_args(arguments)
    end, rows, failed = time.monotonic() + 60 * options.minutes, GROUPS[options.group], False
    options.output.mkdir(parents=True, exist_ok=True)
    for name, row in rows.items():
        left = end - time.monotonic()
        if not left > 0:  # as for NaN
            break
        print(f"python -m train {' '.join([*row, *flags])}", flush=True)
        failed |= not run([*row, *flags], options.output / name, left)
        write(rows, flags, options.output)
    print(f"wrote {options.output / 'table.md'}")
    return int(failed)


def run(flags: Sequence[str], folder: Path, seconds: float) -> bool:
    """Begin or continue a run; after `seconds`, SIGTERM makes it save its state and stop. False if the run failed."""
    command = [sys.executable, "-m", "train", *flags, "--output", str(folder), "--resume", "auto"]
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(min(seconds, 1e6))
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait()
    return code in (0, 128 + SIGTERM, -SIGTERM)


def write(rows: dict[str, Sequence[str]], flags: Sequence[str], output: Path) -> None:
    """Write table.md, with the rows that have an epoch, and NAME.csv, a copy of the metrics of each row."""
    lines = [
        "| data | model | command: `python -m train` ... | test accuracy, last epoch | time |\n|---|---|---|---|---|\n"
    ]
    for name, row in rows.items():
        metrics = output / name / TABLE
        if metrics.exists():
            shutil.copyfile(metrics, output / f"{name}.csv")
            lines.append(line(name, " ".join([*row, *flags]), output))
    (output / "table.md").write_text("".join(lines))


def line(name: str, command: str, output: Path) -> str:
    """The row of a run, finished or not."""
    settings = tomllib.loads((output / name / "args.toml").read_text())
    with (output / f"{name}.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    with init.meta_init():
        size = sum(p.data.size for p in create_model(settings["model"], num_classes=10).parameters())
    accuracy = f"{100 * float(epochs[-1]['test_acc']):.1f} %"
    if len(epochs) < settings["epochs"]:
        accuracy += f" after {len(epochs)} of {settings['epochs']} epochs"
    minutes = sum(float(epoch["seconds"]) for epoch in epochs) / 60
    return (
        f"| {settings['dataset']} | `{settings['model']}`, {size:,} parameters | `{command}` "
        f"| {accuracy} ([log]({name}.csv)) | {minutes:.0f} min |\n"
    )


if __name__ == "__main__":
    sys.exit(main())
