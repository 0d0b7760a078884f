"""L5: the moving average of a model in training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import compress
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module, device_of, plain, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_floating, is_half
from minigrad.kernels import cuda
from minigrad.nn import Module
from minigrad.nn.module import can_hold
from minigrad.ops import checks
from minigrad.tensor import Tensor


class EMA:
    """The exponential moving average of a model's parameters and buffers: it is often better than the model itself.

        ema <- decay · ema + (1 - decay) · x          after each step of the optimiser

    begun at the model as it is. A step counts for about 1 / (1 - decay) steps. `warmup` is for the first ones, so that
    the random weights of the beginning are soon forgotten: in update t = 0, 1, 2, ...

        decay_t = min(decay, (1 + t) / (10 + t))

    What is not floating-point, such as a count, is copied. The average of a 16-bit parameter is in float32, as small
    changes vanish in 16 bits.  Polyak and Juditsky 1992; `warmup`: TensorFlow's ExponentialMovingAverage.

    The parameters stay those of the model when the EMA was made, in names and shapes: after `reset_classifier`, say,
    make a new EMA. A buffer may be replaced by one of the same shape, and `model.to` a 16-bit dtype and back is fine.

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
        decay = checks.scalar(decay, "decay", "EMA")
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be from 0 to below 1, got {decay}")
        self.decay, self.warmup = decay, warmup
        self.updates = 0  # so many there have been
        self.model, self.parameters = model, dict(model.named_parameters())
        tensors = {**self.parameters, **dict(model.named_buffers())}
        if not tensors or "updates" in tensors:
            what = "one named `updates`, which is what the state calls their count" if tensors else "none"
            raise ValueError(f"EMA: averages a model's parameters and buffers, got {what}")
        self.averages = {name: _kept(tensor.data).copy() for name, tensor in tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The model's parameters and buffers, by the names of their averages.

        Raises:
            RuntimeError: they are no longer those that are averaged.
        """
        parameters = dict(self.model.named_parameters())
        tensors: dict[str, Tensor] = {**parameters, **dict(self.model.named_buffers())}
        changes = [f"{name} {average.shape} is gone" for name, average in self.averages.items() if name not in tensors]
        for name, tensor in tensors.items():
            average = self.averages.get(name)
            if average is None:
                changes.append(f"{name} {tensor.shape} is new")
            elif tensor.shape != average.shape:
                changes.append(f"{name} is {tensor.shape}, its average {average.shape}")
            elif tensor.device != device_of(average):
                changes.append(f"{name} is on {tensor.device}, its average on {device_of(average)}")
            elif not (is_half(tensor.dtype) and average.dtype == FLOAT32) and tensor.dtype != average.dtype:
                changes.append(f"{name} is {tensor.dtype}, its average {average.dtype}")
            elif parameters.get(name) is not self.parameters.get(name):
                changes.append(f"{name} {tensor.shape} is another parameter")
        if changes:
            raise RuntimeError(
                f"EMA: the model has changed since its EMA was made:\n  {checks.listed(changes)}\n"
                "Make the EMA when the model is where and what it stays, and a new one after a change."
            )
        return tensors

    def update(self) -> None:
        """After a step of the optimiser. Waits for nothing, and may be a part of a captured step.

        Raises:
            RuntimeError: the model has other parameters, shapes, dtypes or another device than when the EMA was made,
                or a CUDA graph is captured and has an average that is not float32: the graph would freeze its decay.
        """
        tensors = self.tensors()
        pairs = [(average, tensors[name].data) for name, average in self.averages.items()]
        fused = [cuda.table.fits(*pair) for pair in pairs]
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
        tensors = self.tensors()
        before = [(tensor, tensor.data) for tensor in tensors.values()]
        try:
            for name, tensor in tensors.items():
                tensor.data = cast(self.averages[name], tensor.dtype)
            yield
        finally:
            for tensor, data in before:
                tensor.data = data

    def state_dict(self) -> dict[str, Array]:
        """The averages by the names of their parameters and buffers, and the number of `updates`, on the CPU.

        There they are the live arrays: copy them, or save them, before the next update.
        """
        averages = {name: to_device(average, "cpu") for name, average in self.averages.items()}
        return {**averages, "updates": np.asarray(self.updates)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, for the same model.

        Raises:
            ValueError: a name is missing or unexpected, a shape differs, or a value is NaN, infinite or none that the
                average's dtype can hold. Nothing has been loaded then.
        """
        arrays = self.read_state_dict(state_dict)
        for name, average in self.averages.items():
            average[...] = to_device(cast(arrays[name], average.dtype), device_of(average))
        self.updates = int(arrays["updates"])

    def read_state_dict(self, state_dict: Mapping[str, Any]) -> dict[str, Array]:
        """The arrays that `load_state_dict` copies from, checked."""
        arrays = {
            name: to_device(value.data if isinstance(value, Tensor) else np.asarray(plain(value)), "cpu")
            for name, value in state_dict.items()
        }
        expected = {name: average.shape for name, average in self.averages.items()} | {"updates": ()}
        complaints = [f"missing     {name} {shape}" for name, shape in expected.items() if name not in arrays]
        for name, array in arrays.items():
            if name not in expected:
                complaints.append(f"unexpected  {name} {array.shape}")
            elif array.shape != expected[name]:
                complaints.append(f"misshapen   {name}: {array.shape} in the state, {expected[name]} here")
            elif name == "updates":
                if not can_hold(np.dtype(np.int64), array) or array < 0:
                    complaints.append(f"unfit       updates: must be a whole number from 0 on, got {array}")
            elif not can_hold((average := self.averages[name]).dtype, array):
                complaints.append(f"unfit       {name}: {array.dtype} with values that {average.dtype} cannot hold")
            elif is_floating(array.dtype) and not (_finite(array) | ~_finite(to_device(average, "cpu"))).all():
                complaints.append(f"unfit       {name}: has values that are NaN or infinite")
        if complaints:
            raise ValueError(
                f"EMA: this state does not fit, and none of it was loaded:\n  {checks.listed(complaints)}\n"
                "Is it of an EMA of the same model?"
            )
        return arrays


def _finite(x: Array) -> Array:
    return array_module(x).isfinite(x)


def _kept(x: Array) -> Array:
    """x in the type of its average."""
    return cast(x, FLOAT32) if is_half(x.dtype) else x
