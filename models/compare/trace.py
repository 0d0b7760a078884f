"""L6: what one forward and one backward leave behind, layer by layer.

The loss is the sum of the logits, each times a number of its own, so that every logit has another gradient.
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
        outputs: what each module with parameters returned, in the order of the forward; the logits, as "logits".
        gradients: of the loss, with respect to these outputs; to the images, as "images".
        parameters: the gradients of the parameters.
    """

    outputs: Arrays = field(default_factory=dict)
    gradients: Arrays = field(default_factory=dict)
    parameters: Arrays = field(default_factory=dict)


def trace(model: ImageModel, images: np.ndarray) -> Trace:
    """Run a model forward and backward, in the dtype of its parameters, as in evaluation: nothing is dropped."""
    found = Trace()

    def watch(name: str, output: Tensor) -> None:
        found.outputs[name] = output.data
        output.register_hook(lambda grad: found.gradients.update({name: grad.data}))

    def hook(name: str) -> Any:
        return lambda module, inputs, output: watch(name, output)

    dtype = next(model.parameters()).dtype
    pixels = Tensor(images.astype(dtype), requires_grad=True)
    removals = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if [*module.parameters()] and name not in ("", "head")  # what these return is the logits
    ]
    was_training = model.training
    try:
        logits = model.eval()(pixels)
    finally:
        model.train(was_training)
        for remove in removals:
            remove()
    watch("logits", logits)
    model.zero_grad()
    (logits * Tensor(loss_weights(logits.shape).astype(dtype))).sum().backward()
    found.gradients["images"] = gradient(pixels)
    found.parameters = {name: gradient(parameter) for name, parameter in model.named_parameters()}
    return found


def gradient(tensor: Tensor) -> np.ndarray:
    """What backward left in a leaf; zeros, where it had no part in the loss."""
    return np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.data


def loss_weights(shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of the loss with respect to the logits."""
    return formula.stream("loss", *shape)


def channels(model: ImageModel) -> dict[str, int]:
    """How many channels the output of each module has: as many as the last of its parameters has rows."""
    last = {name: [p.shape[0] for p in module.parameters()] for name, module in model.named_modules()}
    return {name: rows[-1] for name, rows in last.items() if rows}


def readings(x: np.ndarray, channels: int) -> list[np.ndarray]:
    """An output as (positions, channels), whether it has the channels last or second, in each way its shape allows."""
    found = []
    if x.shape[-1] == channels:
        found.append(x.reshape(-1, channels))
    if x.ndim == 4 and x.shape[1] == channels:
        found.append(x.transpose(0, 2, 3, 1).reshape(-1, channels))  # (B, C, H, W) -> (B, H, W, C) -> (BHW, C)
    return found


def landmarks(model: ImageModel, names: Iterable[str]) -> list[str]:
    """Of these modules, the blocks and what lies between them; not what is within one of these, or holds a block."""
    holding = holders(model)
    found = [name for name in names if name not in holding]
    return [name for name in found if not any(within(name, other) for other in found)]


def holders(model: ImageModel) -> set[str]:
    """The modules that hold blocks, as a stage does: what they return, the last layer in them has returned."""
    blocks = list(model.blocks_by_name())
    return {name for name, _ in model.named_modules() if any(within(block, name) for block in blocks)}


def within(name: str, other: str) -> bool:
    """Whether the module `name` is inside the module `other`."""
    return name.startswith(f"{other}.")
