"""L6: the command line `python -m models`: cost and published accuracy.

python -m models                    all models
python -m models 'swin_*'           the models that match one or several names or patterns
python -m models convnext_tiny      one model, block by block
python -m models --csv              comma-separated values
"""

import csv
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

from minigrad.nn import init
from models.convnext import ConvNeXt
from models.convnextv2 import ConvNeXtV2
from models.deit import DeiT, DeiT3, VisionTransformerDistilled
from models.dinov2 import DINOv2
from models.hybrid import HybridVisionTransformer
from models.model import ImageModel
from models.pretrained import architecture
from models.registry import create_model, matching, model_arguments, model_class, registered
from models.roadmap import RoadmapNet
from models.summary.cost import Part, attention_costs, macs, parameters, parts
from models.summary.published import PUBLISHED, SOURCES, Result
from models.swin import SwinTransformer
from models.swinv2 import SwinTransformerV2
from models.terminal import ArgumentParser, escape_unencodable, table
from models.vit import VisionTransformer

FAMILIES = {
    VisionTransformer: "Vision Transformer",
    DeiT: "DeiT",
    VisionTransformerDistilled: "DeiT with a distillation token",
    DeiT3: "DeiT III",
    DINOv2: "DINOv2",
    HybridVisionTransformer: "Hybrid: a Vision Transformer on the features of a ResNet",
    SwinTransformer: "Swin Transformer",
    SwinTransformerV2: "Swin Transformer V2",
    ConvNeXt: "ConvNeXt",
    ConvNeXtV2: "ConvNeXt V2",
    RoadmapNet: "From ResNet-50 to ConvNeXt, step by step",
}
LEGEND = """\
GMACs@224: billions of multiply-accumulates for one image of 224 x 224, counted
by tracing the model's own convolutions and matrix products (MMACs: millions).
Top-1: accuracy on ImageNet-1k in %, as published. "IN-21k @384": pre-trained on
ImageNet-21k, then fine-tuned on ImageNet-1k at 384 x 384; IN-22k: another name
of ImageNet-21k; SWAG: photos with hashtags, arXiv:2201.08371; DINO, LVD-142M:
images without labels, then a linear classifier; FCMAE: masked images of
ImageNet-1k, arXiv:2301.00808; IN-1k: no pre-training. One model, block by
block: python -m models NAME."""

ATTENTION = """\
Attention, in millions of multiply-accumulates for one block of each stage.
C channels, h x w tokens, windows of M x M:
  between all tokens, as in ViT     MSA   = 4hwC² + 2(hw)²C
  within windows                    W-MSA = 4hwC² + 2M²hwC"""


class Row(NamedTuple):
    """A row of the table."""

    name: str
    parameters: int
    macs: dict[int, int]  # by image height; first at the default size of the model
    results: Sequence[Result]


def row(name: str) -> Row:
    """The row of a model, with MACs at its default image size; for ImageNet models, also at 224 and 384."""
    model = without_weights(name)
    counted = {model.img_size[0]: macs(model)}
    if model.img_size[0] >= 224 and not isinstance(model, SwinTransformer):  # Swin's window size is for one image size
        for size in {224, 384} - set(counted):
            with suppress(ValueError):  # patch_size does not divide the image size
                counted[size] = macs(without_weights(name, img_size=size))
    return Row(name, parameters(model), counted, PUBLISHED.get(name, ()))


def without_weights(name: str, **overrides: Any) -> ImageModel:
    """A model whose parameters are meta arrays, which take no memory."""
    with init.meta_init():
        return create_model(name, **overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    escape_unencodable()
    parser = ArgumentParser(prog="python -m models", description="Cost and accuracy of the models.")
    parser.add_argument("pattern", nargs="*", default=["*"], help="names, or patterns such as 'swin_*'; default: all")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    options = parser.parse_args(arguments)
    try:
        found = {name for pattern in options.pattern for name in matches(pattern)}
    except ValueError as error:
        parser.error(str(error))
    names = [name for name in registered() if name in found]
    names.sort(key=lambda name: (list(FAMILIES).index(model_class(name)), is_small(name)))
    if options.csv:
        print_csv(map(row, names))
        return
    for (family, small), members in groupby(names, key=lambda name: (model_class(name), is_small(name))):
        print(FAMILIES[family] + (", for CIFAR-10 (images of 32 x 32)" if small else ""))
        print_rows([row(name) for name in members], small)
    if len(names) == 1:
        print_parts(names[0])
    print(LEGEND)
    for source in dict.fromkeys(result.source for name in names for result in PUBLISHED.get(name, ())):
        if source in SOURCES:
            print(f"{source}: {SOURCES[source]}.")
    swins = [name for name in names if model_class(name) is SwinTransformer]
    if swins:
        print_attention(swins)


def matches(pattern: str) -> list[str]:
    """The models that match a pattern, or the model of a name of torchvision or with timm's tag.

    Raises:
        ValueError: there are none.
    """
    return matching(registered(), pattern) or [architecture(pattern)]


def is_small(name: str) -> bool:
    """True if a model is for images of CIFAR's size."""
    return model_arguments(name)["img_size"] == 32


def print_rows(rows: Sequence[Row], small: bool) -> None:
    """Print the table of one family."""
    unit, scale, digits = ("M", 1e6, 1) if small else ("G", 1e9, 3)
    sizes = sorted({size for row in rows for size in row.macs})
    first, *others = (f"@{size}" for size in sizes)
    lines = [["name", "parameters", f"{unit}MACs{first}", *others, "top-1", "trained on", "source"]]
    for name, count, counted, results in rows:
        costs = [f"{counted[size] / scale:,.{digits}f}" if size in counted else "" for size in sizes]
        lines.append([name, f"{count:,}", *costs, *(described(results[0]) if results else [""] * 3)])
    print_table(lines, left=(0, -3, -2, -1))


def described(result: Result) -> list[str]:
    """The cells of a result: accuracy, data and source."""
    return [str(result.top1), f"{result.data} @{result.img_size}", result.source]


def print_parts(name: str) -> None:
    """Print one model block by block, and all its published results."""
    results = PUBLISHED.get(name, ())
    if results:
        print_table([["top-1", "trained on", "source"], *map(described, results)], left=(0, 1, 2))
    model = without_weights(name)
    listed = parts(model)
    listed.append(Part("total", None, sum(part.parameters for part in listed), sum(part.macs for part in listed)))
    lines = [["part", "output", "parameters", "MMACs"]]
    for part in listed:
        output = " x ".join(map(str, part.output or ()))
        lines.append([part.name, output, f"{part.parameters:,}", f"{part.macs / 1e6:,.1f}"])
    print("Parts, for one image of {} x {}".format(*model.img_size))
    print_table(lines, left=(0, 1))


def print_attention(names: Sequence[str]) -> None:
    """Print the Swin paper's formulas beside the counted MACs, once for models with the same costs."""
    lines = [["model", "h x w", "C", "M", "MSA formula", "counted", "W-MSA formula", "counted"]]
    costs = {tuple(attention_costs(without_weights(name))): name for name in reversed(names)}
    for stages, name in reversed(costs.items()):
        for h, w, C, M, *figures in stages:
            lines.append([name, f"{h} x {w}", str(C), str(M), *(f"{figure / 1e6:,.1f}" for figure in figures)])
    print(f"\n{ATTENTION}\n")
    print_table(lines, left=(0,))


def print_csv(rows: Iterable[Row]) -> None:
    """Print the rows as comma-separated values, not rounded."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["name", "parameters", "img_size", "macs", "macs_224", "macs_384", "top1", "data", "at", "source"])
    for name, count, counted, results in rows:
        size = next(iter(counted))
        figures = count, size, counted[size], counted.get(224), counted.get(384)
        writer.writerow([name, *figures, *(results[0] if results else [""] * 4)])


def print_table(lines: Sequence[Sequence[str]], left: Sequence[int]) -> None:
    """Print a table and an empty line."""
    print(table(lines, left), end="\n\n")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the reader of stdout, e.g. `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
