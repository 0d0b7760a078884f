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
from models.predict import add_inputs, command, printable, probabilities, top
from models.swin import SwinTransformer
from models.visualize import attention, gradcam, kernels, windows
from models.visualize.draw import Picture, new_figure, short
from models.visualize.prediction import prediction_picture
from models.vit import VisionTransformer
from models.weights import checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Drawn = Iterator[tuple[str, str, Figure]]
    """Names of files, what they show, and the figures."""

MOST = 8  # images: more rows are not taken in at a glance


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a mistake in the input."""
    return command(parser(), run, arguments)


def run(options: argparse.Namespace) -> None:
    """Draw, and print which files there are."""
    new_figure(1, 1, "", "")  # refuse before any work what would fail only after it
    model, metadata = checkpoint.load(options.checkpoint)
    model.to(device=options.device)
    files = images.find(options.image)
    if len(files) > MOST:
        raise ValueError(f"a picture has room for {MOST} images, got {len(files)}: name some of them")
    pixels = [images.read(file, model.img_size, model.in_chans) for file in files]
    pictures = [Picture(short(file.stem), one) for file, one in zip(files, pixels, strict=True)]
    options.output.mkdir(parents=True, exist_ok=True)
    for name, text, figure in draw(model, metadata, pictures, np.stack(pixels) if pixels else None):
        path = options.output / name
        figure.savefig(path, dpi=120)
        print(f"{printable(str(path))}  {text}", flush=True)
    if not pictures:
        print("with images, python -m models.visualize CHECKPOINT IMAGE..., there is more to see")


def draw(
    model: ImageModel, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray | None
) -> "Drawn":
    """Every picture there is of this model; `pixels` are those of `pictures`, (B, C, H, W) uint8, if there are any."""
    best: list[int] = []
    if pixels is not None:
        answers = probabilities(model, metadata, pixels)
        best = [int(answer.argmax()) for answer in answers]
        ranked = [top(answer, metadata["classes"], 5) for answer in answers]
        figure = prediction_picture(metadata["model"]["name"], pictures, ranked)
        yield "prediction.png", "the classes it finds most probable", figure
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
    """Its filters, as they are used."""
    layer = next(module for module in model.modules() if isinstance(module, Conv2d))
    weight = layer.weight.detach()
    weight = F.standardize_weight(weight) if isinstance(layer, StdConv2d) else weight
    yield "filters.png", "what the first layer looks for", kernels.filters_picture(weight.numpy())


def transformer(
    model: VisionTransformer, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray | None
) -> "Drawn":
    """Attention, its rollout, and the position embedding."""
    grid, pool = model.patch_embed.grid_size, model.global_pool
    if pixels is not None and len(model.blocks):
        maps = [one.numpy() for one in model.attention_maps(to_input(pixels, model, metadata))]
        last = attention.readers(maps[-1], pool)  # (B, heads, N)
        figure = attention.attention_picture(pictures, last.reshape(*last.shape[:2], *grid), pool)
        yield "attention.png", "where it looks in the last block, head by head", figure
        flows = np.stack([attention.readers(flow, pool) for flow in attention.rollout(maps)])  # (blocks, B, N)
        figure = attention.rollout_picture(pictures, flows.reshape(*flows.shape[:2], *grid), pool)
        yield "rollout.png", "what has reached the output, block by block", figure
    similarity = attention.position_similarity(model.pos_embed.detach().numpy()[0, 1:], grid)
    yield "positions.png", "which positions it takes for alike", attention.position_picture(similarity)


def shifted_windows(
    model: SwinTransformer, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray | None
) -> "Drawn":
    """Windows, the bias within them, and the attention of one token; of several images over the first."""
    blank = Picture("blank", np.full((model.in_chans, *model.img_size), 235, np.uint8))
    picture, names = pictures[0] if pictures else blank, block_names(model)
    blocks: list[Any] = list(model.blocks_by_name().values())
    sizes = map_sizes(model)
    layouts = [block.attn.layout(*size) for block, size in zip(blocks, sizes, strict=True)]
    shifted = next((i for i, (_, shift) in enumerate(layouts) if any(shift)), None)
    if shifted is not None:
        merged = -(-sizes[0][0] // sizes[shifted][0])
        PH, PW = sides(model.patch_embed.patch_size)
        size, shift = layouts[shifted]
        figure = windows.windows_picture(
            picture, (PH * merged, PW * merged), size, shift, blocks[shifted].attn.window_size
        )
        yield "windows.png", "its windows, their shift and the mask", figure
    biased = [
        (name, windows.bias_maps(block.attn.relative_position_bias_table.detach().numpy(), block.attn.window_size))
        for name, block in zip(names, blocks, strict=True)
    ]
    stages = [i for i in range(len(blocks)) if i == 0 or sizes[i] != sizes[i - 1]]
    yield "bias.png", "what it adds to scores for where a key lies", windows.bias_picture([biased[i] for i in stages])
    if pixels is None:
        return
    chosen = sorted({*stages, 0 if shifted is None else shifted})
    maps = model.attention_maps(to_input(pixels[:1], model, metadata), chosen)
    looked = []
    for i, one in zip(chosen, maps, strict=True):
        H, W = sizes[i]
        token = H // 2 * W + W // 2
        (size, shift), M = layouts[i], blocks[i].attn.window_size
        inside = windows.window_of(divmod(token, W), size, shift, M)[:H, :W]
        heads = one.numpy()[0, :, token].reshape(-1, H, W)
        name = names[i] + ("\n(shifted)" if any(shift) else "")
        looked.append((name, heads, inside, divmod(token, W)))
    figure = windows.query_picture(picture, looked)
    yield "window-attention.png", "how one patch looks at its window, head by head", figure


def depthwise_kernels(model: ConvNeXt) -> "Drawn":
    """Of the first block of each stage."""
    stages = [
        (f"stage {s}, {stage[0].dwconv.weight.shape[0]} channels", stage[0].dwconv.weight.detach().numpy())
        for s, stage in enumerate(model.stages, start=1)
    ]
    yield "kernels.png", "its depthwise kernels", kernels.kernels_picture(stages)


def grad_cams(
    model: ImageModel, metadata: dict[str, Any], pictures: Sequence[Picture], pixels: np.ndarray, best: list[int]
) -> "Drawn":
    """For the most probable class, in the last block on each size of map; of the hybrid, in those of its ResNet."""
    blocks = gradcam.last_of_each_size(model, map_sizes(model))
    if isinstance(model, HybridVisionTransformer):
        blocks = [(name, size) for name, size in blocks if not name.startswith("blocks.")]
    if not blocks:  # a ResNet that is all stem
        return
    maps = gradcam.grad_cam(model, to_input(pixels, model, metadata), best, [name for name, _ in blocks])
    named = [(f"{h} x {w} map", one) for (_, (h, w)), one in zip(blocks, maps, strict=True)]
    classes = [metadata["classes"][i] for i in best]
    yield "grad-cam.png", "which parts speak for the class", gradcam.grad_cam_picture(pictures, classes, named)


def map_sizes(model: ImageModel) -> list[tuple[int, int]]:
    """Height and width of what each block returns."""
    like = next(model.parameters())
    with no_grad():
        blank = Tensor(np.zeros((1, model.in_chans, *model.img_size)), dtype=like.dtype, device=like.device)
        return [(output.shape[2], output.shape[3]) for output in model.forward_intermediates(blank)[1]]


def block_names(model: ImageModel) -> list[str]:
    """`layers.0.blocks.1` as people count: stage 1, block 2."""
    numbers = [[int(part) + 1 for part in name.split(".") if part.isdecimal()] for name in model.blocks_by_name()]
    return [f"stage {stage}, block {block}" for stage, block in numbers]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m models.visualize",
        description="Draw what is inside a trained model, as PNG files. Of a ViT or hybrid: attention over the images, "
        "its rollout, position embeddings; of a Swin: windows, shift and mask, position bias, attention in a window; "
        "of a ConvNeXt: depthwise kernels; of all but ViT: Grad-CAM; of each: the prediction, the first filters.",
        epilog="example: python -m models.visualize runs/vit_nano_cifar-cifar10/best.npz horse.jpg --output pictures",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
    )
    add_inputs(parser)
    parser.add_argument(
        "image", nargs="*", metavar="IMAGE",
        help=f"up to {MOST} images, or a folder of them, taken as python -m models.predict takes them; without any, "
        "what needs none is drawn",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
