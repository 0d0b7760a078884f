"""L5: the moving average of a model in training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import compress
from typing import Any

import numpy as np

from minigrad.backend import Array, device_of, plain, to_device
from minigrad.dtypes import FLOAT32, cast, is_floating, is_narrow
from minigrad.kernels import cuda
from minigrad.nn import Module
from minigrad.tensor import Tensor


class EMA:
    """The exponential moving average of a model's parameters and buffers: it is often better than the model itself.

        ema <- decay · ema + (1 - decay) · x          after each step of the optimiser

    begun at the model as it is. A step counts for about 1 / (1 - decay) steps. `warmup` is for the first ones, so that
    the random weights of the beginning are soon forgotten: in update t = 0, 1, 2, ...

        decay_t = min(decay, (1 + t) / (10 + t))

    What is not floating-point, such as a count, is copied. An average of narrow numbers is kept in float32, as small
    changes vanish in them.  Polyak and Juditsky 1992; `warmup`: TensorFlow's ExponentialMovingAverage.

        ema = optim.EMA(model, 0.9998)
        ...
            optimizer.step()
            ema.update()
        with ema.applied():
            evaluate(model)

    Args:
        model: with its parameters where they are to stay: move it to a GPU first.
        decay: from 0, the model itself, to below 1.
        warmup: whether the decay rises to this.

    Raises:
        ValueError: another decay, or a model without parameters.
    """

    def __init__(self, model: Module, decay: float = 0.9998, *, warmup: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be from 0 to below 1, got {decay}")
        self.decay, self.warmup = decay, warmup
        self.updates = 0  # so many there have been
        self.tensors: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
        if not self.tensors or "updates" in self.tensors:
            what = "one named `updates`, which is what the state calls their count" if self.tensors else "none"
            raise ValueError(f"EMA: averages a model's parameters and buffers, got {what}")
        self.averages = {name: _kept(tensor.data).copy() for name, tensor in self.tensors.items()}

    def update(self) -> None:
        """After a step of the optimiser. Waits for nothing, and may be a part of a captured step.

        Raises:
            RuntimeError: the model has been moved to another device, or a CUDA graph is captured and has an average
                that is not float32, whose decay would stay as it is now.
        """
        pairs = [(average, self.tensors[name].data) for name, average in self.averages.items()]
        for name, (average, x) in zip(self.averages, pairs, strict=True):
            if device_of(x) != device_of(average):
                raise RuntimeError(
                    f"EMA: {name} is on {device_of(x)}, its average on {device_of(average)}: "
                    "make the EMA when the model is where it stays"
                )
        fused = [cuda.table.takes(*pair) for pair in pairs]
        others = [pair for pair, is_fused in zip(pairs, fused, strict=True) if not is_fused]
        if cuda.table.is_capturing():
            if any(is_floating(average.dtype) for average, _ in others):
                raise RuntimeError("EMA: in a captured step all averages must be of float32 arrays without gaps")
            next_rest = self._next_rest  # for each launch of the graph
        else:
            rest = self._next_rest()
            next_rest = lambda: rest  # noqa: E731

        for average, x in others:
            if not is_floating(average.dtype):
                average[...] = x
            else:
                # The same as decay · ema + (1 - decay) · x, but these two factors rounded to float32 do not sum to 1:
                # at 0.9999 the average of a constant would end 0.02 % beside it.
                change = cast(x, average.dtype) - average
                change *= rest
                average += change
        if any(fused):
            averages, values = zip(*compress(pairs, fused), strict=True)
            cuda.optim.average(averages, values, next_rest)

    def _next_rest(self) -> float:
        """1 - decay of this update, which is counted."""
        t = self.updates
        self.updates += 1
        return 1 - (min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the model is its average; afterwards it is what it was, whatever happens in the block.

        The arrays change places and nothing is copied, so that in the block the model is to be used, not trained.
        """
        before = {name: tensor.data for name, tensor in self.tensors.items()}
        try:
            for name, tensor in self.tensors.items():
                tensor.data = cast(self.averages[name], tensor.dtype)
            yield
        finally:
            for name, tensor in self.tensors.items():
                tensor.data = before[name]

    def state_dict(self) -> dict[str, Array]:
        """The averages by the names of their parameters and buffers, and the number of `updates`, on the CPU.

        There they are the live arrays: copy them, or save them, before the next update.
        """
        averages = {name: to_device(average, "cpu") for name, average in self.averages.items()}
        return {**averages, "updates": np.asarray(self.updates)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, for the same model.

        Raises:
            ValueError: a name is missing or unexpected, or a shape differs. Nothing has been loaded then.
        """
        arrays = {name: value.data if isinstance(value, Tensor) else plain(value) for name, value in state_dict.items()}
        expected = {name: average.shape for name, average in self.averages.items()} | {"updates": ()}
        complaints = [f"missing     {name} {shape}" for name, shape in expected.items() if name not in arrays]
        for name, array in arrays.items():
            if name not in expected:
                complaints.append(f"unexpected  {name} {array.shape}")
            elif array.shape != expected[name]:
                complaints.append(f"misshapen   {name}: {array.shape} in the state, {expected[name]} here")
        if complaints:
            shown = complaints[:20] + [f"and {len(complaints) - 20} more"] * (len(complaints) > 20)
            raise ValueError(
                "EMA: this state does not fit, and none of it was loaded:\n  " + "\n  ".join(shown) + "\n"
                "Is it of an EMA of the same model?"
            )
        for name, average in self.averages.items():
            average[...] = to_device(arrays[name], device_of(average))
        self.updates = int(arrays["updates"])


def _kept(x: Array) -> Array:
    """x in the type of its average."""
    return cast(x, FLOAT32) if is_narrow(x.dtype) else x
