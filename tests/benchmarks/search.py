"""Searches the ingredients of --recipe laptop: variants of model and settings, by successive halving.

    python -m tests.benchmarks.search --data-dir data --log search.csv --minutes 60

A trial trains a variant once. All trials of a rung cost the same CPU time: the number of training images is the seconds
of the rung, divided by the CPU time of an image in the fastest step of this model and batch size (on a loaded machine,
steps slow down; the minimum hardly does). The images of a trial differ from one another, up to 45,000. The last 5,000
training images are the validation images: the test images stay unseen. The better half of a family's variants continues
in the next rung, from the start. Trials in the log are not repeated: stop the program at any time, add variants, go on.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, nan
from pathlib import Path
from typing import Any

import numpy as np

import models
from minigrad import manual_seed, tune_cpu
from models.terminal import escape_unencodable
from train.__main__ import parse
from train.config.settings import FLAGS
from train.create import create_trainer
from train.data import datasets
from train.data.dataset import Dataset, Split
from train.loop import DivergedError, Trainer
from train.output.log import Metrics

RUNGS = (60, 300, 1500)  # seconds of CPU time of a trial
WARMUP = 0.15  # of the steps
VALIDATION = 5000  # images
COLUMNS = (
    "variant", "seed", "rung", "parameters", "ms_per_image", "images", "epochs", "cpu_seconds",
    "train_loss", "train_acc", "val_loss", "val_acc", "settings",
)  # fmt: skip

COMMON: dict[str, Any] = {"batch_size": 64, "opt": "muon", "lr": 2e-3, "smoothing": 0.1, "crop_padding_mode": "reflect"}
BASES: dict[str, dict[str, Any]] = {
    "convnext": {
        "model": "convnext_atto_cifar", "depths": (2, 2, 2), "dims": (48, 96, 192), "stem_kernel_size": 3,
        "layer_scale_init_value": 1.0,
    },
    "vit": {"model": "vit_nano_cifar", "embed_dim": 96, "depth": 6, "num_heads": 3, "global_pool": "avg"},
    "hybrid": {
        "model": "hybrid_nano_cifar", "stem_stride": 2, "layers": (2, 2), "channels": (128, 256), "embed_dim": 128,
        "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "global_pool": "avg",
    },
    "swin": {"model": "swin_nano_cifar"},
}  # fmt: skip
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "convnext": {
        "base": {},
        "as --recipe fast": {
            "opt": "adamw", "lr": 1e-3, "batch_size": 256, "layer_scale_init_value": 1e-6, "stem_kernel_size": 2,
            "depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "cutout": 8, "crop_padding_mode": "constant",
        },
        "adamw": {"opt": "adamw"},
        "scale 1e-6": {"layer_scale_init_value": 1e-6},
        "lr 5e-3": {"lr": 5e-3},
        "stem 2": {"stem_kernel_size": 2},
        "batch 128": {"batch_size": 128},
        "kernel 5": {"kernel_size": 5},
        "stem 4": {"stem_kernel_size": 4},
        "dims 64": {"dims": (64, 128, 256)},
        "depths 2, 4, 2": {"depths": (2, 4, 2)},
        "scale 0.1": {"layer_scale_init_value": 0.1},
        "no smoothing": {"smoothing": 0.0},
        "batch 32": {"batch_size": 32},
        "lr 1e-2": {"lr": 1e-2},
        "adamw, lr 5e-3": {"opt": "adamw", "lr": 5e-3},
        "kernel 3": {"kernel_size": 3},
        "dims 32": {"dims": (32, 64, 128)},
    },
    "vit": {
        "base": {},
        "as --recipe fast": {
            "opt": "adamw", "lr": 1.5e-3, "batch_size": 256, "embed_dim": 64, "depth": 4, "num_heads": 4,
            "global_pool": "token", "cutout": 8, "crop_padding_mode": "constant",
        },
        "adamw": {"opt": "adamw"},
        "class token": {"global_pool": "token"},
        "lr 5e-3": {"lr": 5e-3},
        "dim 128, depth 4": {"embed_dim": 128, "depth": 4, "num_heads": 4},
        "dim 64, depth 4": {"embed_dim": 64, "depth": 4, "num_heads": 4},
        "mlp ratio 4": {"mlp_ratio": 4.0},
        "batch 128": {"batch_size": 128},
        "dim 192, depth 4": {"embed_dim": 192, "depth": 4, "num_heads": 3},
        "adamw, lr 5e-3": {"opt": "adamw", "lr": 5e-3},
        "6 heads": {"num_heads": 6},
    },
    "hybrid": {
        "base": {},
        "as --recipe fast": {
            "opt": "adamw", "lr": 1.5e-3, "batch_size": 256, "stem_stride": 1, "layers": (1, 1, 1), "mlp_ratio": 4.0,
            "channels": (128, 256, 512), "embed_dim": 96, "depth": 4, "num_heads": 3, "global_pool": "token",
            "cutout": 8, "crop_padding_mode": "constant",
        },
        "adamw": {"opt": "adamw"},
        "lr 5e-3": {"lr": 5e-3},
        "layers 1, 1, depth 2": {"layers": (1, 1), "depth": 2},
        "stem 1": {"stem_stride": 1, "layers": (1, 1, 1), "channels": (128, 128, 256)},
        "channels 256": {"channels": (256, 256)},
        "batch 32": {"batch_size": 32},
    },
    "swin": {
        "base": {},
        "as --recipe fast": {
            "opt": "adamw", "lr": 1e-3, "batch_size": 256, "cutout": 8, "crop_padding_mode": "constant",
        },
        "adamw": {"opt": "adamw"},
        "lr 5e-3": {"lr": 5e-3},
        "dim 48": {"embed_dim": 48, "num_heads": (3, 6, 12)},
        "mlp ratio 2": {"mlp_ratio": 2.0},
        "window 8": {"window_size": 8},
        "depths 2, 4": {"depths": (2, 4), "num_heads": (2, 4)},
        "batch 128": {"batch_size": 128},
    },
}  # fmt: skip


class Variant:
    """Settings of `python -m train`, and arguments of the model: the keys that are not settings."""

    def __init__(self, family: str, change: str) -> None:
        self.family, self.name = family, f"{family}: {change}"
        values = COMMON | BASES[family] | CHANGES[family][change]
        self.settings = {key: value for key, value in values.items() if key in FLAGS}
        self.arguments = {key: value for key, value in values.items() if key not in FLAGS}

    def trainer(self, dataset: Dataset, **settings: Any) -> Trainer:
        settings = {"threads": 1, "dataset": "cifar10"} | self.settings | settings
        flags = [text for key, value in settings.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        parsed = parse(flags)
        manual_seed(parsed.seed)
        model = models.create_model(parsed.model, num_classes=len(dataset.classes), **self.arguments)
        return create_trainer(parsed, model, dataset)

    def ms_per_image(self, dataset: Dataset) -> float:
        """CPU time of the fastest of some training steps."""
        step, times = self.trainer(dataset).step, []
        for _ in range(ceil(1500 / step.images_per_step)):
            start = time.process_time()
            step(np.arange(step.images_per_step))
            times.append(time.process_time() - start)
        return min(times) / step.images_per_step * 1e3

    def run(self, dataset: Dataset, rung: int, seed: int) -> dict[str, Any]:
        """Train once; returns the row of the log. The accuracy is 0 if the loss became NaN or infinite."""
        ms = self.ms_per_image(dataset)
        epochs = ceil(RUNGS[rung] * 1e3 / ms / len(dataset.train))
        images = round(RUNGS[rung] * 1e3 / ms / epochs)
        trainer = self.trainer(dataset.first(images, None), epochs=epochs, warmup_epochs=WARMUP * epochs, seed=seed)
        start, last = time.process_time(), Metrics(0, 0.0, nan, 0.0, nan, 0.0, 0.0, 0.0)
        try:
            for last in trainer.fit():  # noqa: B007 (the last row is the result)
                pass
        except DivergedError as error:
            print(f"{self.name}: {error}")
        return {
            "variant": self.name, "seed": seed, "rung": rung,
            "parameters": sum(p.data.size for p in trainer.step.parameters), "ms_per_image": ms,
            "images": images, "epochs": epochs, "cpu_seconds": time.process_time() - start,
            "train_loss": last.train_loss, "train_acc": last.train_acc, "val_loss": last.test_loss,
            "val_acc": last.test_acc, "settings": json.dumps(self.settings | self.arguments),
        }  # fmt: skip


def read(log: Path) -> list[dict[str, str]]:
    """The trials so far."""
    if not log.exists():
        return []
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def append(log: Path, row: dict[str, Any]) -> None:
    new = not log.exists()
    with log.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if new:
            table.writeheader()
        table.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})


def trials(families: list[str], log: Path, seed: int) -> Iterator[tuple[Variant, int]]:
    """The trials to run: rung by rung, family by family; in a rung, the better half of the previous rung."""
    for rung in range(len(RUNGS)):
        for family in families:
            names = [f"{family}: {change}" for change in CHANGES[family]]
            accuracy = {row["variant"]: float(row["val_acc"]) for row in read(log) if row["rung"] == str(rung - 1)}
            ranked = sorted(names, key=lambda name: -accuracy.get(name, 0.0))
            for name in ranked[: ceil(len(names) / 2**rung)]:
                if (name, str(rung), str(seed)) not in {
                    (row["variant"], row["rung"], row["seed"]) for row in read(log)
                }:
                    yield Variant(family, name.removeprefix(f"{family}: ")), rung


def main(arguments: Sequence[str] | None = None) -> None:
    escape_unencodable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data", help="folder of CIFAR-10, or its parent (data)")
    parser.add_argument("--log", type=Path, default=Path("search.csv"), help="table of the trials (search.csv)")
    parser.add_argument("--minutes", type=float, default=60, help="no trial starts later than this (60)")
    parser.add_argument("--families", nargs="+", default=list(BASES), choices=list(BASES), metavar="FAMILY")
    parser.add_argument("--seed", type=int, default=0, help="another seed repeats the trials (0)")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    tune_cpu(1)
    dataset = datasets.load("cifar10", options.data_dir)
    train, validation = dataset.train.first(-VALIDATION), slice(-VALIDATION, None)
    test = Split(dataset.train.images[validation], dataset.train.labels[validation])
    for variant, rung in trials(options.families, options.log, options.seed):
        if time.monotonic() > end:
            return
        row = variant.run(replace(dataset, train=train, test=test), rung, options.seed)
        append(options.log, row)
        print(f"rung {rung}  {variant.name:32}{row['ms_per_image']:6.2f} ms  {row['val_acc']:.2%}", flush=True)


if __name__ == "__main__":
    main()
