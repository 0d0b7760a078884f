"""L6: run other libraries' implementations of our models, with formula weights, in float64.

Outputs and gradients are returned under our names. Modules and arrays are matched by one table, the parameter names in
`models/weights/layouts.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigrad import nn
from minigrad.nn import init
from models.compare import formula, libraries
from models.compare.trace import Trace, is_submodule, loss_weights
from models.registry import create_model
from models.swin import SwinTransformer
from models.weights.layouts import Place, layout_of, to_canonical


class Reference:
    """Another library's implementation of `create_model(model, **overrides)`.

    Attributes:
        library: the name of the library, one of `libraries.LIBRARIES`.
        version: the version of the library.
        model: our model, with uninitialized weights, for its names and shapes.
        network: the library's model, a torch.nn.Module with the formula weights.
        places: the place in our model of each parameter of `network`.

    Raises:
        UnsupportedError: the library is not installed, or does not support the model.
    """

    def __init__(self, library: str, model: str, **overrides: Any) -> None:
        with init.skip_init():
            self.model = create_model(model, **overrides)
        self.network = libraries.to_float64(libraries.build(library, model, **overrides))
        self.library, self.version = library, libraries.load(library).__version__.split("+")[0]
        self.places = self._places()
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        self.load({name: formula.weight(name, *shape) for name, shape in shapes.items()})

    def _places(self) -> dict[str, Place]:
        parameters = dict(self.network.named_parameters())
        layout = layout_of(parameters, self.model)
        parameters = layout.unstacked(parameters)
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        found = layout.places(parameters, shapes)
        places = {name: place for name, place in found.items() if place is not None}
        unexpected, missing = parameters.keys() - places, shapes.keys() - {p.name for p in places.values()}
        if unexpected or missing:
            raise RuntimeError(
                f"no layout translates all names of {self.library}: unexpected {sorted(unexpected)}, "
                f"missing {sorted(missing)}"
            )
        return places

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set the parameters of `network` to weights of our model, under our names."""
        import torch

        parameters = dict(self.network.named_parameters())
        parameters = layout_of(parameters, self.model).unstacked(parameters)
        for name, place in self.places.items():
            values = np.split(weights[place.name], len(place.parts))[place.parts.index(place.part)]
            with torch.no_grad():
                parameters[name].copy_(torch.from_numpy(values.reshape(parameters[name].shape)))

    def corresponding_modules(self) -> dict[str, str]:
        """The names of the library's modules, mapped to our modules with the same parameters.

        Nested modules with the same parameters are paired from the innermost outwards.
        """
        import torch

        # A ModuleList is never called, so it has no output.
        here = [name for name, module in self.model.named_modules() if type(module) is not nn.ModuleList]
        lists = torch.nn.ModuleList
        there = [name for name, module in self.network.named_modules() if not isinstance(module, lists)]
        ours = _modules_by_parameters(here, {entry: place.name for entry, place in self.places.items()})
        theirs = _modules_by_parameters(there, {entry: entry for entry in self.places})
        pairs = {
            name: own
            for contained, names in theirs.items()
            for name, own in zip(reversed(names), reversed(ours.get(contained, [])), strict=False)
        }
        # Except in torchvision, layers in Swin's attention have tokens grouped by window. The head returns the logits.
        by_window = isinstance(self.model, SwinTransformer) and self.library != "torchvision"
        return {name: own for name, own in pairs.items() if own != "head" and not (by_window and ".attn" in own)}

    def trace(self, images: np.ndarray) -> Trace:
        """Run the network forward and backward."""
        import torch

        found = Trace()

        def record(name: str, output: Any) -> None:
            output = output if isinstance(output, torch.Tensor) else output[0]
            found.outputs[name] = output.detach().numpy().copy()  # the next layer may write in place
            output.register_hook(lambda grad: found.gradients.update({name: grad.numpy().copy()}))

        def hook(module: Any, name: str) -> Any:
            if type(module).__name__ == "GroupNormAct":  # timm: the norm and the activation after it
                return module.act.register_forward_pre_hook(lambda act, inputs: record(name, inputs[0]))
            return module.register_forward_hook(lambda module, inputs, output: record(name, output))

        modules = dict(self.network.named_modules())
        removals = [hook(modules[there], here) for there, here in self.corresponding_modules().items()]
        pixels = torch.from_numpy(images.astype(np.float64)).requires_grad_()
        try:
            result = self.network(pixels)
        finally:
            for removal in removals:
                removal.remove()
        logits = result if isinstance(result, torch.Tensor) else logits_of(result)
        record("logits", logits)
        self.network.zero_grad()
        (logits * torch.from_numpy(loss_weights(tuple(logits.shape)))).sum().backward()
        found.gradients["images"] = pixels.grad.numpy()
        gradients = {name: parameter.grad.numpy() for name, parameter in self.network.named_parameters()}
        found.parameters = to_canonical(gradients, self.model)
        return found


def logits_of(output: Any) -> Any:
    """The logits in an output of transformers; of a model without a head, the class token."""
    return output.logits if hasattr(output, "logits") else output.pooler_output


def _modules_by_parameters(modules: Iterable[str], parameters: Mapping[str, str]) -> dict[frozenset[str], list[str]]:
    """For each set of parameters, the modules with exactly these parameters, outermost first.

    Args:
        modules: the names of the modules.
        parameters: maps a key of each parameter, used in the returned sets, to its name in these modules.
    """
    found: dict[frozenset[str], list[str]] = {}
    for module in modules:
        contained = frozenset(key for key, name in parameters.items() if is_submodule(name, module))
        if contained:
            found.setdefault(contained, []).append(module)
    return found
