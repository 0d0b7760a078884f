"""L6: the outputs and gradients of one forward and backward, layer by layer.

The loss is a weighted sum of the logits with pseudo-random weights, so that every logit has a different gradient.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigrad import Tensor
from models.compare import formula
from models.model import ImageModel

Arrays = dict[str, np.ndarray]


@dataclass
class Trace:
    """Arrays by the names of our modules and parameters.

    Attributes:
        outputs: the output of each module with parameters, in forward order; "logits" is last.
        gradients: of the loss with respect to these outputs, and to "images".
        parameters: the gradients of the parameters.
    """

    outputs: Arrays = field(default_factory=dict)
    gradients: Arrays = field(default_factory=dict)
    parameters: Arrays = field(default_factory=dict)


def trace(model: ImageModel, images: np.ndarray) -> Trace:
    """Run a model forward and backward in evaluation mode, in the dtype of its parameters."""
    found = Trace()

    def record(name: str, output: Tensor) -> None:
        found.outputs[name] = output.data
        output.register_hook(lambda grad: found.gradients.update({name: grad.data}))

    def hook(name: str) -> Any:
        return lambda module, inputs, output: record(name, output)

    dtype = next(model.parameters()).dtype
    pixels = Tensor(images.astype(dtype), requires_grad=True)
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if [*module.parameters()] and name not in ("", "head")  # these return the logits
    ]
    was_training = model.training
    try:
        logits = model.eval()(pixels)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    record("logits", logits)
    model.zero_grad()
    (logits * Tensor(loss_weights(logits.shape).astype(dtype))).sum().backward()
    found.gradients["images"] = gradient(pixels)
    found.parameters = {name: gradient(parameter) for name, parameter in model.named_parameters()}
    return found


def gradient(tensor: Tensor) -> np.ndarray:
    """The gradient of a leaf; zeros if the loss does not depend on it."""
    return np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.data


def loss_weights(shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of the loss with respect to the logits."""
    return formula.stream("loss", *shape)


def channels(model: ImageModel) -> dict[str, int]:
    """The number of output channels of each module: the first dimension of its last parameter."""
    sizes = {name: [p.shape[0] for p in module.parameters()] for name, module in model.named_modules()}
    return {name: rows[-1] for name, rows in sizes.items() if rows}


def to_rows(x: np.ndarray, channels: int) -> list[np.ndarray]:
    """An output as (positions, channels), for each layout that its shape allows: channels last, channels first."""
    found = []
    if x.shape[-1] == channels:
        found.append(x.reshape(-1, channels))
    if x.ndim == 4 and x.shape[1] == channels:
        found.append(x.transpose(0, 2, 3, 1).reshape(-1, channels))  # (B, C, H, W) -> (B, H, W, C) -> (BHW, C)
    return found


def outer_layers(model: ImageModel, names: Iterable[str]) -> list[str]:
    """Of these modules, the blocks and the layers outside blocks; neither their submodules nor containers of blocks."""
    containers = block_containers(model)
    found = [name for name in names if name not in containers]
    return [name for name in found if not any(is_submodule(name, other) for other in found)]


def block_containers(model: ImageModel) -> set[str]:
    """The modules with blocks inside, such as stages: their output is the output of their last block."""
    blocks = list(model.blocks_by_name())
    return {name for name, _ in model.named_modules() if any(is_submodule(block, name) for block in blocks)}


def is_submodule(name: str, other: str) -> bool:
    """Whether the module or parameter `name` is inside the module `other`."""
    return name.startswith(f"{other}.")
