"""L7: curves.png: loss and accuracy over the epochs."""

from collections.abc import Sequence
from pathlib import Path

from train.log import Metrics


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
    best = max(history, key=lambda m: m.test_acc)
    figure.suptitle(f"{title}: {best.test_acc:.2%} in epoch {best.epoch}")
    figure.savefig(path, dpi=120)
    return True
