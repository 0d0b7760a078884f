"""L7: plots of a run: curves.png, confusion.png, mistakes.png (wrong predictions); lr_find.png, of --lr-find."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minigrad.backend import Array, to_device
from minigrad.serialize import replacing
from models.terminal import plural
from models.visualize.draw import short
from models.visualize.fonts import drawable, fallback_fonts
from train.evaluate import Predictions
from train.lr_find import RangeTest
from train.output.log import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _COLUMNS = 4, 6  # of images in mistakes.png, at most
_MAX_NUMBERED = 25  # with more classes, confusion.png has no percentages in its cells
_MAX_NAMED = 200  # with more classes, no class names at its axes


def curves(history: Sequence[Metrics], title: str, path: Path) -> bool:
    """Draw the curves. Returns False, and writes no file, if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    with fallback_fonts():
        _curves(history, title, Figure(figsize=(9, 3.6), layout="constrained"), path)
    return True


def _curves(history: Sequence[Metrics], title: str, figure: "Figure", path: Path) -> None:
    """Loss and accuracy of each epoch, side by side."""
    epochs = [m.epoch for m in history]
    left, right = figure.subplots(1, 2)
    for axes, name, scale in ((left, "loss", 1), (right, "acc", 100)):
        for split, style in (("train", "o--"), ("test", "o-")):
            values = [scale * getattr(m, f"{split}_{name}") for m in history]
            axes.plot(epochs, values, style, markersize=3, label=split)
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)  # a width, with one epoch too
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    left.set_ylabel("loss")
    right.set_ylabel("accuracy, %")
    figure.suptitle(_text(title, 100))
    _save(figure, path)


def learning_rates(test: RangeTest, title: str, path: Path) -> bool:
    """Draw the loss of each step of --lr-find. Returns False, and writes no file, if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    smoothed = test.smoothed
    axes.semilogx(test.lrs, test.losses, ".", color="gray", markersize=4, label="loss of a step")
    axes.semilogx(test.lrs, smoothed, label="moving average")
    for lr, name, style in ((test.steepest, "steepest decrease", "--"), (test.tenth, "minimum / 10", ":")):
        axes.axvline(lr, color="black", linestyle=style, linewidth=1, label=f"{name}: {lr:.1e}")
    # The decrease fills the lower half: the losses of the largest learning rates are far above.
    lowest, first = smoothed.min(), smoothed[: test.lowest + 1].max()
    axes.set_ylim(lowest - 0.5 * (first - lowest) - 0.01, first + 1.5 * (first - lowest) + 0.01)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with fallback_fonts():
        figure.suptitle(_text(title, 90))
        _save(figure, path)
    return True


def mistakes(predictions: Predictions, images: Array, folder: Path) -> None:
    """Draw confusion.png, the confusion matrix, and mistakes.png, the most confident wrong predictions."""
    with fallback_fonts():
        _confusion(predictions, folder / "confusion.png")
        _worst(predictions, images, folder / "mistakes.png")


def _confusion(predictions: Predictions, path: Path) -> None:
    """The confusion matrix, each row as percentages of the images of one class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    K = len(predictions.classes)
    percent = 100 * predictions.confusion / np.maximum(predictions.confusion.sum(axis=1, keepdims=True), 1)
    numbered = K <= _MAX_NUMBERED
    names = [_text(name, 20, lines=2 if numbered else 1) for name in predictions.classes]
    upright = K <= 5 and max(map(len, names)) <= 6  # characters that fit the width of a column
    size = 2.5 + 0.5 * K if numbered else 4 + 0.12 * min(K, _MAX_NAMED)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    # A square-root colour scale: the few errors stay visible beside the diagonal.
    shown = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    if K <= _MAX_NAMED:
        axes.set_xticks(range(K), names, rotation=0 if upright else 90, fontsize=9 if numbered else 6)
        axes.set_yticks(range(K), names, fontsize=9 if numbered else 6)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if numbered:
        for i, j in np.argwhere(percent > 0):
            p = percent[i, j]
            axes.text(j, i, _percentage(p), ha="center", va="center", fontsize=8, color="white" if p > 45 else "black")
    figure.colorbar(shown, label="% of the images of the class", shrink=0.8)
    figure.suptitle(f"Confusion matrix\naccuracy {predictions.acc:.2%}", fontsize=11)
    _save(figure, path)


def _percentage(p: float) -> str:
    """A percentage above 0 in at most 4 characters; only 100 % itself is rounded to 100, and nothing to 0."""
    if p < 0.1:
        return "<0.1"
    return f"{min(p, 99.9):.1f}" if p < 0.95 or 99 < p < 100 else f"{p:.0f}"


def _worst(predictions: Predictions, images: Array, path: Path) -> None:
    """Test images with their true class and, below, the wrong prediction with its probability."""
    from matplotlib.figure import Figure

    wrong, total = predictions.worst(_ROWS * _COLUMNS), int((predictions.predicted != predictions.labels).sum())
    names = [_text(name, 18, lines=2) for name in predictions.classes]
    height = 2.1 if not any("\n" in name for name in names) else 2.5
    rows = max(1, -(-len(wrong) // _COLUMNS))
    figure = Figure(figsize=(1.6 * _COLUMNS, height * rows + 0.6), layout="constrained")
    all_axes = figure.subplots(rows, _COLUMNS).ravel()
    for axes in all_axes:
        axes.axis("off")
    for axes, n in zip(all_axes, wrong, strict=False):
        axes.imshow(to_device(images[n], "cpu").transpose(1, 2, 0))  # (C, H, W) -> (H, W, C)
        label, predicted = predictions.labels[n], predictions.predicted[n]
        axes.set_title(names[label], fontsize=10, color="darkgreen", pad=3)
        text = f"{names[predicted]}\n{predictions.probabilities[n, predicted]:.0%}"
        axes.text(0.5, -0.04, text, ha="center", va="top", fontsize=10, color="firebrick", transform=axes.transAxes)
    of_all = f"The {len(wrong)} most confident of" if len(wrong) < total else "The"
    what = f"{of_all} {plural(total, 'wrong prediction')}" if total else "No wrong prediction"
    figure.suptitle(f"{what}\nabove: true class; below: predicted class and its probability", fontsize=11)
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _text(name: str, length: int, lines: int = 1) -> str:
    """A class name in lines of `length` characters, escaped for matplotlib."""
    return short(drawable(name), length, lines).replace("$", r"\$")
