"""Write models/bundled/ from the runs of the commands in its README: python -m tests.models.bundle RUN...

Of each run: NAME.shapes.npz, the last checkpoint in float16, with its accuracy, and NAME.csv, the log of the epochs.
The images are drawn anew.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from minigrad import no_grad, serialize
from minigrad.backend.random import Generator
from models import images
from models.predict import IMAGES
from models.weights import checkpoint
from models.weights.table import BUNDLED
from train.data import shapes

IMAGE_SEED = shapes.TEST_SEED + 1
FIGURES = ("ring", "cross", "star", "heart", "crescent", "stripes")


def main(runs):
    for run in map(Path, runs):
        path = bundle(run, BUNDLED)
        print(f"{path}  {path.stat().st_size:,} bytes, {100 * accuracy(path):.2f} %")
    draw_images(IMAGES)


def bundle(run, folder):
    """Write the files of a run; returns the path of the checkpoint."""
    arrays, metadata = serialize.load(run / "last.npz")
    del metadata["settings"]["output"]
    name = metadata["model"]["name"]
    path = folder / f"{name}.shapes.npz"
    save(path, arrays, metadata)
    save(path, arrays, metadata | {"test_acc": accuracy(path)})
    shutil.copy(run / "metrics.csv", folder / f"{name}.csv")
    return path


def save(path, arrays, metadata):
    """As `serialize.save`, in float16 and compressed."""
    content = {name: x.astype(np.float16) for name, x in arrays.items()}
    serialize.save(path, content, metadata)
    with np.load(path) as plain:
        np.savez_compressed(path, **plain)


def accuracy(path, count=shapes.TEST):
    """The accuracy of a checkpoint on the first `count` test images, a multiple of 100."""
    model, metadata = checkpoint.load(path)
    test = shapes.load(train=0, test=count).test
    with no_grad():
        parts = np.split(test.images, count // 100)
        batches = [model(images.to_input(part, model, metadata)).numpy() for part in parts]
    return float((np.concatenate(batches).argmax(1) == test.labels).mean())


def draw_images(folder):
    """Write an image of each of `FIGURES`, in neither the training nor the test set."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    drawn = shapes.draw(len(shapes.FIGURES), Generator(IMAGE_SEED)).images.transpose(0, 2, 3, 1)
    for name, pixels in zip(shapes.FIGURES, drawn, strict=True):
        if name in FIGURES:
            Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
