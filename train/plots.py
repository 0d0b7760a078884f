"""L7: curves.png, loss and accuracy over the epochs; confusion.png and mistakes.png, what is wrong."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minigrad.backend import Array, to_device
from minigrad.serialize import replacing
from train.evaluate import Answers
from train.log import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _COLUMNS = 4, 6  # of images in mistakes.png
_NUMBERS = 25  # up to so many classes, the shares are written into the fields of confusion.png
_NAMES = 200  # and up to so many, their names beside it


def curves(history: Sequence[Metrics], title: str, path: Path) -> bool:
    """Draw the curves; False, and no file, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    epochs = [m.epoch for m in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, scale in ((left, "loss", 1), (right, "acc", 100)):
        for split, style in (("train", "o--"), ("test", "o-")):
            values = [scale * getattr(m, f"{split}_{name}") for m in history]
            axes.plot(epochs, values, style, markersize=3, label=split)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    left.set_ylabel("loss")
    right.set_ylabel("accuracy, %")
    figure.suptitle(_text(title, 100))
    _save(figure, path)
    return True


def mistakes(answers: Answers, images: Array, folder: Path) -> None:
    """What the best model takes for what, confusion.png; and where it was surest of a wrong class, mistakes.png."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a class name, which the font does not have
        _confusion(answers, folder / "confusion.png")
        _worst(answers, images, folder / "mistakes.png")


def _confusion(answers: Answers, path: Path) -> None:
    """A field for each pair of classes: of all images of the one, the share that was named the other."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    K, names = len(answers.classes), [_text(name) for name in answers.classes]
    share = 100 * answers.confusion / np.maximum(answers.confusion.sum(axis=1, keepdims=True), 1)
    numbered = K <= _NUMBERS
    size = 2.5 + 0.5 * K if numbered else 4 + 0.12 * min(K, _NAMES)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    # Few mistakes are to be seen beside many hits.
    shown = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    if K <= _NAMES:
        axes.set_xticks(range(K), names, rotation=90 if K > 5 else 0, fontsize=9 if numbered else 6)
        axes.set_yticks(range(K), names, fontsize=9 if numbered else 6)
    axes.set_xlabel("the model named it")
    axes.set_ylabel("the image shows")
    if numbered:
        for i, j in np.argwhere(share > 0):
            small = share[i, j] < 0.95
            text = f"{share[i, j]:.1f}" if small else f"{share[i, j]:.0f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 45 else "black")
    figure.colorbar(shown, label="of 100 images that show it", shrink=0.8)
    right = f"{answers.acc:.2%} are right: on the diagonal"
    axes.set_title(f"Of 100 images of each class, how many were named what\n{right}", fontsize=11)
    _save(figure, path)


def _worst(answers: Answers, images: Array, path: Path) -> None:
    """Test images with the class that they show, and the one that the model named with what probability."""
    from matplotlib.figure import Figure

    numbers, total = answers.worst(_ROWS * _COLUMNS), int((answers.predicted != answers.labels).sum())
    figure = Figure(figsize=(1.6 * _COLUMNS, 2.0 * _ROWS + 0.6), layout="constrained")
    all_axes = figure.subplots(_ROWS, _COLUMNS).ravel()
    for axes in all_axes:
        axes.axis("off")
    for axes, n in zip(all_axes, numbers, strict=False):
        axes.imshow(to_device(images[n], "cpu").transpose(1, 2, 0))  # (C, H, W) -> (H, W, C)
        shows, named = answers.labels[n], answers.predicted[n]
        axes.set_title(_text(answers.classes[shows], 16), fontsize=10, color="darkgreen", pad=3)
        said = f"{_text(answers.classes[named], 12)} {answers.probabilities[n, named]:.0%}"
        axes.text(0.5, -0.04, said, ha="center", va="top", fontsize=10, color="firebrick", transform=axes.transAxes)
    what = f"The {len(numbers)} of {total} mistakes of which the model was surest" if total else "No mistake"
    figure.suptitle(
        f"{what}\nabove: what the image shows; below: what the model named, and how sure it was", fontsize=11
    )
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _text(name: str, most: int = 18) -> str:
    """A class name of at most so many letters, as matplotlib draws it."""
    name = name.encode("utf-8", "replace").decode()  # a file's name may be anything
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    return name.replace("$", r"\$")
