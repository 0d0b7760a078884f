"""L7: the flags of the command line. Imports no NumPy: `--help` is immediate."""

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from math import isfinite, nan
from typing import Any, NoReturn

from train.config import recipes
from train.config.errors import InputError
from train.config.settings import BY_DATASET, COMMON


def parser() -> argparse.ArgumentParser:
    """The parser of all flags. A flag that is not given sets no attribute; None means `all`."""
    parser = _Parser(
        prog="python -m train",
        usage="python -m train [FLAG ...]",
        description="Train an image classifier. Without flags: a small vision transformer on the\n"
        "generated dataset `shapes`, which needs no download and takes about two minutes\n"
        "on two CPU cores. In parentheses: the default.",
        epilog=f"what the recipes set (why: train/config/recipes.py):\n{_recipes()}\n\n"
        "--dataset folder reads images from DIR/train/CLASS/ and DIR/val/CLASS/.\n\n"
        "example: python -m train --model vit_tiny_cifar --dataset cifar10 \\\n"
        "           --recipe standard --device cuda",
        formatter_class=lambda prog: _Help(prog, max_help_position=32, width=80),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )

    def add(group: Any, flag: str, text: str, **options: Any) -> None:
        name = flag[2:].replace("-", "_")
        if options.get("action") is argparse.BooleanOptionalAction:
            options["default"] = argparse.SUPPRESS
        group.add_argument(flag, help=f"{text} ({_default(name)})", **options)

    count, size, samples = _integer(1), _integer(0), _samples
    positive, not_negative = _number(above=0), _number(at_least=0)
    probability, below_one = _number(at_least=0, at_most=1), _number(at_least=0, below=1)
    switch = argparse.BooleanOptionalAction

    what = parser.add_argument_group("what to train")
    add(what, "--config", "TOML settings file; flags override it", metavar="FILE")
    add(what, "--recipe", "preset settings, listed below", choices=["none", *recipes.NAMES], metavar="NAME")
    add(what, "--model", "a name from models.list_models()", metavar="NAME")
    add(what, "--initial-checkpoint", "pretrained weights to start from", metavar="FILE")
    add(what, "--dataset", "shapes, cifar10, cifar100 or folder", choices=list(BY_DATASET), metavar="NAME")
    add(what, "--data-dir", "dataset folder or archive, or its parent", metavar="DIR")
    add(what, "--download", "download to --data-dir if missing", action="store_true", default=argparse.SUPPRESS)
    add(what, "--img-size", "image height and width, for folder", metavar="N", type=count)
    add(what, "--train-num-samples", "use only the first N training images", metavar="N", type=samples)
    add(what, "--val-num-samples", "use only the first N test images", metavar="N", type=samples)

    how = parser.add_argument_group("how to train it (learning rate: linear warm-up, cosine decay)")
    add(how, "--epochs", "number of epochs", metavar="N", type=count)
    add(how, "--batch-size", "images per batch", metavar="N", type=count)
    add(how, "--grad-accum-steps", "batches accumulated per optimizer step", metavar="N", type=count)
    add(how, "--opt", "adamw, or muon for hidden matrices", choices=["adamw", "muon"], metavar="NAME")
    add(how, "--lr", "peak learning rate", metavar="RATE", type=positive)
    add(how, "--warmup-epochs", "linear warm-up, in epochs", metavar="N", type=not_negative)
    decay = "weight decay; not biases, norms, embeddings"
    add(how, "--weight-decay", decay, metavar="D", type=not_negative)
    layers = _number(above=0, at_most=1)
    add(how, "--layer-decay", "layer-wise learning-rate decay", metavar="RATIO", type=layers)
    add(how, "--clip-grad", "maximum gradient norm; 0: no clipping", metavar="NORM", type=not_negative)
    add(how, "--skip-nonfinite", "skip and count steps with NaN or Inf", action=switch)
    add(how, "--smoothing", "label smoothing", metavar="EPS", type=below_one)
    add(how, "--drop-path", "stochastic depth: drop rate of the last block", metavar="P", type=below_one)
    add(how, "--model-ema", "evaluate and save an EMA of the weights", action=switch)
    add(how, "--model-ema-decay", "EMA decay: averages 1 / (1 - D) steps", metavar="D", type=below_one)
    add(how, "--model-ema-warmup", "EMA decay at most (1 + step) / (10 + step)", action=switch)
    add(how, "--seed", "random seed; the same seed repeats a run", metavar="N", type=_integer(0, 2**31 - 2))

    images = parser.add_argument_group("data augmentation (train/data/augment.py); P: probability, 0: off")
    add(images, "--no-aug", "no augmentation", action="store_true", default=argparse.SUPPRESS)
    add(images, "--hflip", "horizontal flip", metavar="P", type=probability)
    add(images, "--crop-padding", "pad by N, crop at random", metavar="N", type=size)
    padding = ["constant", "reflect"]
    add(images, "--crop-padding-mode", "pad with: constant (0) or reflect", choices=padding, metavar="MODE")
    add(images, "--aa", "RandAugment, e.g. rand-m9-n2-mstd0.5", metavar="SPEC")
    add(images, "--cutout", "mask a square of N x N pixels", metavar="N", type=size)
    add(images, "--reprob", "random erasing of a rectangle", metavar="P", type=probability)
    filling = "pixel: noise; rand: one colour; const: mean"
    add(images, "--remode", filling, choices=["pixel", "rand", "const"], metavar="MODE")
    add(images, "--mixup", "mixup with λ ~ Beta(ALPHA, ALPHA)", metavar="ALPHA", type=not_negative)
    add(images, "--cutmix", "CutMix with λ ~ Beta(ALPHA, ALPHA)", metavar="ALPHA", type=not_negative)
    add(images, "--mixup-prob", "probability of mixup or CutMix per batch", metavar="P", type=probability)
    add(images, "--mixup-switch-prob", "probability of CutMix if both are on", metavar="P", type=probability)
    add(images, "--aug-repeats", "repeated augmentation: N copies per image", metavar="N", type=count)

    where = parser.add_argument_group("device and output")
    add(where, "--device", "cpu or cuda (pip install 'cupy-cuda13x[ctk]')", metavar="NAME")
    add(where, "--threads", "CPU threads, one shard of the batch each", metavar="N", type=count)
    add(where, "--graph", "run a training step as one CUDA graph", action=switch)
    add(where, "--amp", "mixed precision: 16-bit activations", action=switch)
    dtypes = ["bfloat16", "float16"]
    add(where, "--amp-dtype", "bfloat16, or float16 with loss scaling", choices=dtypes, metavar="TYPE")
    add(where, "--tf32", "TF32 tensor cores for float32 matmuls on GPU", action=switch)
    add(where, "--tune-cpu", "tune NumPy for speed: minigrad.tune_cpu", action=switch)
    add(where, "--validation-batch-size", "images per batch in evaluation", metavar="N", type=count)
    add(where, "--output", "results folder", metavar="DIR")
    add(where, "--resume", "continue the run in DIR; auto: the newest", metavar="DIR")
    add(where, "--eval", "evaluate a checkpoint, train nothing", metavar="FILE")
    formats = ["npz", "safetensors"]
    add(where, "--checkpoint-format", "npz or safetensors", choices=formats, metavar="F")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`--[no-]amp`, where argparse has `--amp, --no-amp`."""
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0][2:]}"
        return super()._format_action_invocation(action)


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's. The error for an unknown flag suggests a known flag that starts with it, or the closest."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known, hints = {flag.lstrip("-"): flag for flag in self._option_string_actions}, []
            for flag in unknown:
                name = flag.partition("=")[0].lstrip("-").replace("_", "-")
                if flag.startswith("-"):
                    longer = [other for other in known if other.startswith(name)]
                    hints += [known[close] for close in longer[:1] or get_close_matches(name, known, n=1)]
            hint = f"; did you mean {', '.join(hints)}?" if hints else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise InputError(f"{message} (--help lists all flags)")


def _default(name: str) -> str:
    """How the help shows a default, e.g. `4 for shapes, else 50`."""
    if name in _DERIVED:
        return _DERIVED[name]
    if name in COMMON:
        return show(COMMON[name])
    shapes, other = (show(BY_DATASET[dataset][name]) for dataset in ("shapes", "cifar10"))
    return shapes if shapes == other else f"{shapes} for shapes, else {other}"


_DERIVED = {"config": "none", "output": "runs/MODEL-DATASET[-N]", "graph": "if possible"}
"""Defaults that depend on other settings."""


def _recipes() -> str:
    """The table of the recipes."""
    rows = {f"--{setting.replace('_', '-')}": map(show, values) for setting, values in recipes.TABLE.items()}
    for family, overrides in recipes.BY_FAMILY.items():
        rows |= {f"--{s.replace('_', '-')} of {family} models": map(show, v) for s, v in overrides.items()}
    lines = [("", *recipes.NAMES), *((flag, *values) for flag, values in rows.items())]
    return "\n".join(f"  {flag:23}{fast:7}{standard:25}{long}" for flag, fast, standard, long in lines)


def show(value: Any) -> str:
    """The value of a setting as `--help` shows it: `all`, `yes`, `0.001`."""
    if value is None:
        return "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _integer(minimum: int, maximum: int | None = None, also: str = "") -> Callable[[str], int]:
    bounds = (f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}") + also

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}") from None
        if value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text}")
        return value

    return read


def _samples(text: str) -> int | None:
    """The number of images, or `all`, which is None."""
    return None if text == "all" else _integer(1, also=", or all")(text)


def _number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Callable[[str], float]:
    limits = {"at least": at_least, "above": above, "below": below, "at most": at_most}
    bounds = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = nan
        low = (at_least is None or value >= at_least) and (above is None or value > above)
        high = (below is not None and value >= below) or (at_most is not None and value > at_most)
        if not (isfinite(value) and low and not high):
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text!r}")
        return value

    return read
