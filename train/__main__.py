"""The command line: `python -m train --help`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import chain, count
from math import isfinite, nan
from pathlib import Path
from typing import Any, NoReturn

from train.errors import InputError
from train.settings import BY_DATASET, COMMON, Settings
from train.shards import limit_blas


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    try:
        run(parse(arguments))
    except InputError as error:
        print(f"python -m train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the checkpoints of the last finished epoch are kept", file=sys.stderr)
        return 130
    return 0


def run(settings: Settings) -> None:
    """Train, and leave everything in the output folder. NumPy and the models load here, not before `--help`."""
    limit_blas(settings.threads)
    import models
    from minigrad import manual_seed
    from train import checkpoint, datasets, loop, plots
    from train.log import MetricsFile

    check(settings)
    dataset = datasets.load(settings)
    manual_seed(settings.seed)
    try:
        model = models.create_model(**checkpoint.model_arguments(dataset, settings)).to(settings.device)
    except (ValueError, TypeError) as error:
        raise InputError(f"--model {settings.model}: {error}") from None
    folder = Path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings.write(folder / "args.json")
        log = MetricsFile(folder / "metrics.csv")
    except OSError as error:
        raise InputError(f"cannot write to --output {folder}: {error.strerror}") from None

    trainer = loop.Trainer(model, dataset, settings)
    print(f"model    {settings.model}, {sum(p.data.size for p in model.parameters()):,} parameters")
    print(f"data     {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images, "
          f"{len(dataset.classes)} classes")  # fmt: skip
    print(f"train    {settings.epochs} epochs of {trainer.steps} steps, batch {settings.batch_size}, lr {settings.lr:g}, "
          f"seed {settings.seed}, on {settings.device}")  # fmt: skip
    print(f"output   {folder}", flush=True)

    history = []
    best = -1.0
    for metrics in trainer.fit():
        history.append(metrics)
        log.append(metrics)
        checkpoint.save(folder / f"last.{settings.checkpoint_format}", model, dataset, settings, metrics)
        if metrics.test_acc > best:
            best = metrics.test_acc
            checkpoint.save(folder / f"best.{settings.checkpoint_format}", model, dataset, settings, metrics)
        print(metrics.line(settings.epochs), flush=True)
    plots.curves(history, f"{settings.model} on {dataset.name}", folder / "curves.png")
    print(f"best test accuracy {best:.2%}; results in {folder}: {', '.join(sorted(f.name for f in folder.iterdir()))}")


def check(settings: Settings) -> None:
    """Refuse, before any work, what would fail only after it."""
    import numpy as np

    from minigrad.backend import to_device

    try:
        to_device(np.zeros(1), settings.device)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--device {settings.device}: {error}") from None
    if settings.checkpoint_format == "safetensors":
        try:
            import safetensors.numpy  # noqa: F401
        except ImportError:
            raise InputError(
                "--checkpoint-format safetensors needs its library: pip install 'minigrad[train]'"
            ) from None
    if (Path(settings.output) / "metrics.csv").exists():
        raise InputError(f"--output {settings.output} holds the results of an earlier run; name another folder")


def parse(arguments: Sequence[str] | None) -> Settings:
    """The settings of a run: what the flags say, and the defaults of the dataset for the rest."""
    given = {name: value for name, value in vars(parser().parse_args(arguments)).items() if value is not None}
    dataset = given.get("dataset", COMMON["dataset"])
    settings = {**COMMON, **BY_DATASET[dataset], **given}
    if settings["warmup_epochs"] > settings["epochs"]:
        if "warmup_epochs" in given:
            raise InputError(
                f"--warmup-epochs {settings['warmup_epochs']:g} is more than --epochs {settings['epochs']}"
            )
        settings["warmup_epochs"] = settings["epochs"] / 10
    settings.setdefault("output", _unused_folder(f"runs/{settings['model']}-{dataset}"))
    return Settings(**settings)


def parser() -> argparse.ArgumentParser:
    """Every flag; its default is None here, which stands for the default of the dataset."""
    parser = _Parser(
        prog="python -m train",
        description="Train an image classifier. Without any flag: a small vision transformer on drawn shapes, which "
        "needs no download and takes about two minutes on two CPU cores.",
        epilog="example: python -m train --dataset cifar10 --download --model vit_tiny_cifar --epochs 100 --device cuda",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
        allow_abbrev=False,
    )

    def add(group: Any, flag: str, text: str, **choices: Any) -> None:
        name = flag[2:].replace("-", "_")
        group.add_argument(flag, help=f"{text} ({_default(name)})", **choices)

    what = parser.add_argument_group("what to train")
    add(what, "--model", "a name of the registry, models.list_models()", metavar="NAME")
    add(what, "--dataset", "what to train on", choices=list(BY_DATASET))
    add(what, "--data-dir", "where the dataset's folder or archive is, or that folder or archive", metavar="DIR")
    add(what, "--download", "fetch the dataset into --data-dir if it is not there", action="store_true", default=None)
    add(what, "--train-num-samples", "use only the first N training images", metavar="N", type=_whole(1))
    add(what, "--val-num-samples", "use only the first N test images", metavar="N", type=_whole(1))

    how = parser.add_argument_group("how to train: AdamW, the rate rising in a straight line, then falling as a cosine")
    add(how, "--epochs", "times that every image is seen", metavar="N", type=_whole(1))
    add(how, "--batch-size", "images in a step", metavar="N", type=_whole(1))
    add(how, "--lr", "learning rate at its highest", metavar="LR", type=_number(above=0))
    add(how, "--warmup-epochs", "epochs, or a part of one, until it is reached", metavar="N", type=_number(least=0))
    add(
        how,
        "--weight-decay",
        "for weights; biases, norms and embeddings are spared",
        metavar="WD",
        type=_number(least=0),
    )
    add(
        how,
        "--clip-grad",
        "largest norm of all gradients together; 0 for no limit",
        metavar="NORM",
        type=_number(least=0),
    )
    add(how, "--smoothing", "label smoothing", metavar="SHARE", type=_number(least=0, below=1))
    add(
        how, "--drop-path", "rate of stochastic depth in the last block", metavar="RATE", type=_number(least=0, below=1)
    )
    add(how, "--aug", "random flips and shifted crops", action=argparse.BooleanOptionalAction, default=None)
    add(how, "--seed", "the same seed gives the same run on the same machine", metavar="N", type=_whole(0, 2**32 - 1))

    where = parser.add_argument_group("where")
    add(where, "--device", 'cpu, cuda or cuda:N (needs an extra: "minigrad[cuda13]")', metavar="DEVICE")
    add(where, "--threads", "shards of a batch computed at once on the CPU", metavar="N", type=_whole(1))
    add(where, "--validation-batch-size", "images at once when testing", metavar="N", type=_whole(1))
    add(where, "--output", "folder for the results", metavar="DIR")
    add(where, "--checkpoint-format", "of the files best and last", choices=["npz", "safetensors"])
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the list of all flags."""
        raise InputError(f"{message} (--help lists all flags)")


def _default(name: str) -> str:
    """How the help shows a default, e.g. `shapes: 6, cifar10: 50`."""
    if name == "output":
        return "runs/MODEL-DATASET, numbered if taken"
    if name in COMMON:
        return f"default {_show(COMMON[name])}"
    values = {dataset: defaults[name] for dataset, defaults in BY_DATASET.items()}
    return "default " + ", ".join(f"{_show(value)} for {dataset}" for dataset, value in values.items())


def _show(value: Any) -> str:
    return (
        {None: "all", True: "yes", False: "no"}.get(value) or f"{value}"
        if not isinstance(value, float)
        else f"{value:g}"
    )


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text}")
        return value

    return read


def _number(
    *, least: float | None = None, above: float | None = None, below: float | None = None
) -> Callable[[str], float]:
    bounds = " and ".join(
        f"{word} {bound:g}"
        for word, bound in (("at least", least), ("above", above), ("below", below))
        if bound is not None
    )

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = nan
        fits = (
            (least is None or value >= least) and (above is None or value > above) and (below is None or value < below)
        )
        if not (isfinite(value) and fits):
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text!r}")
        return value

    return read


def _unused_folder(name: str) -> str:
    """`name`, or `name-2`, `name-3` ...: the first that holds no results."""
    candidates = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(folder for folder in candidates if not (Path(folder) / "metrics.csv").exists())


if __name__ == "__main__":
    sys.exit(main())
