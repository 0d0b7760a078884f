"""L5: the moving average of a model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import Array, array_module, device_of, fast_paths, plain, to_device
from minigrad.backend.dtypes import FLOAT32, cast, is_floating, is_half
from minigrad.nn import Module
from minigrad.nn.misfits import can_hold
from minigrad.ops import checks
from minigrad.ops.updates import average_all


class EMA:
    """The exponential moving average of a model's parameters and buffers, often more accurate than the model itself.

        ema <- decay · ema + (1 - decay) · x          after each optimizer step

    The average starts at the current model, and spans about the last 1 / (1 - decay) steps. With `warmup`, the random
    initial weights are forgotten sooner: in update t = 0, 1, 2, ...

        decay_t = min(decay, (1 + t) / (10 + t))

    Buffers of integers, such as a count, are copied. The average of a 16-bit parameter is in float32, as small
    changes vanish in 16 bits.  Polyak and Juditsky 1992; `warmup`: TensorFlow's ExponentialMovingAverage.

    The model must keep the parameters that it had when the EMA was made, in names and shapes: after
    `reset_classifier`, for example, make a new EMA. A buffer may be replaced by one of the same shape, and `model.to` a
    16-bit dtype and back is allowed.

        ema = optim.EMA(model, 0.9998)
        ...
            optimizer.step()
            ema.update()
        with ema.applied():
            evaluate(model)

    Args:
        model: already on the device used for training.
        decay: from 0 to below 1. With 0, the average equals the model.
        warmup: increase the decay to `decay`, by the formula above.

    Raises:
        ValueError: `decay` is out of range, or the model has no parameters and buffers.
    """

    def __init__(self, model: Module, decay: float = 0.9998, *, warmup: bool = False) -> None:
        decay = checks.scalar(decay, "decay", "EMA")
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be from 0 to below 1, got {decay}")
        self.decay, self.warmup = decay, warmup
        self.updates = 0  # the number of updates so far
        self.model, self.parameters = model, dict(model.named_parameters())
        tensors = {**self.parameters, **dict(model.named_buffers())}
        if not tensors or "updates" in tensors:
            what = "one named `updates`, the name of the number of updates in the state" if tensors else "none"
            raise ValueError(f"EMA: averages a model's parameters and buffers, got {what}")
        self.averages = {name: _upcast(tensor.data).copy() for name, tensor in tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The model's parameters and buffers, by the names of their averages.

        Raises:
            RuntimeError: names, shapes, dtypes, device or parameters changed since the EMA was made.
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
                "Make the EMA after `model.to(...)`, and a new EMA after a change of the model."
            )
        return tensors

    def update(self) -> None:
        """Update the averages after an optimizer step. Does not synchronize, so a CUDA graph can contain this call.

        Raises:
            RuntimeError: the model has other parameters, shapes, dtypes or another device than when the EMA was made,
                or an average is not float32 during CUDA graph capture: the decay would be a constant of the graph.
        """
        tensors = self.tensors()
        pairs: list[tuple[Array, Array]] = []
        for name, average in self.averages.items():
            if is_floating(average.dtype):
                pairs.append((average, tensors[name].data))
            else:
                average[...] = tensors[name].data
        fast_paths.call(average_all, pairs, self._next_rest)

    def _next_rest(self) -> float:
        """1 - decay of the next update. Increments `updates`."""
        t = self.updates
        self.updates += 1
        return 1 - (min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the model's arrays are the averages. The model's own arrays are restored on exit.

        Averages of the model's dtype are not copied: do not train the model within the block.
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

        For a model on the CPU, the arrays are the live averages, not copies: copy or save them before the next update.
        """
        averages = {name: to_device(average, "cpu") for name, average in self.averages.items()}
        return {**averages, "updates": np.asarray(self.updates)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a `state_dict` of an EMA of the same model.

        Raises:
            ValueError: a name is missing or unexpected, a shape differs, or a value is NaN, infinite or not
                representable in the dtype of the average. The EMA is unchanged.
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
                complaints.append(f"mismatch    {name}: {array.shape} in the state, {expected[name]} here")
            elif name == "updates":
                if not can_hold(np.dtype(np.int64), array) or array < 0:
                    complaints.append(f"unfit       updates: must be a whole number from 0 on, got {array}")
            elif not can_hold((average := self.averages[name]).dtype, array):
                complaints.append(f"unfit       {name}: {array.dtype} with values that {average.dtype} cannot hold")
            elif is_floating(array.dtype) and not (_finite(array) | ~_finite(to_device(average, "cpu"))).all():
                complaints.append(f"unfit       {name}: has values that are NaN or infinite")
        if complaints:
            raise ValueError(
                f"EMA: this state does not fit the model, and the EMA is unchanged:\n  {checks.listed(complaints)}\n"
                "Load the state of an EMA of the same model."
            )
        return arrays


def _finite(x: Array) -> Array:
    return array_module(x).isfinite(x)


def _upcast(x: Array) -> Array:
    """x in the dtype of the average: float32 for a 16-bit x."""
    return cast(x, FLOAT32) if is_half(x.dtype) else x
