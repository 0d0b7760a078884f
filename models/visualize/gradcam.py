"""L6: Grad-CAM, the image regions that increase the logit of a class.  Selvaraju et al. 2016, arXiv:1610.02391."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import Tensor, enable_grad
from minigrad.nn import Module
from models.model import ImageModel
from models.visualize.draw import Picture, heat_sheet, short
from models.visualize.fonts import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grad_cam(model: ImageModel, images: Tensor, classes: Sequence[int], blocks: Sequence[str]) -> list[np.ndarray]:
    """A non-negative map (B, h, w) for each block: where its output increases the logit of the class.

    With A the block's output as a feature map (B, C, h, w) and y_c the logit of the class, channel k is weighted by its
    mean gradient, and negative values are set to 0 (equations 1 and 2):

        α_k = mean_ij ∂y_c / ∂A_kij,    map = ReLU(Σ_k α_k A_k)

    The model should be in evaluation mode. The gradients of the parameters are unchanged.

    Args:
        model: any model in which the blocks' feature maps have a gradient (in the last block of a ViT with a class
            token, the patch tokens have no gradient).
        images: model inputs (B, C, H, W).
        classes: for each image, the index of a class.
        blocks: names from `model.blocks_by_name()`.

    Raises:
        ValueError: a block or class does not exist, or the logits are not (B, K), as in a model without pooling.
    """
    modules = model.blocks_by_name()
    missing = [name for name in blocks if name not in modules]
    if missing:
        raise ValueError(f"there is no block {missing[0]!r}; blocks are {', '.join(modules)}")
    if len(classes) != len(images):
        raise ValueError(f"grad_cam: needs a class for each of {len(images)} images, got {len(classes)}")
    outputs: dict[str, Tensor] = {}

    def save_output(name: str) -> Any:
        def hook(module: Module, inputs: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    handles = [modules[name].register_forward_hook(save_output(name)) for name in blocks]
    try:
        with enable_grad(), _restored_gradients(model):
            logits = model(Tensor(images.data, requires_grad=True))
            if logits.ndim != 2:
                raise ValueError(f"grad_cam: needs a model that pools, with logits (B, K), got {logits.shape}")
            if not all(0 <= c < logits.shape[1] for c in classes):
                raise ValueError(f"grad_cam: classes must be from 0 to {logits.shape[1] - 1}, got {list(classes)}")
            one_hot = np.zeros(logits.shape, logits.dtype)
            one_hot[np.arange(len(images)), list(classes)] = 1
            logits.backward(Tensor(one_hot, device=logits.device))  # of the sum of y_c: images are independent
    finally:
        for handle in handles:
            handle.remove()
    maps = []
    for name in blocks:
        A = model.feature_map(outputs[name].detach()).numpy()  # (B, C, h, w)
        grad = model.feature_map(_gradient(outputs[name])).numpy()
        maps.append(np.maximum(np.einsum("bk,bkhw->bhw", grad.mean((2, 3)), A), 0))
    return maps


def _gradient(output: Tensor) -> Tensor:
    assert output.grad is not None  # the logits depend on every block
    return output.grad


@contextmanager
def _restored_gradients(model: Module) -> Iterator[None]:
    """Restore the gradients of the parameters on exit."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    try:
        yield
    finally:
        for parameter, grad in saved:
            parameter.grad = grad


def last_of_each_size(model: ImageModel, sizes: Sequence[tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    """For each size of feature map, the last block with this size: its name and the size."""
    named = list(zip(model.blocks_by_name(), sizes, strict=True))
    return [named[i] for i in range(len(named)) if i + 1 == len(named) or named[i + 1][1] != named[i][1]]


def grad_cam_picture(
    pictures: Sequence[Picture], classes: Sequence[str], maps: Sequence[tuple[str, np.ndarray]]
) -> "Figure":
    """Heatmaps over each image, for its most probable class; `maps` are (title, map (B, h, w))."""
    named = [
        Picture(f"{picture.name}:\n{short(drawable(name))}?", picture.pixels)
        for picture, name in zip(pictures, classes, strict=True)
    ]
    heats = [[cam / (cam.max() or 1.0) for cam in (values[i] for _, values in maps)] for i in range(len(pictures))]
    note = (
        "Grad-CAM (arXiv:1610.02391): where the output of a block increases the logit of the most probable class, the "
        "name above the image. Each map is scaled to its maximum; a grey map is zero everywhere."
    )
    names, label = [name for name, _ in maps], "share of the maximum"
    return heat_sheet("Grad-CAM of the most probable class", note, label, named, names, heats, power=1.0)
