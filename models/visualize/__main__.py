"""L6: the command line: `python -m models.visualize --help`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import Tensor, no_grad
from minigrad import functional as F
from minigrad.nn import Conv2d
from minigrad.ops.checks import sides
from models import images
from models.convnext import ConvNeXt
from models.hybrid import HybridVisionTransformer, StdConv2d
from models.images import to_input
from models.model import ImageModel
from models.predict import add_inputs, command, load, probabilities, read, top
from models.swin import SwinTransformer
from models.terminal import ArgumentParser, plural, printable
from models.visualize import attention, gradcam, html, kernels, windows
from models.visualize.draw import Picture, new_figure, short
from models.visualize.fonts import drawable, fallback_fonts
from models.visualize.prediction import prediction_picture
from models.vit import VisionTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Drawn = Iterator[tuple[str, str, Figure]]
    """(file name, description, figure)"""

MAX_IMAGES = 8  # rows of a picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for invalid input."""
    return command(parser(), run, arguments)


def run(options: argparse.Namespace) -> None:
    """Save the pictures or the page, and print their paths."""
    if not options.output and not options.html:
        options.output = Path("pictures")
    if options.html and options.html.suffix not in (".html", ".htm"):
        raise ValueError(f"--html writes a file that ends in .html, got {options.html}: give --html after the images")
    if options.output:
        new_figure(1, 1, "", "")  # without matplotlib, fail before loading the model
    model, metadata, paths = load(options)
    if options.html and not paths:
        raise ValueError("the page shows what a model sees in images: give at least one image")
    files = images.find(paths)
    if len(files) > MAX_IMAGES:
        raise ValueError(f"at most {MAX_IMAGES} images fit in a picture, got {len(files)}")
    pixels = [read(file, model, metadata) for file in files]
    if options.html:
        text = html.page(model, metadata, [printable(file.name) for file in files], np.stack(pixels))
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(text, encoding="utf-8")
        print(f"{printable(str(options.html))}  page to explore what the model sees", flush=True)
    if not options.output:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    pictures = [Picture(short(drawable(file.stem)), image) for file, image in zip(files, pixels, strict=True)]
    with fallback_fonts():
        for name, text, figure in draw(model, metadata, pictures, np.stack(pixels) if pixels else None):
            path = options.output / name
            figure.savefig(path, dpi=120)
            print(f"{printable(str(path))}  {text}", flush=True)
    if not pictures:
        print("give images for further pictures: python -m models.visualize CHECKPOINT IMAGE... --output DIR")


def draw(
    model: ImageModel, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray | None
) -> "Drawn":
    """All pictures for this model; `pixels` is the batch of `pictures`, (B, C, H, W) uint8; None: no images."""
    best: list[int] = []
    if pixels is not None:
        predictions = probabilities(model, metadata, pixels)
        best = [int(prediction.argmax()) for prediction in predictions]
        ranked = [top(prediction, metadata["classes"], 5) for prediction in predictions]
        figure = prediction_picture(metadata["model"]["name"], pictures, ranked)
        yield "prediction.png", "the most probable classes", figure
    yield from first_layer(model)
    if isinstance(model, VisionTransformer):
        yield from transformer(model, metadata, pictures, pixels)
    if isinstance(model, SwinTransformer):
        yield from shifted_windows(model, metadata, pictures, pixels)
    if isinstance(model, ConvNeXt):
        yield from depthwise_kernels(model)
    if pixels is not None and (not isinstance(model, VisionTransformer) or isinstance(model, HybridVisionTransformer)):
        yield from grad_cams(model, metadata, pictures, pixels, best)


def first_layer(model: ImageModel) -> "Drawn":
    """The filters of the first layer; the hybrid's filters are standardized, as in forward."""
    layer = next(module for module in model.modules() if isinstance(module, Conv2d))
    weight = layer.weight.detach()
    weight = F.standardize_weight(weight) if isinstance(layer, StdConv2d) else weight
    yield "filters.png", "filters of the first layer", kernels.filters_picture(weight.numpy())


def transformer(
    model: VisionTransformer, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray | None
) -> "Drawn":
    """Attention maps, attention rollout, and similarity of the position embeddings."""
    grid, pool, n = model.patch_embed.grid_size, model.global_pool, model.num_prefix_tokens
    if pixels is not None and len(model.blocks):
        maps = [A.numpy() for A in model.attention_maps(to_input(pixels, model, metadata))]
        last = attention.pooled_attention(maps[-1], pool, n)  # (B, heads, N)
        figure = attention.attention_picture(pictures, last.reshape(*last.shape[:2], *grid), pool, n)
        yield "attention.png", "attention in the last block, per head", figure
        rollouts = attention.rollout(maps)
        flows = np.stack([attention.pooled_attention(flow, pool, n) for flow in rollouts])  # (blocks, B, N)
        figure = attention.rollout_picture(pictures, flows.reshape(*flows.shape[:2], *grid), pool, n)
        yield "rollout.png", "attention rollout after each block", figure
    positions = model.pos_embed.detach().numpy()[0, model.num_prefix_positions :]
    similarity = attention.position_similarity(positions, grid)
    yield "positions.png", "similarity of the position embeddings", attention.position_picture(similarity)


def shifted_windows(
    model: SwinTransformer, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray | None
) -> "Drawn":
    """Windows and mask, of the first image; relative position bias; and for each image the attention of one token."""
    blank = Picture("blank", np.full((model.in_chans, *model.img_size), 235, np.uint8))
    picture, names = pictures[0] if pictures else blank, block_names(model)
    blocks: list[Any] = list(model.blocks_by_name().values())
    sizes = map_sizes(model)
    layouts = [block.attn.layout(*size) for block, size in zip(blocks, sizes, strict=True)]
    windowed = [block.attn.window(*size) for block, size in zip(blocks, sizes, strict=True)]
    shifted = next((i for i, (_, shift) in enumerate(layouts) if any(shift)), None)
    if shifted is not None:
        merged = -(-sizes[0][0] // sizes[shifted][0])
        PH, PW = sides(model.patch_embed.patch_size)
        size, shift = layouts[shifted]
        figure = windows.windows_picture(picture, (PH * merged, PW * merged), size, shift, windowed[shifted])
        yield "windows.png", "windows, shifted windows and attention mask", figure
    biased = [
        (name, windows.bias_maps(block.attn.bias_table(M).detach().numpy(), M))
        for name, block, M in zip(names, blocks, windowed, strict=True)
    ]
    stages = [i for i in range(len(blocks)) if i == 0 or sizes[i] != sizes[i - 1]]
    yield "bias.png", "relative position bias", windows.bias_picture([biased[i] for i in stages])
    if pixels is None:
        return
    chosen = sorted({*stages, 0 if shifted is None else shifted})
    for b, shown in enumerate(pictures):
        panels = []
        maps = model.attention_maps(to_input(pixels[b : b + 1], model, metadata), chosen)
        for i, A in zip(chosen, maps, strict=True):
            H, W = sizes[i]
            query = H // 2, W // 2
            (size, shift), M = layouts[i], windowed[i]
            inside = windows.window_of(query, size, shift, M)[:H, :W]
            region = windows.regions(size, shift)
            heads = A.numpy()[0, :, query[0] * W + query[1]].reshape(-1, H, W)
            heads = np.where(inside & (region == region[query])[:H, :W], heads, np.nan)
            panels.append((names[i] + ("\n(shifted)" if any(shift) else ""), heads, inside, query))
        name = "window-attention.png" if len(pictures) == 1 else f"window-attention-{b + 1}.png"
        yield name, "attention of one patch in its window, per head", windows.query_picture(shown, panels)


def depthwise_kernels(model: ConvNeXt) -> "Drawn":
    """The depthwise kernels of the first block of each stage."""
    stages = [
        (f"stage {s}, {plural(stage[0].dwconv.weight.shape[0], 'channel')}", stage[0].dwconv.weight.detach().numpy())
        for s, stage in enumerate(model.stages, start=1)
    ]
    yield "kernels.png", "depthwise kernels", kernels.kernels_picture(stages)


def grad_cams(
    model: ImageModel, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray, best: list[int]
) -> "Drawn":
    """Grad-CAM of the most probable class, in the last block of each feature map size (hybrid: of its ResNet)."""
    blocks = gradcam.last_of_each_size(model, map_sizes(model))
    if isinstance(model, HybridVisionTransformer):
        blocks = [(name, size) for name, size in blocks if not name.startswith("blocks.")]
    if not blocks:  # a hybrid whose ResNet has no stages
        return
    maps = gradcam.grad_cam(model, to_input(pixels, model, metadata), best, [name for name, _ in blocks])
    named = [(f"{h} x {w} map", cam) for (_, (h, w)), cam in zip(blocks, maps, strict=True)]
    classes = [metadata["classes"][i] for i in best]
    yield "grad-cam.png", "Grad-CAM of the most probable class", gradcam.grad_cam_picture(pictures, classes, named)


def map_sizes(model: ImageModel) -> list[tuple[int, int]]:
    """Height and width of each block's feature map."""
    like = next(model.parameters())
    with no_grad():
        blank = Tensor(np.zeros((1, model.in_chans, *model.img_size)), dtype=like.dtype, device=like.device)
        return [(output.shape[2], output.shape[3]) for output in model.forward_intermediates(blank)[1]]


def block_names(model: ImageModel) -> list[str]:
    """The blocks numbered from 1: `layers.0.blocks.1` is "stage 1, block 2"."""
    numbers = [[int(part) + 1 for part in name.split(".") if part.isdecimal()] for name in model.blocks_by_name()]
    return [f"stage {stage}, block {block}" for stage, block in numbers]


def parser() -> argparse.ArgumentParser:
    """The command-line arguments."""
    parser = ArgumentParser(
        prog="python -m models.visualize",
        description="Visualize a trained model as PNG files (--output), or as a page to\n"
        "explore in a browser (--html). Without a model and images: those of this\n"
        "package.\n\nThe PNG files:\n"
        "  all models      predictions*, filters of the first layer\n"
        "  ViT, DeiT, DINOv2 and hybrid\n"
        "                  attention maps*, attention rollout*,\n"
        "                  similarity of the position embeddings\n"
        "  Swin, Swin V2   windows, shifted windows and attention mask,\n"
        "                  relative position bias, window attention*\n"
        "  ConvNeXt, V2    depthwise kernels\n"
        "  all but ViT, DeiT and DINOv2\n"
        "                  Grad-CAM*\n\n"
        "  * if images are given\n\n"
        "The page is one file and needs no network. For each block: the attention of each\n"
        "head from the patch under the pointer, with Swin's window and mask, attention\n"
        "rollout, ConvNeXt's kernels and receptive fields, token norms, and features as\n"
        "colours; beside them the equations from the code.",
        epilog="examples:\n"
        "  python -m models.visualize\n"
        "  python -m models.visualize --model swin_pico_cifar --pretrained --html\n"
        "  python -m models.visualize runs/vit_nano_cifar-cifar10/best.npz horse.jpg \\\n"
        "    --output pictures\n"
        "  python -m models.visualize runs/vit_nano_cifar-cifar10/best.npz photos --html",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=80),
    )
    add_inputs(parser)
    parser.add_argument(
        "image", nargs="*", metavar="IMAGE",
        help=f"image file, or folder of images, at most {MAX_IMAGES} images in all; resized and cropped as in "
        "python -m models.predict",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the PNG files (without --html: pictures)"
    )
    parser.add_argument(
        "--html", type=Path, nargs="?", const=Path("explore.html"), metavar="FILE",
        help="write the page to FILE (default explore.html)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
