"""L6: Grad-CAM, which parts of an image speak for a class.  Selvaraju et al. 2016, arXiv:1610.02391."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import Tensor, enable_grad
from minigrad.nn import Module
from models.model import ImageModel
from models.visualize.draw import Picture, heat_sheet, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grad_cam(model: ImageModel, images: Tensor, classes: Sequence[int], blocks: Sequence[str]) -> list[np.ndarray]:
    """For each of these blocks a map (B, h, w), at least 0, of what in it speaks for the class.

    With A the block's output as an image (B, C, h, w) and y_c the logit of the class, channel k counts by its mean
    gradient, and what speaks against the class is left out (equations 1 and 2):

        α_k = mean_ij ∂y_c / ∂A_kij,    map = ReLU(Σ_k α_k A_k)

    The model should be in evaluation mode. Its parameters' gradients are as before.

    Args:
        model: any whose blocks' outputs are read by more than a class token (in the last block of a ViT, the patches
            have no gradient).
        images: (B, C, H, W), as the model takes them.
        classes: for each image, a class by its number, from 0.
        blocks: names from `model.blocks_by_name()`.

    Raises:
        ValueError: there is no such block or class; or the model has no logits (B, K), as without pooling.
    """
    modules = model.blocks_by_name()
    missing = [name for name in blocks if name not in modules]
    if missing:
        raise ValueError(f"there is no block {missing[0]!r}; blocks are {', '.join(modules)}")
    if len(classes) != len(images):
        raise ValueError(f"grad_cam: needs a class for each of {len(images)} images, got {len(classes)}")
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Module, inputs: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    removals = [modules[name].register_forward_hook(keep(name)) for name in blocks]
    try:
        with enable_grad(), _gradients_aside(model):
            logits = model(Tensor(images.data, requires_grad=True))
            if logits.ndim != 2:
                raise ValueError(f"grad_cam: needs a model that pools, with logits (B, K), got {logits.shape}")
            if not all(0 <= c < logits.shape[1] for c in classes):
                raise ValueError(f"grad_cam: classes must be from 0 to {logits.shape[1] - 1}, got {list(classes)}")
            chosen = np.zeros(logits.shape, logits.dtype)
            chosen[np.arange(len(images)), list(classes)] = 1
            logits.backward(Tensor(chosen, device=logits.device))  # of the sum of all y_c: images do not meet
    finally:
        for remove in removals:
            remove()
    maps = []
    for name in blocks:
        A = model.feature_map(outputs[name].detach()).numpy()  # (B, C, h, w)
        grad = model.feature_map(_gradient(outputs[name])).numpy()
        maps.append(np.maximum(np.einsum("bk,bkhw->bhw", grad.mean((2, 3)), A), 0))
    return maps


def _gradient(output: Tensor) -> Tensor:
    assert output.grad is not None  # the logits come from every block
    return output.grad


@contextmanager
def _gradients_aside(model: Module) -> Iterator[None]:
    """A backward inside leaves the gradients of the parameters as they were."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    try:
        yield
    finally:
        for parameter, grad in kept:
            parameter.grad = grad


def last_of_each_size(model: ImageModel, sizes: Sequence[tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    """The last block before the map changes its size, and that size, for each size there is."""
    named = list(zip(model.blocks_by_name(), sizes, strict=True))
    return [named[i] for i in range(len(named)) if i + 1 == len(named) or named[i + 1][1] != named[i][1]]


def grad_cam_picture(
    pictures: Sequence[Picture], classes: Sequence[str], maps: Sequence[tuple[str, np.ndarray]]
) -> "Figure":
    """Maps (B, h, w) by the names of their blocks, for the class that the model finds most probable in each image."""
    named = [
        Picture(f"{short(picture.name, 14)}:\n{short(name, 14)}?", picture.pixels)
        for picture, name in zip(pictures, classes, strict=True)
    ]
    heats = [[one / (one.max() or 1.0) for one in (values[i] for _, values in maps)] for i in range(len(pictures))]
    note = (
        "Grad-CAM (arXiv:1610.02391): where the output of a block speaks for the class under the name of the image, "
        "the one found most probable. Each map is scaled to its own largest value; one that stays grey has none."
    )
    names, label = [name for name, _ in maps], "share of the largest value"
    return heat_sheet("What speaks for the class", note, label, named, names, heats, power=1.0)
