"""L6: a picture of a model's predictions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.visualize.draw import GREY, LINE, PANEL, Picture, bare, channels_last, new_figure, short
from models.visualize.fonts import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_picture(
    model: str, pictures: Sequence[Picture], predictions: Sequence[Sequence[tuple[str, float]]]
) -> "Figure":
    """Each image as the model receives it, and a bar chart of its most probable classes."""
    side_by_side = min(2, len(pictures))
    rows = -(-len(pictures) // side_by_side)
    note = "Images as the model receives them: resized and center-cropped. Bars: softmax of the logits."
    figure = new_figure(side_by_side * 4.6, rows * (PANEL + LINE), f"Predictions of {model}", note)
    grid = figure.subplots(rows, 2 * side_by_side, squeeze=False, width_ratios=[1, 2] * side_by_side)
    for axes in grid.flat:
        bare(axes)
    for i, (picture, best) in enumerate(zip(pictures, predictions, strict=True)):
        left, right = grid[i // side_by_side, 2 * (i % side_by_side) :][:2]
        bare(left, picture.name).imshow(channels_last(picture.pixels))
        places = range(len(best))
        right.barh(places, [p for _, p in best], color=["#3b6fb6"] + ["0.75"] * (len(best) - 1), height=0.7)
        right.set(xlim=(0, 1.25), ylim=(max(5, len(best)) - 0.5, -0.5))
        right.set_yticks(places, [short(drawable(name), 20) for name, _ in best], fontsize=9, parse_math=False)
        right.tick_params(length=0)
        for place, (_, p) in zip(places, best, strict=True):
            right.text(p + 0.02, place, f"{100 * p:.1f} %", va="center", fontsize=8.5, color=GREY)
    return figure
