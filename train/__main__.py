"""L7: the command line: `python -m train --help`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, takewhile
from math import isfinite, nan
from pathlib import Path
from typing import Any, NoReturn

from train.errors import InputError
from train.settings import BY_DATASET, COMMON, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    try:
        settings = parse(arguments)
        try:
            return run(settings)
        except KeyboardInterrupt:
            print("\ninterrupted at once; what was saved before is kept", file=sys.stderr)
            return 130
    except InputError as error:
        print(f"python -m train: {error}", file=sys.stderr)
        return 2


def run(settings: Settings) -> int:
    """Train, and leave everything in the output folder. NumPy and the models load here, not before `--help`."""
    import models
    from minigrad import cublas, manual_seed, tune_cpu
    from train import checkpoint, datasets, loop, plots, resume, signals
    from train.log import Metrics, write_table

    check(settings)
    folder, goes_on = Path(settings.output), settings.resume != "none"
    state = Path(settings.resume) if goes_on else folder / resume.NAME
    settings = replace(settings, resume="none")  # what a run writes is the same however it came about
    if goes_on and resume.is_finished(state):
        print(f"finished {folder} holds all {settings.epochs} epochs: there is nothing to go on with")
        return 0
    dataset = datasets.load(settings)
    manual_seed(settings.seed)
    cublas.allow_tf32(settings.tf32)
    try:
        model = models.create_model(**checkpoint.model_arguments(dataset, settings)).to(settings.device)
    except (ValueError, TypeError) as error:
        raise InputError(f"--model {settings.model}: {error}") from None
    trainer = loop.Trainer(model, dataset, settings)
    history: list[Metrics] = resume.load(state, trainer) if goes_on else []
    if settings.tune_cpu:
        tune_cpu(trainer.threads)

    def keep() -> None:
        """After an epoch, or before the first: the state of the run, and then all that follows from it."""
        resume.save(state, trainer, history)
        publish()

    def publish() -> None:
        if history and not trainer.position:
            better = all(history[-1].test_acc > earlier.test_acc for earlier in history[:-1])
            with trainer.tested():
                for name in ("last", "best") if better else ("last",):
                    file = folder / f"{name}.{settings.checkpoint_format}"
                    checkpoint.save(file, model, dataset, settings, history[-1])
        for name in ("metrics.csv", "metrics.jsonl"):
            write_table(folder / name, history)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if goes_on:
            for left in folder.glob("*.[0-9]*.part"):  # by a process that was killed while it wrote
                left.unlink()
            publish()
        else:
            settings.write(folder / "args.json")
            keep()
        print(
            f"model    {settings.model}, {sum(p.data.size for p in trainer.parameters):,} parameters\n"
            f"data     {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images, "
            f"{len(dataset.classes)} classes\n"
            f"train    {settings.epochs} epochs of {trainer.steps} steps, batch {settings.batch_size}, "
            f"lr {settings.lr:g}, seed {settings.seed}, on {settings.device}"
        )
        if settings.model_ema:
            print(f"average  of the weights, decay {settings.model_ema_decay:g}: what is tested and kept")
        if settings.graph and not trainer.graph:
            print("graph    off: it cannot scale the loss for --amp-dtype float16; bfloat16 needs no scale")
        print(f"output   {folder}", flush=True)
        if goes_on:
            print(f"resume   after epoch {trainer.epoch} and {trainer.position} steps of the next", flush=True)
        with signals.as_wish(trainer.stop) as received:
            try:
                for metrics in trainer.fit():
                    history.append(metrics)
                    keep()
                    print(metrics.line(settings.epochs, "average's test" if settings.model_ema else "test"), flush=True)
            except loop.Stopped:
                resume.save(state, trainer, history)
                place = f"epoch {trainer.epoch} and {trainer.position} of {trainer.steps} steps of the next"
                print(f"stopped after {place}; --resume {folder} goes on from there", file=sys.stderr)
                return 128 + received[0]
        plots.curves(history, f"{settings.model} on {dataset.name}", folder / "curves.png")
        resume.finish(state, settings, history)
    except OSError as error:
        raise InputError(f"cannot write to --output {folder}: {error.strerror}") from None
    best = max(history, key=lambda metrics: metrics.test_acc)
    print(f"best     {best.test_acc:.2%} of the test images, in epoch {best.epoch}; see {folder}")
    return 0


def check(settings: Settings) -> None:
    """Refuse, before any work, what would fail only after it."""
    import numpy as np

    from minigrad.backend import to_device
    from minigrad.dtypes import as_dtype

    try:
        to_device(np.zeros(1), settings.device)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--device {settings.device}: {error}") from None
    if settings.graph and settings.device == "cpu":
        raise InputError("--graph needs --device cuda: CUDA graphs are for a GPU")
    if settings.amp:
        try:
            as_dtype(settings.amp_dtype)
        except RuntimeError as error:
            raise InputError(f"--amp: {error}") from None
    if settings.checkpoint_format == "safetensors":
        try:
            import safetensors.numpy  # noqa: F401
        except ImportError:
            fix = "needs its library: pip install 'minigrad[train]'"
            raise InputError(f"--checkpoint-format safetensors {fix}") from None
    if settings.resume == "none" and _is_taken(settings.output):
        raise InputError(
            f"--output {settings.output} holds the results of an earlier run; name another folder, or --resume auto "
            "if it is to go on"
        )


def parse(arguments: Sequence[str] | None) -> Settings:
    """The settings of a run: what the flags say, and the defaults of the dataset for the rest."""
    given = {name: value for name, value in vars(parser().parse_args(arguments)).items() if value is not None}
    dataset = given.get("dataset", COMMON["dataset"])
    runs = f"runs/{given.get('model', COMMON['model'])}-{dataset}"
    if given.get("resume", "none") != "none":
        from train import resume  # which needs NumPy, and `--help` none

        state = resume.find(given, _newest_folder(runs))
        if state is not None:
            return resume.settings(state, given)
        given["resume"] = "none"
    settings = {**COMMON, **BY_DATASET[dataset], **given}
    epochs, warmup = settings["epochs"], settings["warmup_epochs"]
    if warmup > epochs:
        if "warmup_epochs" in given:
            raise InputError(f"--warmup-epochs {warmup:g} is more than --epochs {epochs}")
        settings["warmup_epochs"] = epochs / 10
    if settings["device"] != "cpu" and "threads" not in given:
        settings["threads"] = 1
    scaled = settings["amp"] and settings["amp_dtype"] == "float16"
    settings.setdefault("graph", settings["device"] != "cpu" and settings["threads"] == 1 and not scaled)
    settings.setdefault("output", _unused_folder(runs))
    return Settings(**settings)


def parser() -> argparse.ArgumentParser:
    """Every flag; its default is None here, which stands for the default of the dataset."""
    parser = _Parser(
        prog="python -m train",
        description="Train an image classifier. Without any flag: a small vision transformer on drawn shapes, which "
        "needs no download and takes about two minutes on two CPU cores.",
        epilog="example: python -m train --model vit_tiny_cifar --dataset cifar10 --download --device cuda",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
        allow_abbrev=False,
    )

    def add(group: Any, flag: str, text: str, **choices: Any) -> None:
        name = flag[2:].replace("-", "_")
        group.add_argument(flag, help=f"{text} ({_default(name)})", **choices)

    count, share, positive, not_negative = _whole(1), _number(least=0, below=1), _number(above=0), _number(least=0)

    what = parser.add_argument_group("what to train")
    add(what, "--model", "a name that models.list_models() lists", metavar="NAME")
    add(what, "--dataset", "what to train on", choices=list(BY_DATASET))
    add(what, "--data-dir", "where its folder or archive is, or that folder or archive itself", metavar="DIR")
    add(what, "--download", "fetch it into --data-dir if it is not there", action="store_true", default=None)
    add(what, "--train-num-samples", "use only the first N training images", metavar="N", type=count)
    add(what, "--val-num-samples", "use only the first N test images", metavar="N", type=count)

    how = parser.add_argument_group(
        "how to train it (AdamW; the rate rises in a straight line, then falls as a cosine)"
    )
    add(how, "--epochs", "how often each image is seen", metavar="N", type=count)
    add(how, "--batch-size", "images worked on at once", metavar="N", type=count)
    add(how, "--grad-accum-steps", "so many batches make a step", metavar="N", type=count)
    add(how, "--lr", "learning rate at its highest", metavar="RATE", type=positive)
    add(how, "--warmup-epochs", "epochs until then, or a fraction of one", metavar="N", type=not_negative)
    add(how, "--weight-decay", "of weights; biases, norms and embeddings are spared", metavar="D", type=not_negative)
    add(how, "--layer-decay", "a block's rate over that of the next", metavar="RATIO", type=_number(above=0, most=1))
    add(how, "--clip-grad", "largest norm of all gradients together; 0: no limit", metavar="NORM", type=not_negative)
    add(how, "--smoothing", "label smoothing", metavar="SHARE", type=share)
    add(how, "--drop-path", "stochastic depth: how often the last block is skipped", metavar="SHARE", type=share)
    ema = "test and keep the moving average of the weights"
    add(how, "--model-ema", ema, action=argparse.BooleanOptionalAction, default=None)
    decay = "of that average: it is over about the last 1 / (1 - D) steps"
    add(how, "--model-ema-decay", decay, metavar="D", type=share)
    rise = "the decay rises to that, as (1 + step) / (10 + step)"
    add(how, "--model-ema-warmup", rise, action=argparse.BooleanOptionalAction, default=None)
    add(how, "--seed", "the same seed repeats a run", metavar="N", type=_whole(0, 2**31 - 2))

    probability, size = _number(least=0, most=1), _whole(0)
    images = parser.add_argument_group(
        "how the images are changed, at random each time (train/augment.py); 0 switches off"
    )
    add(images, "--no-aug", "none of what follows", action="store_true", default=None)
    add(images, "--hflip", "how often an image is flipped left to right", metavar="SHARE", type=probability)
    add(images, "--crop-padding", "pixels by which it is moved, at most", metavar="N", type=size)
    add(images, "--crop-padding-mode", "what is there then: zeros, or a mirror", choices=["constant", "reflect"])
    add(images, "--aa", "RandAugment in timm's notation, such as rand-m9-n2-mstd0.5", metavar="TEXT")
    add(images, "--cutout", "side of a square of the mean colour in each image", metavar="N", type=size)
    add(images, "--reprob", "how often a rectangle is erased", metavar="SHARE", type=probability)
    noise = "filled with noise, noise of one colour, or the mean colour"
    add(images, "--remode", noise, choices=["pixel", "rand", "const"])
    add(images, "--mixup", "mix images in pairs, with λ ~ Beta(ALPHA, ALPHA)", metavar="ALPHA", type=not_negative)
    add(images, "--cutmix", "exchange a box of a share 1 - λ in pairs", metavar="ALPHA", type=not_negative)
    add(images, "--mixup-prob", "how many batches are mixed", metavar="SHARE", type=probability)
    add(images, "--mixup-switch-prob", "of these, by cutmix, if both are on", metavar="SHARE", type=probability)
    add(images, "--aug-repeats", "N times the same image in a batch, and fewer images", metavar="N", type=count)

    where = parser.add_argument_group("where, and what comes out")
    add(where, "--device", "cpu, or cuda with the extra minigrad[cuda13]", metavar="NAME")
    add(where, "--threads", "on the CPU, shards of a batch worked on at once", metavar="N", type=count)
    graph = "a training step as one CUDA graph, see minigrad/graph.py"
    add(where, "--graph", graph, action=argparse.BooleanOptionalAction, default=None)
    amp = "mixed precision: activations narrow, parameters in float32, see minigrad/precision.py"
    add(where, "--amp", amp, action=argparse.BooleanOptionalAction, default=None)
    narrow = "what narrow means; float16 has the loss scaled"
    add(where, "--amp-dtype", narrow, choices=["bfloat16", "float16"])
    tf32 = "on a GPU, products of float32 by tensor cores, of numbers rounded to 10 bits of fraction"
    add(where, "--tf32", tf32, action=argparse.BooleanOptionalAction, default=None)
    tuning = "settings of the process that make NumPy faster, see minigrad/tune.py"
    add(where, "--tune-cpu", tuning, action=argparse.BooleanOptionalAction, default=None)
    add(where, "--validation-batch-size", "images at once when testing", metavar="N", type=count)
    add(where, "--output", "folder for the results", metavar="DIR")
    again = "auto: the run in --output, or its newest folder, goes on if there is one; or name its resume.npz"
    add(where, "--resume", again, metavar="auto|FILE|none")
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
    if name == "graph":
        return "default yes on a GPU, if no loss is scaled"
    if name in COMMON:
        return f"default {_show(COMMON[name])}"
    datasets: dict[str, list[str]] = {}  # with the same default
    for dataset, defaults in BY_DATASET.items():
        datasets.setdefault(_show(defaults[name]), []).append(dataset)
    return "default " + ", ".join(f"{value} for {' and '.join(names)}" for value, names in datasets.items())


def _show(value: Any) -> str:
    if value is None:
        return "all"
    if value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Callable[[str], float]:
    limits = {"at least": least, "above": above, "below": below, "at most": most}
    bounds = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = nan
        low = (least is None or value >= least) and (above is None or value > above)
        high = (below is not None and value >= below) or (most is not None and value > most)
        if not (isfinite(value) and low and not high):
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text!r}")
        return value

    return read


def _unused_folder(name: str) -> str:
    """`name`, or `name-2`, `name-3` ...: the first that holds no results."""
    return next(folder for folder in _numbered(name) if not _is_taken(folder))


def _newest_folder(name: str) -> Path:
    """The last before that, or `name`."""
    taken = list(takewhile(_is_taken, _numbered(name)))
    return Path(taken[-1] if taken else name)


def _numbered(name: str) -> Iterator[str]:
    return chain([name], (f"{name}-{number}" for number in count(2)))


def _is_taken(folder: str) -> bool:
    return any((Path(folder) / name).exists() for name in ("metrics.csv", "resume.npz"))


if __name__ == "__main__":
    sys.exit(main())
