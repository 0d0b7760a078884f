"""Searches the settings of --recipe laptop: variants of models and settings.

    python -m tests.benchmarks.search --data-dir data --log search.csv

A trial trains a variant once, in one thread. All trials of a rung cost the same
CPU time: the number of training images is the seconds of the rung divided by
the CPU time of an image, in the fastest step (other work on the machine slows
steps down, but hardly the fastest). Up to 45,000 images, a trial sees each
image once. The last 5,000 training images are for validation: the test images
stay unseen. The better half of a family's variants continues in the next rung,
with a new run (successive halving). Instead, --variants names the trials:

    python -m tests.benchmarks.search --variants "swin: mlp ratio 2" --rung 1

Trials in the log are not repeated: stop the program, add variants, and go on.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

import models
from minigrad import manual_seed, tune_cpu
from models.terminal import ArgumentParser, escape_unencodable
from train.__main__ import parse
from train.config.settings import FLAGS
from train.create import create_trainer
from train.data import cifar
from train.data.dataset import Dataset, Split
from train.loop import DivergedError, Trainer

RUNGS = (60, 300, 1500)  # seconds of CPU time of a trial
WARMUP = 0.15  # of the steps
VALIDATION = 5000  # images
COLUMNS = (
    "variant", "seed", "rung", "parameters", "ms_per_image", "images", "epochs", "cpu_seconds",
    "train_loss", "train_acc", "val_loss", "val_acc", "settings",
)  # fmt: skip

COMMON: dict[str, Any] = {"batch_size": 64, "opt": "muon", "lr": 5e-3, "smoothing": 0.1}
FAST: dict[str, Any] = {"opt": "adamw", "lr": 1e-3, "batch_size": 256, "cutout": 8}  # as --recipe fast
ATTO: dict[str, Any] = {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "stem_kernel_size": 2}
# The variants that the search began with. The registered models have the arguments that the search found.
BASES: dict[str, dict[str, Any]] = {
    "convnext": {
        "model": "convnext_micro_cifar", "depths": (2, 2, 2), "dims": (48, 96, 192), "stem_kernel_size": 3,
        "kernel_size": 7, "mlp_ratio": 4.0, "layer_scale_init_value": 1.0,
    },
    "vit": {"model": "vit_micro_cifar", "global_pool": "avg"},
    "hybrid": {"model": "hybrid_micro_cifar", "layers": (2, 2), "depth": 3},
    "swin": {"model": "swin_micro_cifar", "mlp_ratio": 4.0},
}  # fmt: skip
TRAINING: dict[str, dict[str, Any]] = {  # changes for every family
    "lr 2e-3": {"lr": 2e-3},
    "lr 1e-2": {"lr": 1e-2},
    "adamw, lr 2e-3": {"opt": "adamw", "lr": 2e-3},
    "adamw, lr 5e-3": {"opt": "adamw"},
    "batch 128": {"batch_size": 128},
    "batch 32": {"batch_size": 32},
    "no smoothing": {"smoothing": 0.0},
}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {  # of the base of the family, most informative first
    "convnext": {
        "base": {},
        "as --recipe fast": FAST | ATTO | {"layer_scale_init_value": 1e-6},
        "as --recipe fast, scale 1": FAST | ATTO,
        **TRAINING,
        "lr 2e-3, scale 1e-6": {"lr": 2e-3, "layer_scale_init_value": 1e-6},
        "lr 2e-3, stem 2": {"lr": 2e-3, "stem_kernel_size": 2},
        "dims 64": {"dims": (64, 128, 256)},
        "mlp ratio 2": {"mlp_ratio": 2.0},
        "mlp ratio 2, kernel 5, depths 3": {"mlp_ratio": 2.0, "kernel_size": 5, "depths": (3, 3, 3)},
        "mlp ratio 2, kernel 3": {"mlp_ratio": 2.0, "kernel_size": 3},
        "dims 32, depths 3, kernel 3": {"dims": (32, 64, 128), "depths": (3, 3, 3), "kernel_size": 3},
        "dims 32, depths 3, kernel 5": {"dims": (32, 64, 128), "depths": (3, 3, 3), "kernel_size": 5},
        "8 x 8 maps": {"stem_size": 4, "stem_kernel_size": 5, "dims": (96, 192), "depths": (3, 3)},
        "kernel 5": {"kernel_size": 5},
        "depths 2, 4, 2": {"depths": (2, 4, 2)},
        "stem 4": {"stem_kernel_size": 4},
        "scale 0.1": {"layer_scale_init_value": 0.1},
        "kernel 3": {"kernel_size": 3},
    },
    "vit": {
        "base": {},
        "as --recipe fast": FAST | {
            "lr": 1.5e-3, "embed_dim": 64, "depth": 4, "num_heads": 4, "global_pool": "token",
        },
        **TRAINING,
        "lr 2e-3, dim 128, depth 4": {"lr": 2e-3, "embed_dim": 128, "depth": 4, "num_heads": 4},
        "dim 128, depth 4": {"embed_dim": 128, "depth": 4, "num_heads": 4},
        "dim 64, depth 4": {"embed_dim": 64, "depth": 4, "num_heads": 4},
        "lr 2e-3, class token": {"lr": 2e-3, "global_pool": "token"},
        "class token": {"global_pool": "token"},
        "dim 128, depth 4, class token": {"embed_dim": 128, "depth": 4, "num_heads": 4, "global_pool": "token"},
        "mlp ratio 4": {"mlp_ratio": 4.0},
        "6 heads": {"num_heads": 6},
    },
    "hybrid": {
        "base": {},
        "as --recipe fast": FAST | {
            "lr": 1.5e-3, "stem_stride": 1, "layers": (1, 1, 1), "channels": (128, 256, 512), "embed_dim": 96,
            "depth": 4, "num_heads": 3, "mlp_ratio": 4.0, "global_pool": "token",
        },
        **TRAINING,
        "lr 2e-3, three stages": {"lr": 2e-3, "layers": (2, 2, 2), "channels": (128, 256, 512)},
        "layers 3, 3, depth 1": {"layers": (3, 3), "depth": 1},
        "layers 1, 1": {"layers": (1, 1)},
        "stem 1": {"stem_stride": 1, "layers": (1, 1, 1), "channels": (128, 128, 256)},
        "channels 256": {"channels": (256, 256)},
    },
    "swin": {
        "base": {},
        "as --recipe fast": FAST,
        **TRAINING,
        "lr 2e-3, dim 48": {"lr": 2e-3, "embed_dim": 48, "num_heads": (3, 6, 12)},
        "lr 2e-3, window 8": {"lr": 2e-3, "window_size": 8},
        "dim 48": {"embed_dim": 48, "num_heads": (3, 6, 12)},
        "depths 2, 4": {"depths": (2, 4), "num_heads": (2, 4)},
        "mlp ratio 2": {"mlp_ratio": 2.0},
    },
}  # fmt: skip


class Variant:
    """Settings of `python -m train`, and arguments of the model: the keys that are not settings."""

    def __init__(self, family: str, change: str) -> None:
        self.name = f"{family}: {change}"
        self.values = COMMON | BASES[family] | CHANGES[family][change]
        self.settings = {key: value for key, value in self.values.items() if key in FLAGS}
        self.arguments = {key: value for key, value in self.values.items() if key not in FLAGS}

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
        start, result = time.process_time(), ("nan", 0.0, "nan", 0.0)
        try:
            for m in trainer.fit():
                result = m.train_loss, m.train_acc, m.test_loss, m.test_acc
        except DivergedError as error:
            print(f"{self.name}: {error}")
            result = "nan", 0.0, "nan", 0.0
        parameters, settings = sum(p.data.size for p in trainer.step.parameters), json.dumps(self.values)
        values = parameters, ms, images, epochs, time.process_time() - start, *result, settings
        return dict(zip(COLUMNS, (self.name, seed, rung, *values), strict=True))


def read(log: Path) -> list[dict[str, str]]:
    """The trials so far."""
    if not log.exists():
        return []
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def is_done(name: str, rung: int, seed: int, log: Path) -> bool:
    """Whether the trial is in the log."""
    return any((row["variant"], row["rung"], row["seed"]) == (name, str(rung), str(seed)) for row in read(log))


def append(log: Path, row: dict[str, Any]) -> None:
    new = not log.exists()
    with log.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if new:
            table.writeheader()
        table.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})


def halving(families: Sequence[str], log: Path) -> Iterator[tuple[Variant, int]]:
    """The trials of a search: rung by rung, the families in turn; in a rung, the better half of the previous rung."""
    for rung in range(len(RUNGS)):
        queues = [ranked(family, log, rung)[: ceil(len(CHANGES[family]) / 2**rung)] for family in families]
        for variant in filter(None, chain.from_iterable(zip_longest(*queues))):
            yield variant, rung


def named(names: Sequence[str], rung: int) -> Iterator[tuple[Variant, int]]:
    """The trials of the variants of these names, as in the log."""
    for name in names:
        yield Variant(*name.split(": ")), rung


def ranked(family: str, log: Path, rung: int) -> list[Variant]:
    """The variants of a family, best first in the rung before; for rung 0, in the order of the table."""
    accuracy = {row["variant"]: float(row["val_acc"]) for row in read(log) if row["rung"] == str(rung - 1)}
    return sorted((Variant(family, change) for change in CHANGES[family]), key=lambda v: -accuracy.get(v.name, 0.0))


def main(arguments: Sequence[str] | None = None) -> None:
    escape_unencodable()
    parser = ArgumentParser(
        prog="python -m tests.benchmarks.search", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="CIFAR-10, or above (data)")
    parser.add_argument("--log", type=Path, default=Path("search.csv"), metavar="FILE", help="(search.csv)")
    parser.add_argument("--minutes", type=float, default=60, metavar="M", help="no trial starts later (60)")
    parser.add_argument("--families", nargs="+", default=list(BASES), choices=list(BASES), metavar="F", help="(all)")
    every = [f"{family}: {change}" for family, changes in CHANGES.items() for change in changes]
    parser.add_argument("--variants", nargs="+", choices=every, metavar="V", help="only these, in one rung (halving)")
    parser.add_argument("--rung", type=int, default=0, choices=range(len(RUNGS)), help="of --variants (0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed repeats the trials (0)")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    tune_cpu(1)
    dataset = cifar.load(cifar.SOURCES["cifar10"], options.data_dir)
    train, validation = dataset.train.first(-VALIDATION), slice(-VALIDATION, None)
    test = Split(dataset.train.images[validation], dataset.train.labels[validation])
    chosen = named(options.variants, options.rung) if options.variants else halving(options.families, options.log)
    for variant, rung in chosen:
        if time.monotonic() > end:
            return
        if is_done(variant.name, rung, options.seed, options.log):
            continue
        row = variant.run(replace(dataset, train=train, test=test), rung, options.seed)
        append(options.log, row)
        print(f"rung {rung}  {variant.name:32}{row['ms_per_image']:6.2f} ms  {row['val_acc']:.2%}", flush=True)


if __name__ == "__main__":
    main()
