"""L6: the command line: `python -m models.compare --help`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from models.terminal import ArgumentParser, escape_unencodable, plural


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 if all arrays agree, 1 if not, 2 for invalid input."""
    escape_unencodable()
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except (ValueError, TypeError) as error:
        print(f"python -m models.compare: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Compare, and print the result. Imports are here so that `--help` is fast."""
    from models.compare import golden, table
    from models.compare.differences import compare
    from models.compare.formula import fill, stream
    from models.compare.references import Reference
    from models.compare.trace import trace
    from models.registry import create_model

    if options.against == "golden":
        if options.img_size or options.batch:
            raise ValueError("--img-size and --batch do not apply to a golden, which has its own images")
        recorded = golden.load(options.model)
        model, source = recorded.create(), f"a golden of {recorded.library} {recorded.version}"
        model.to(options.dtype)
        images = recorded.images()
        comparison = recorded.compare(model)
    else:
        overrides: dict[str, Any] = {"img_size": options.img_size} if options.img_size else {}
        reference = Reference(options.against, options.model, **overrides)
        model, source = fill(create_model(options.model, **overrides)), f"{reference.library} {reference.version}"
        model.to(options.dtype)
        images = stream("images", options.batch or 1, model.in_chans, *model.img_size)
        comparison = compare(trace(model, images), reference.trace(images), model)
    B, C, H, W = images.shape
    parameters = sum(parameter.data.size for parameter in model.parameters())
    print(f"{options.model}, {parameters:,} parameters, in {options.dtype}, against {source} in float64")
    print(f"{plural(B, 'image')} of {C} x {H} x {W}")
    print(f"\n{table.table(comparison, model)}\n\n{table.verdict(comparison)}")
    return 1 if comparison.out_of_tolerance() else 0


def parser() -> argparse.ArgumentParser:
    """The command-line arguments."""
    parser = ArgumentParser(
        prog="python -m models.compare",
        description="Compare a model with another library's implementation. Both run forward and\n"
        "backward with the same weights on the same images. The table shows the\n"
        "differences of the layers' outputs and gradients, relative to the largest\n"
        "absolute value of each array. Weights and images are pseudo-random, computed\n"
        "from their names: nothing is downloaded.",
        epilog="exit code: 0 if all arrays agree, 1 if not, 2 for invalid input\n\n"
        "examples:\n"
        "  python -m models.compare --model swin_tiny_patch4_window7_224 --against timm\n"
        "  python -m models.compare --model vit_tiny_cifar --against golden",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=80),
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="a name that `python -m models` lists, or the name of a golden")
    add(
        "--against", required=True, choices=["torchvision", "timm", "transformers", "golden"], metavar="LIBRARY",
        help="torchvision, timm or transformers, which must be installed; or golden: a recorded run of one of them, "
        "which needs no torch",
    )  # fmt: skip
    add(
        "--dtype", default="float64", choices=["float64", "float32"],
        help="dtype of the model here (default float64); the reference is always float64",
    )  # fmt: skip
    add("--img-size", type=_size, metavar="N or HxW", help="image size (default: the model's)")
    add("--batch", type=_count, metavar="N", help="number of images (default 1)")
    return parser


def _size(text: str) -> int | tuple[int, int]:
    H, times, W = text.partition("x")
    return (_count(H), _count(W)) if times else _count(H)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
