"""L6: classify image files: `python -m models.predict CHECKPOINT IMAGE...`, or with published weights
`python -m models.predict --model NAME --pretrained IMAGE...`; without arguments, bundled images by a bundled model."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import functional as F
from minigrad import no_grad
from models import images, pretrained
from models.model import ImageModel
from models.predictions import as_csv, as_json, as_table, check_output, write
from models.terminal import ArgumentParser, escape_unencodable, plural, printable
from models.weights import checkpoint
from models.weights.table import BUNDLED

DEFAULT_MODEL = "vit_nano_cifar"  # without arguments: its weights are bundled
IMAGES = BUNDLED / "images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for invalid input."""
    return command(parser(), run, arguments)


def command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> int:
    """Parse the arguments and call `run`; returns the exit code. Invalid input and Ctrl-C are reported in one line."""
    escape_unencodable()
    try:
        run(parser.parse_args(arguments))
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except INPUT_ERRORS as error:
        print(f"{parser.prog}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Print the table of predictions, or write it as CSV or JSON."""
    for flag, path in (("--csv", options.csv), ("--json", options.json)):
        check_output(flag, path)
    if options.csv == options.json == "-":
        raise ValueError("--csv - and --json - would both be written to stdout: name a file for one of them")
    model, metadata, paths = load(options)
    if not paths:
        weights = f"--model {options.model} --pretrained" if options.pretrained else "CHECKPOINT"
        raise ValueError(f"give images: {options.program} {weights} IMAGE...")
    found, files = images.find(paths), list[Path]()
    predictions: list[np.ndarray] = []
    for start in range(0, len(found), options.batch_size):
        batch = found[start : start + options.batch_size]
        good, pixels = read_all(batch, model, metadata, options.skip_bad_images)
        if good:
            predictions.extend(probabilities(model, metadata, np.stack(pixels)))
            files += good
    if not files:
        raise ValueError(f"no image of {len(found):,} can be read")
    best = [top(prediction, metadata["classes"], options.top_k) for prediction in predictions]
    notes = sys.stderr if "-" in (options.csv, options.json) else sys.stdout
    for path, text in ((options.csv, as_csv), (options.json, as_json)):
        if path == "-":
            lines = text(files, best).split("\n")
            print("\n".join(map(printable, lines) if sys.stdout.isatty() else lines), end="", flush=True)
        elif path is not None:
            write(Path(path), text(files, best))
            print(f"{printable(path)}  predictions for {plural(len(files), 'image')}", file=notes, flush=True)
    if options.csv is None and options.json is None:
        shown = [Path(file.name) if file.parent == IMAGES else file for file in files]
        print(as_table(shown, best), flush=True)


def load(options: argparse.Namespace) -> tuple[ImageModel, dict[str, Any], list[str]]:
    """The model on its device, its metadata, and the paths of images. Without arguments, a bundled model; of bundled
    weights for `shapes` without images, the bundled images: then a note on stderr says so.

    Raises:
        ValueError: --model or --pretrained is given without the other; the checkpoint is an image; or as for the
            functions that load the weights.
    """
    paths = [*([] if options.checkpoint is None else [options.checkpoint]), *options.image]
    if not paths and options.model is None and not options.pretrained:
        options.model, options.pretrained = DEFAULT_MODEL, True
    if (options.model is not None) != options.pretrained:
        raise ValueError("--model NAME and --pretrained belong together: the published weights of a model")
    if options.model is None:
        if images.is_image(Path(paths[0])):
            bundled = f"--model {DEFAULT_MODEL} --pretrained"
            raise ValueError(f"{paths[0]} is an image: name a checkpoint before the images, or add {bundled}")
        model, metadata = checkpoint.load(paths.pop(0))
    else:
        model, metadata = pretrained.load(options.model)
    if not paths and model.pretrained_cfg.get("tag") == "shapes":
        paths = [str(IMAGES)]
        print(f"bundled weights  {model.pretrained_cfg['file']}\nbundled images   {IMAGES}", file=sys.stderr)
        print(f"your own         {options.program} CHECKPOINT IMAGE...\n", file=sys.stderr, flush=True)
    model.to(device=options.device)
    return model, metadata, paths


def read(file: Path, model: ImageModel, metadata: dict[str, Any]) -> np.ndarray:
    """An image as the model receives it, (C, H, W) uint8."""
    return images.read(file, model.img_size, model.in_chans, metadata.get("crop"))


def read_all(
    files: Sequence[Path], model: ImageModel, metadata: dict[str, Any], skip_bad: bool
) -> tuple[list[Path], list[np.ndarray]]:
    """The files that can be read, and their images. The other files are listed on stderr.

    Raises:
        ValueError: a file cannot be read, and `skip_bad` is False.
    """
    good, pixels = list[Path](), list[np.ndarray]()
    for file in files:
        try:
            pixels.append(read(file, model, metadata))
        except (OSError, ValueError) as error:
            if not skip_bad:
                raise ValueError(f"{one_line(error)}; --skip-bad-images leaves out damaged files") from None
            print(f"skipped  {one_line(error)}", file=sys.stderr)
        else:
            good.append(file)
    return good, pixels


def probabilities(model: ImageModel, metadata: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """softmax of the logits of images (B, C, H, W) uint8: (B, classes).

    Raises:
        ValueError: a probability is NaN, or the model has no pooling.
    """
    with no_grad(), np.errstate(all="ignore"):
        result = F.softmax(model(images.to_input(pixels, model, metadata)), dim=-1).to(device="cpu").numpy()
    if result.ndim != 2:
        raise ValueError("the model has logits for each token and none for the image: its global_pool is empty")
    if not np.isfinite(result).all():
        raise ValueError("the model's probabilities are NaN: its training must have diverged")
    return result


def top(prediction: np.ndarray, classes: Sequence[str], k: int) -> list[tuple[str, float]]:
    """The k most probable classes with their probabilities, in descending order."""
    return [(classes[i], float(prediction[i])) for i in (-prediction).argsort(kind="stable")[:k]]


def parser() -> argparse.ArgumentParser:
    """The command-line arguments."""
    parser = ArgumentParser(
        prog="python -m models.predict",
        description="Classify images with a trained model. Prints one line per image: the most\n"
        "probable classes and their probabilities. Without arguments: a model and images\n"
        "of this package.",
        epilog="examples:\n"
        "  python -m models.predict\n"
        "  python -m models.predict runs/vit_nano_cifar-cifar10 photos\n"
        "  python -m models.predict runs/vit_nano_cifar-cifar10 photos --csv photos.csv\n"
        "  python -m models.predict --model vit_tiny_patch16_224 --pretrained photos",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=80),
    )
    add_inputs(parser)
    parser.add_argument(
        "image", nargs="*", metavar="IMAGE",
        help="image file, or folder whose images are classified, subfolders included; each image is resized to cover "
        "the model's input size, then center-cropped",
    )  # fmt: skip
    parser.add_argument("--top-k", type=count, default=3, metavar="K", help="classes per image (default 3)")
    parser.add_argument("--batch-size", type=count, default=64, metavar="N", help="images per batch (default 64)")
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="leave out damaged image files, and list them on stderr"
    )
    parser.add_argument("--csv", metavar="FILE", help="write a CSV file instead of the table; -: to stdout")
    parser.add_argument("--json", metavar="FILE", help="write a JSON file instead of the table; -: to stdout")
    return parser


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the model and its device."""
    parser.set_defaults(program=parser.prog)
    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT",
        help="model file of `python -m train`, or the folder of a run for its best.npz; left out with --pretrained, "
        "and without arguments",
    )  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="with --pretrained: a name for models.create_model")
    parser.add_argument(
        "--pretrained", action="store_true",
        help="the published weights of --model, bundled or downloaded once from the Hugging Face Hub",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default) or cuda")


def count(text: str) -> int:
    """A positive integer, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


INPUT_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""The exceptions for an invalid checkpoint, image, device or folder."""


def one_line(error: BaseException) -> str:
    """The message of an error in one printable line."""
    has_file = isinstance(error, OSError) and error.filename
    text = f"{error.filename}: {error.strerror}" if has_file else str(error)  # type: ignore[attr-defined]
    return printable(" ".join(text.split()) or type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
