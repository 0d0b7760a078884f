"""Write models/bundled/ from the runs of the commands in its README.

    python -m tests.models.bundle [--data-dir DIR] RUN...

Of each run: NAME.DATASET.npz, the last checkpoint in float16, with its accuracy, and NAME.csv, the log of the epochs.
The images are drawn anew.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from minigrad import serialize
from minigrad.backend.random import Generator
from minigrad.parallel.processes import World
from minigrad.parallel.threads import Shards
from models.predict import IMAGES
from models.weights.table import BUNDLED
from train.__main__ import parse
from train.create import create_test_dataset
from train.data import shapes
from train.evaluate import Evaluation
from train.output import report

IMAGE_SEED = shapes.TEST_SEED + 1
FIGURES = ("ring", "cross", "star", "heart", "crescent", "stripes")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.models.bundle", description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN", help="the output folder of a run")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="CIFAR, or the folder above it (data)")
    options = parser.parse_args(arguments)
    for run in options.run:
        path = bundle(run, BUNDLED, options.data_dir)
        accuracy = serialize.load_metadata(path)["test_acc"]
        print(f"{path}  {path.stat().st_size:,} bytes, {100 * accuracy:.2f} %")
    draw_images(IMAGES)


def bundle(run, folder, data_dir="data"):
    """Write the files of a run; returns the path of the checkpoint."""
    arrays, metadata = serialize.load(run / "last.npz")
    for of_this_machine in ("output", "data_dir"):
        del metadata["settings"][of_this_machine]
    name, dataset = metadata["model"]["name"], metadata["settings"]["dataset"]
    path = folder / f"{name}.{dataset}.npz"
    save(path, arrays, metadata)
    images = {} if dataset == "shapes" else {"data_dir": data_dir}
    save(path, arrays, metadata | {"test_acc": accuracy(path, **images)})
    shutil.copy(run / "metrics.csv", folder / f"{name}.csv")
    return path


def save(path, arrays, metadata):
    """As `serialize.save`, in float16 and compressed."""
    content = {name: x.astype(np.float16) for name, x in arrays.items()}
    serialize.save(path, content, metadata)
    with np.load(path) as plain:
        np.savez_compressed(path, **plain)


def accuracy(path, count="all", data_dir="data"):
    """The accuracy of a checkpoint on the first `count` test images of its dataset."""
    settings = parse(["--eval", str(path), "--data-dir", str(data_dir), "--val-num-samples", str(count)])
    with Shards(1) as shards:
        evaluation = Evaluation(settings.validation_batch_size, settings.autocast_dtype, shards, World())
        return report.predictions(path, create_test_dataset(settings), evaluation).acc


def draw_images(folder):
    """Write an image of each of `FIGURES`, in neither the training nor the test set."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    drawn = shapes.draw(len(shapes.FIGURES), Generator(IMAGE_SEED)).images.transpose(0, 2, 3, 1)
    for name, pixels in zip(shapes.FIGURES, drawn, strict=True):
        if name in FIGURES:
            Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
