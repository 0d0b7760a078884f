"""L6: what a trained model sees in images: `python -m models.predict CHECKPOINT IMAGE...`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import functional as F
from minigrad import no_grad
from models import images
from models.model import ImageModel
from models.terminal import escape_unencodable, table
from models.weights import checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a mistake in the input."""
    return command(parser(), run, arguments)


def command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> int:
    """`run` with the flags that `parser` finds; returns the exit code, and a mistake in the input is one line."""
    escape_unencodable()
    try:
        run(parser.parse_args(arguments))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except INPUT_ERRORS as error:
        print(f"{parser.prog}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    model, metadata = checkpoint.load(options.checkpoint)
    model.to(device=options.device)
    files = images.find(options.image)
    answers: list[np.ndarray] = []
    for start in range(0, len(files), options.batch_size):
        part = files[start : start + options.batch_size]
        pixels = np.stack([images.read(file, model.img_size, model.in_chans) for file in part])
        answers.extend(probabilities(model, metadata, pixels))
    ranks = range(1, min(options.top_k, model.num_classes) + 1)
    lines = [["image", *(cell for rank in ranks for cell in (str(rank), ""))]]
    for file, answer in zip(files, answers, strict=True):
        best = [(printable(name), f"{100 * p:.1f} %") for name, p in top(answer, metadata["classes"], len(ranks))]
        lines.append([printable(str(file)), *(cell for pair in best for cell in pair)])
    print(table(lines, left=[0, *range(1, 2 * len(ranks), 2)]), flush=True)


def probabilities(model: ImageModel, metadata: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """softmax of the logits for images (B, C, H, W) uint8: (B, classes).

    Raises:
        ValueError: they are not finite; or the model answers for each token.
    """
    with no_grad(), np.errstate(all="ignore"):
        answers = F.softmax(model(images.to_input(pixels, model, metadata)), dim=-1).to(device="cpu").numpy()
    if answers.ndim != 2:
        raise ValueError("the model has an answer for each token and none for the image: its global_pool is empty")
    if not np.isfinite(answers).all():
        raise ValueError("the model's probabilities are NaN: its training must have diverged")
    return answers


def top(answer: np.ndarray, classes: Sequence[str], count: int) -> list[tuple[str, float]]:
    """The most probable classes with their probabilities, the first first."""
    return [(classes[i], float(answer[i])) for i in (-answer).argsort(kind="stable")[:count]]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m models.predict",
        description="The classes that a trained model finds most probable in images, a line for each image.",
        epilog="example: python -m models.predict runs/vit_nano_cifar-cifar10/best.npz photos",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
    )
    add_inputs(parser)
    parser.add_argument(
        "image", nargs="+", metavar="IMAGE",
        help="an image, or a folder with images in it or below; each is scaled until it just covers the model's size, "
        "and its middle is cut out",
    )  # fmt: skip
    parser.add_argument("--top-k", type=count, default=5, metavar="K", help="classes for each image (default 5)")
    parser.add_argument("--batch-size", type=count, default=64, metavar="N", help="images at once (default 64)")
    return parser


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """What says which model is meant, and where it works."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file that `python -m train` wrote")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), or cuda")


def count(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number above 0, got {text!r}")
    return int(text)


INPUT_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""What a wrong checkpoint, image, device or folder raises."""


def one_line(error: BaseException) -> str:
    """What an error says, as one line that a terminal can show."""
    named = isinstance(error, OSError) and error.filename
    text = f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[attr-defined]
    return printable(" ".join(text.split()) or type(error).__name__)


def printable(text: str) -> str:
    """A name from a file, without what would steer a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


if __name__ == "__main__":
    sys.exit(main())
