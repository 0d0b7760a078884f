"""Trains a model twice, with minigrad and with PyTorch, and compares the curves.

    python -m tests.benchmarks.training --dataset cifar10 --data-dir data
        --recipe fast --epochs 5 --train-num-samples 10000 --threads 1

Both runs start from the same weights and get the same augmented batches in the
same order. Model, gradients, loss, clipping, AdamW and the choice of parameters
without weight decay are PyTorch's and timm's. In float32, rounding drives the
runs apart, as another seed would: the first losses agree to about 1e-6, the
last results within the spread of the seeds. Writes training.csv and
training.png. Other flags: those of python -m train.
"""

import argparse
import copy
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigrad import manual_seed, tune_cpu
from models.compare.references import Reference
from models.terminal import escape_unencodable
from train.__main__ import parse
from train.config.errors import InputError
from train.config.settings import Settings
from train.create import create_dataset, create_model, create_trainer, model_arguments
from train.data.dataset import Dataset
from train.loop import Trainer

LIBRARIES = ("minigrad", "PyTorch")
ONLY = {"drop_path": 0.0, "opt": "adamw", "amp": False, "grad_accum_steps": 1, "device": "cpu", "layer_decay": 1.0}
"""The only values of these settings that `TorchRun` has."""


class Row(NamedTuple):
    library: str
    seed: int
    epoch: int
    train_loss: float
    train_acc: float
    test_loss: float
    test_acc: float


class TorchRun:
    """The run of `trainer` in PyTorch: timm's model with the same weights, and the same settings."""

    def __init__(self, trainer: Trainer, settings: Settings) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        arguments = model_arguments(settings, trainer.dataset)
        reference = Reference("timm", arguments.pop("name"), **arguments)
        reference.load({name: p.data for name, p in trainer.model.named_parameters()})
        from timm.optim import param_groups_weight_decay  # `Reference` has imported timm with its precautions

        self.network, self.settings = reference.network.float(), settings
        self.ema = copy.deepcopy(self.network) if settings.model_ema else None
        undecayed = self.network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()
        groups = param_groups_weight_decay(self.network, settings.weight_decay, no_weight_decay_list=undecayed)
        self.optimizer = torch.optim.AdamW(groups, settings.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, trainer.schedule.factor)
        self.smoothing = 0.0 if trainer.step.transform.augment.mixes else settings.smoothing
        self.steps, self.sums = 0, np.zeros(2)  # of loss and correct predictions in an epoch

    def step(self, images: np.ndarray, targets: np.ndarray, labels: np.ndarray) -> float:
        """One step on augmented images (B, C, H, W) and their targets. Returns the loss."""
        import torch

        logits = self.network.train()(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), label_smoothing=self.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            limit = (1 + self.steps) / (10 + self.steps) if self.settings.model_ema_warmup else 1.0
            with torch.no_grad():
                for average, p in zip(self.ema.parameters(), self.network.parameters(), strict=True):
                    average.lerp_(p, 1 - min(self.settings.model_ema_decay, limit))
        self.steps += 1
        self.sums += loss.item() * len(labels), (logits.argmax(1).numpy() == labels).sum()
        return loss.item()

    def evaluate(self, dataset: Dataset) -> tuple[float, float]:
        """Mean loss and accuracy on the test images."""
        import torch

        network, test = (self.network if self.ema is None else self.ema).eval(), dataset.test
        images, labels = torch.from_numpy(dataset.normalizer()(test.images)), torch.from_numpy(test.labels)
        with torch.no_grad():
            logits = torch.cat([network(part) for part in images.split(500)])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return loss.item(), (logits.argmax(1) == labels).double().mean().item()


class Pair:
    """A run with both libraries, step by step. `differences` has |difference of the losses| for each step."""

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        manual_seed(settings.seed)
        self.trainer = create_trainer(settings, create_model(settings, dataset), dataset)
        self.torch, self.seed, self.differences = TorchRun(self.trainer, settings), settings.seed, list[float]()
        self.advance, self.trainer.advance = self.trainer.advance, self.step

    def step(self, index: np.ndarray) -> None:
        """A step of each library on the images at these indices."""
        step = self.trainer.step
        draws, before, (images, labels) = step.draws, step.sums.sums[0].item(), step.data.take(index)
        batch = step.transform(images, labels)
        step.draws = draws  # so that minigrad's step draws the same batch
        self.advance(index)
        loss = (step.sums.sums[0].item() - before) / len(index)
        self.differences.append(abs(self.torch.step(*batch, labels) - loss))

    def fit(self) -> list[Row]:
        """Train to the last epoch; the rows of both libraries."""
        rows, dataset = [], self.trainer.dataset
        with self.trainer.step.shards:
            for m in self.trainer.fit():
                ours = m.train_loss, m.train_acc, m.test_loss, m.test_acc
                theirs = *(self.torch.sums / len(dataset.train)).tolist(), *self.torch.evaluate(dataset)
                self.torch.sums[...] = 0
                rows += [Row(name, self.seed, m.epoch, *x) for name, x in zip(LIBRARIES, (ours, theirs), strict=True)]
                accuracies = f"{m.test_acc:.2%} with minigrad, {theirs[-1]:.2%} with PyTorch"
                print(f"seed {self.seed}  epoch {m.epoch}/{self.trainer.epochs}  test {accuracies}", flush=True)
        return rows


def values_of(rows: Sequence[Row], library: str, name: str) -> np.ndarray:
    """A column of the rows of a library: (seeds, epochs)."""
    seeds = len({row.seed for row in rows})
    return np.array([getattr(row, name) for row in rows if row.library == library]).reshape(seeds, -1)


def summary(rows: Sequence[Row]) -> str:
    """Means over the seeds after the last epoch, their difference, and the standard deviation of the seeds."""
    lines = [f"{'':12}{'minigrad':>10}{'PyTorch':>10}{'difference':>12}{'std of seeds':>14}"]
    for name in Row._fields[3:]:
        ours, theirs = (values_of(rows, library, name)[:, -1] for library in LIBRARIES)
        means = ours.mean(), theirs.mean(), ours.mean() - theirs.mean()
        spread = np.std([ours, theirs], axis=1, ddof=1).mean() if len(ours) > 1 else np.nan
        lines.append("{:12}{:10.4f}{:10.4f}{:12.0e}{:14.4f}".format(name.replace("_", " "), *means, spread))
    return "\n".join(lines)


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Loss and accuracy of each epoch: seeds as thin lines, their means as thick ones."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"without {path.name}: pip install matplotlib")
        return

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = sorted({row.epoch for row in rows})
    for axes, quantity, unit in zip(figure.subplots(1, 2), ("loss", "acc"), (1, 100), strict=True):
        for library, colour, width in (("PyTorch", "tab:orange", 4.0), ("minigrad", "tab:blue", 1.5)):
            for split, style in (("train", "--"), ("test", "-")):
                curves = unit * values_of(rows, library, f"{split}_{quantity}")
                axes.plot(epochs, curves.T, style, color=colour, linewidth=0.6, alpha=0.6)
                axes.plot(epochs, curves.mean(0), style, color=colour, linewidth=width, label=f"{library}, {split}")
        axes.set(xlabel="epoch", ylabel="loss" if unit == 1 else "accuracy, %")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    escape_unencodable()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.training", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs with each library (3)")
    parser.add_argument("--out", type=Path, default=Path("runs/training"), metavar="DIR", help="(runs/training)")
    options, flags = parser.parse_known_args(arguments)
    try:
        settings = parse(flags)
        dataset = create_dataset(settings)
    except InputError as error:
        parser.error(str(error))
    for name, value in ONLY.items():
        if getattr(settings, name) != value:
            parser.error(f"the run in PyTorch has no other --{name.replace('_', '-')} than {value}")
    tune_cpu(settings.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for seed in range(settings.seed, settings.seed + options.seeds):
        pair = Pair(replace(settings, seed=seed), dataset)
        rows += pair.fit()
        print(f"seed {seed}  losses of the first 20 steps differ by up to {max(pair.differences[:20]):.1e}")
    with (options.out / "training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *rows])
    draw(rows, f"{settings.model}, {dataset.name}, {len(dataset.train):,} images", options.out / "training.png")
    print(summary(rows))


if __name__ == "__main__":
    main()
