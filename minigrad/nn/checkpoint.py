"""L5: gradient checkpointing: memory for time.  Chen, Xu, Zhang, Guestrin 2016, arXiv:1604.06174."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minigrad.backend import Array
from minigrad.engine import enable_grad, mode, no_grad
from minigrad.function import Function
from minigrad.precision import autocast
from minigrad.random import Generator, default_generator, use_generator
from minigrad.tensor import Tensor


class Checkpoint(Function):
    """y = module(x), of which nothing is kept but x. Backward runs the forward again, this time recorded, and walks
    back through that: one more forward in time, and the activations of one module at a time in memory.

    It is the one op that knows Tensors, as it holds a graph of its own. The parameters are inputs so that the op is
    recorded even where x wants no gradient; theirs arrive through the inner graph. Both times random numbers come from
    a generator of the op's own, set to the same place in the stream, so dropout drops the same numbers. The second time
    buffers stay as they are: a running mean has been moved already. And it runs in the modes of the first time: the
    `training` of each module, and autocast.

    Saves x, the state of the generator, the modes of the modules, and in autocast its dtype.
    """

    narrow = True
    autocast = 0

    def forward(self, x: Array, *parameters: Array, module: Any) -> Array:
        shared = default_generator()
        self.x, self.module, self.state = x, module, (shared.seed, shared.draws)
        self.dtype = mode.autocast.dtype if mode.autocast is not None else None
        self.training = [(inner, inner.training) for inner in module.modules()]
        own = Generator(*self.state)
        with no_grad(), use_generator(own):
            y: Tensor = module.forward(Tensor(x))
        shared.skip(own.draws - self.state[1])
        return y.data

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        want_x, *others = self.needs_input_grad
        x = Tensor(self.x, requires_grad=want_x is not None)
        buffers = [(buffer, buffer.data.copy()) for _, buffer in self.module.named_buffers()]
        precision = autocast(enabled=False) if self.dtype is None else autocast(self.dtype)
        try:
            with enable_grad(), precision, use_generator(Generator(*self.state)), modes(self.training):
                y = self.module.forward(x)
        finally:
            for buffer, values in buffers:
                buffer.data[...] = values
        y.backward(Tensor(grad_output))
        return None if x.grad is None else x.grad.data, *(None for _ in others)


@contextmanager
def modes(training: Sequence[tuple[Any, bool]]) -> Iterator[None]:
    """Within the block, each module is in training mode or not, as is said with it."""
    before = [(module, module.training) for module, _ in training]
    try:
        for module, is_training in training:
            module.training = is_training
        yield
    finally:
        for module, was_training in before:
            module.training = was_training
