"""L7: the flags of the command line. Light to import: `--help` is answered from here, without NumPy."""

import argparse
from collections.abc import Callable
from math import isfinite, nan
from typing import Any, NoReturn

from train import recipes
from train.errors import InputError
from train.settings import BY_DATASET, COMMON


def parser() -> argparse.ArgumentParser:
    """Every flag; its default is None here, which stands for the default of the dataset."""
    parser = _Parser(
        prog="python -m train",
        usage="python -m train [FLAG ...]",
        description="Train an image classifier. Without any flag: a small vision transformer on drawn shapes, which\n"
        "needs no download and takes about two minutes on two CPU cores. In brackets: what holds without\nthe flag.",
        epilog=f"what the recipes set (why: train/recipes.py):\n{_recipes()}\n\n"
        "example: python -m train --model vit_tiny_cifar --dataset cifar10 --recipe standard --device cuda",
        formatter_class=lambda prog: _Help(prog, max_help_position=32, width=100),
        allow_abbrev=False,
    )

    def add(group: Any, flag: str, text: str, **choices: Any) -> None:
        name = flag[2:].replace("-", "_")
        group.add_argument(flag, help=f"{text} ({_default(name)})", **choices)

    count, share, positive, not_negative = _whole(1), _number(least=0, below=1), _number(above=0), _number(least=0)

    what = parser.add_argument_group("what to train")
    add(what, "--config", "a settings file: TOML, a line for a flag; flags override it", metavar="FILE")
    add(
        what,
        "--recipe",
        "settings that go together, see below; or none",
        choices=["none", *recipes.NAMES],
        metavar="NAME",
    )
    add(what, "--model", "a name that models.list_models() lists", metavar="NAME")
    begin = "begin with the weights in it, trained here or by others"
    add(what, "--initial-checkpoint", begin, metavar="FILE")
    data = "shapes, cifar10, cifar100; folder: of train/CLASS, val/CLASS"
    add(what, "--dataset", data, choices=list(BY_DATASET), metavar="NAME")
    add(what, "--data-dir", "where its folder or archive is, or that folder or archive itself", metavar="DIR")
    add(what, "--download", "fetch it into --data-dir if it is not there", action="store_true", default=None)
    add(what, "--img-size", "height and width to which images of a folder are cut", metavar="N", type=count)
    add(what, "--train-num-samples", "use only the first N training images", metavar="N", type=count)
    add(what, "--val-num-samples", "use only the first N test images", metavar="N", type=count)

    how = parser.add_argument_group("how to train it (the rate rises in a straight line, then falls as a cosine)")
    add(how, "--epochs", "how often each image is seen", metavar="N", type=count)
    add(how, "--batch-size", "images worked on at once", metavar="N", type=count)
    add(how, "--grad-accum-steps", "so many batches make a step", metavar="N", type=count)
    opts = ["adamw", "muon"]
    add(how, "--opt", "adamw, or muon, for matrices alone (minigrad/optim/muon.py)", choices=opts, metavar="NAME")
    add(how, "--lr", "learning rate at its highest", metavar="RATE", type=positive)
    add(how, "--warmup-epochs", "epochs until then, or a fraction of one", metavar="N", type=not_negative)
    add(how, "--weight-decay", "of weights; biases, norms and embeddings are spared", metavar="D", type=not_negative)
    add(how, "--layer-decay", "a block's rate over that of the next", metavar="RATIO", type=_number(above=0, most=1))
    add(how, "--clip-grad", "largest norm of all gradients together; 0: no limit", metavar="NORM", type=not_negative)
    skip = "leave out steps that are not finite, and count them"
    add(how, "--skip-nonfinite", skip, action=argparse.BooleanOptionalAction, default=None)
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
    beside, filling = ["constant", "reflect"], ["pixel", "rand", "const"]
    add(images, "--crop-padding-mode", "beside it then: constant, zeros; or reflect", choices=beside, metavar="MODE")
    add(images, "--aa", "RandAugment in timm's notation, such as rand-m9-n2-mstd0.5", metavar="TEXT")
    add(images, "--cutout", "side of a square of the mean colour in each image", metavar="N", type=size)
    add(images, "--reprob", "how often a rectangle is erased", metavar="SHARE", type=probability)
    what_with = "filled with: pixel, noise; rand, one colour; const, the mean"
    add(images, "--remode", what_with, choices=filling, metavar="MODE")
    add(images, "--mixup", "mix images in pairs, with λ ~ Beta(ALPHA, ALPHA)", metavar="ALPHA", type=not_negative)
    add(images, "--cutmix", "exchange a box of a share 1 - lambda in pairs", metavar="ALPHA", type=not_negative)
    add(images, "--mixup-prob", "how many batches are mixed", metavar="SHARE", type=probability)
    add(images, "--mixup-switch-prob", "of these, by cutmix, if both are on", metavar="SHARE", type=probability)
    add(images, "--aug-repeats", "N times the same image in a batch, and fewer images", metavar="N", type=count)

    where = parser.add_argument_group("where, and what comes out")
    add(where, "--device", "cpu, or cuda with CuPy (pip install 'cupy-cuda13x[ctk]')", metavar="NAME")
    add(where, "--threads", "on the CPU, shards of a batch worked on at once", metavar="N", type=count)
    graph = "a training step as one CUDA graph, see minigrad/graph.py"
    add(where, "--graph", graph, action=argparse.BooleanOptionalAction, default=None)
    amp = "mixed precision: activations narrow (minigrad/precision.py)"
    add(where, "--amp", amp, action=argparse.BooleanOptionalAction, default=None)
    narrow = "bfloat16, or float16, for which the loss is scaled"
    add(where, "--amp-dtype", narrow, choices=["bfloat16", "float16"], metavar="TYPE")
    tf32 = "on a GPU, products of float32 by tensor cores, rounded to 10 bits"
    add(where, "--tf32", tf32, action=argparse.BooleanOptionalAction, default=None)
    tuning = "make NumPy faster, see minigrad/tune.py"
    add(where, "--tune-cpu", tuning, action=argparse.BooleanOptionalAction, default=None)
    add(where, "--validation-batch-size", "images at once when testing", metavar="N", type=count)
    add(where, "--output", "folder for the results", metavar="DIR")
    again = "go on: auto, with what --output holds or the newest; or a folder"
    add(where, "--resume", again, metavar="WHICH")
    formats = ["npz", "safetensors"]
    add(where, "--eval", "train nothing, test a checkpoint on its dataset", metavar="CHECKPOINT")
    add(where, "--checkpoint-format", "of the files best and last: npz or safetensors", choices=formats, metavar="F")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`--[no-]amp`, where argparse has `--amp, --no-amp`."""
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0][2:]}"
        return super()._format_action_invocation(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the list of all flags."""
        raise InputError(f"{message} (--help lists all flags)")


def _default(name: str) -> str:
    """How the help shows a default, e.g. `4 for shapes, else 50`."""
    if name in _DERIVED:
        return _DERIVED[name]
    if name in COMMON:
        return _show(COMMON[name])
    shapes, other = (_show(BY_DATASET[dataset][name]) for dataset in ("shapes", "cifar10"))
    return shapes if shapes == other else f"{shapes} for shapes, else {other}"


_DERIVED = {
    "config": "none",
    "output": "runs/MODEL-DATASET, numbered if taken",
    "graph": "if it can be",
}
"""Defaults that follow from others."""


def _recipes() -> str:
    """The table of the recipes."""
    rows = {f"--{setting.replace('_', '-')}": map(_show, values) for setting, values in recipes.TABLE.items()}
    for family, otherwise in recipes.BY_FAMILY.items():
        rows |= {f"--{s.replace('_', '-')} of {family} models": map(_show, v) for s, v in otherwise.items()}
    lines = [("", *recipes.NAMES), *((flag, *values) for flag, values in rows.items())]
    return "\n".join(f"  {flag:30}{fast:10}{standard:28}{long}" for flag, fast, standard, long in lines)


def _show(value: Any) -> str:
    if value is None:
        return "all"
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
