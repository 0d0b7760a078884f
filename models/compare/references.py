"""L6: our models run by other libraries, with the formula weights of our names and in float64.

What they leave behind comes back under our names. Which array and which module is which follows from one table, that
of the parameters' names (`models/weights/layouts.py`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigrad import nn
from minigrad.nn import init
from models.compare import formula, libraries
from models.compare.trace import Trace, loss_weights, within
from models.registry import create_model
from models.swin import SwinTransformer
from models.weights.layouts import places, to_canonical


class Reference:
    """A model, given as to `create_model`, as another library has it.

    Attributes:
        library: the name of the library, one of `libraries.LIBRARIES`.
        version: its version.
        model: ours, whose weights were never set: it is here for its names and shapes.
        network: theirs, a torch.nn.Module with the formula weights.
        places: where each parameter of theirs belongs in ours.

    Raises:
        UnsupportedError: the library is not installed, or has no such network.
    """

    def __init__(self, library: str, model: str, **overrides: Any) -> None:
        with init.skip_init():
            self.model = create_model(model, **overrides)
        self.network = libraries.build(library, model, **overrides).double().eval()
        self.library, self.version = library, libraries.load(library).__version__.split("+")[0]
        self._fill()

    def _fill(self) -> None:
        import torch

        parameters = dict(self.network.named_parameters())
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        found = places(parameters, self.model)
        self.places = {name: place for name, place in found.items() if place is not None}
        homeless, missing = parameters.keys() - self.places, shapes.keys() - {p.name for p in self.places.values()}
        if homeless or missing:
            raise RuntimeError(
                f"{self.library} has {sorted(homeless)}, which no layout names; it lacks {sorted(missing)}"
            )
        for name, place in self.places.items():
            values = formula.weight(place.name, *shapes[place.name])
            values = values if place.part is None else np.split(values, 3)[place.part]
            with torch.no_grad():
                parameters[name].copy_(torch.from_numpy(values.reshape(parameters[name].shape)))

    def corresponding_modules(self) -> dict[str, str]:
        """Names of modules there, and of ours that do the same: they hold the same parameters.

        Of several within each other that hold the same, the innermost correspond, then those around them.
        """
        import torch

        # A list of modules is not called, so it returns nothing.
        here = [name for name, module in self.model.named_modules() if type(module) is not nn.ModuleList]
        lists = torch.nn.ModuleList
        there = [name for name, module in self.network.named_modules() if not isinstance(module, lists)]
        ours = _holders(here, {entry: place.name for entry, place in self.places.items()})
        theirs = _holders(there, {entry: entry for entry in self.places})
        pairs = {
            name: own
            for held, names in theirs.items()
            for name, own in zip(reversed(names), reversed(ours.get(held, [])), strict=False)
        }
        # Elsewhere the layers of Swin's attention have tokens window by window. What the head returns is the logits.
        in_windows = isinstance(self.model, SwinTransformer) and self.library != "torchvision"
        return {name: own for name, own in pairs.items() if own != "head" and not (in_windows and ".attn" in own)}

    def trace(self, images: np.ndarray) -> Trace:
        """Run the network forward and backward."""
        import torch

        found = Trace()

        def watch(name: str, output: Any) -> None:
            output = output if isinstance(output, torch.Tensor) else output[0]
            found.outputs[name] = output.detach().numpy().copy()  # the next layer may write into it
            output.register_hook(lambda grad: found.gradients.update({name: grad.numpy().copy()}))

        def hook(module: Any, name: str) -> Any:
            if type(module).__name__ == "GroupNormAct":  # timm's holds the activation after it too
                return module.act.register_forward_pre_hook(lambda act, inputs: watch(name, inputs[0]))
            return module.register_forward_hook(lambda module, inputs, output: watch(name, output))

        modules = dict(self.network.named_modules())
        removals = [hook(modules[there], here) for there, here in self.corresponding_modules().items()]
        pixels = torch.from_numpy(images.astype(np.float64)).requires_grad_()
        try:
            result = self.network(pixels)
        finally:
            for removal in removals:
                removal.remove()
        logits = result if isinstance(result, torch.Tensor) else result.logits
        watch("logits", logits)
        self.network.zero_grad()
        (logits * torch.from_numpy(loss_weights(tuple(logits.shape)))).sum().backward()
        found.gradients["images"] = pixels.grad.numpy()
        gradients = {name: parameter.grad.numpy() for name, parameter in self.network.named_parameters()}
        found.parameters = to_canonical(gradients, self.model)
        return found


def _holders(modules: Iterable[str], parameters: Mapping[str, str]) -> dict[frozenset[str], list[str]]:
    """For each set of parameters, the modules that hold just these, outermost first.

    The sets are of keys of `parameters`; the values are the names that say what is within what.
    """
    found: dict[frozenset[str], list[str]] = {}
    for module in modules:
        held = frozenset(key for key, name in parameters.items() if within(name, module))
        if held:
            found.setdefault(held, []).append(module)
    return found
