"""L5: gradient checkpointing: less memory, more time.  Chen, Xu, Zhang, Guestrin 2016, arXiv:1604.06174."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from minigrad._tensor import Tensor
from minigrad.autograd.autocast import autocast
from minigrad.autograd.dispatch import RULES, Rule
from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import enable_grad, mode, no_grad
from minigrad.backend import Array
from minigrad.backend.batch import current_sum, sums_over_batch, updates_buffers
from minigrad.backend.random import Generator, default_generator, use_generator


class Checkpoint(Function):
    """y = module(x), without saving the activations inside the module. Backward runs module.forward again, records a
    graph, and runs backward through this graph. So only the activations of one module at a time are in memory, at the
    cost of one more forward.

    Checkpoint is the only op that uses Tensors, for the graph in backward, through which the parameters receive their
    gradients. The parameters are inputs of the op, so that the op is recorded also if x does not require a gradient.

    The second forward repeats the first: a generator of the same state gives the same dropout masks, and every module
    is set to the training mode of the first forward. Buffers are restored afterwards, as the first forward already
    updated the running statistics.

    Saves x, the parameters, the training mode of each module, the state of the generator, and the dtype of autocast.
    """

    def forward(self, x: Array, *parameters: Array, module: Any) -> Array:
        shared = default_generator()
        self.x, self.parameters = x, parameters  # parameters: backward raises an error if they were overwritten
        self.module, self.state, self.rows = module, (shared.seed, shared.draws), shared.rows
        self.sum = current_sum()
        self.modes = [(part, part.training) for part in module.modules()]
        self.dtype = mode.autocast.dtype if mode.autocast is not None else None
        own = self.generator()
        with no_grad(), use_generator(own):
            y: Tensor = module.forward(Tensor(x))
        shared.skip(own.draws - self.state[1])
        return y.data

    def generator(self) -> Generator:
        """A generator of the state before the first forward."""
        own = Generator(*self.state)
        own.rows = self.rows
        return own

    def whole_batch(self) -> AbstractContextManager[None]:
        """Sums over the batch as in the first forward, for batch normalisation."""
        return nullcontext() if self.sum is None else sums_over_batch(self.sum, updates=updates_buffers())

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        want_x, *others = self.needs_input_grad
        x = Tensor(self.x, requires_grad=want_x)
        buffers = [(buffer, buffer.data.copy()) for _, buffer in self.module.named_buffers()]
        changed = [(part, part.training, before) for part, before in self.modes if part.training != before]
        precision = autocast(self.dtype, enabled=self.dtype is not None)  # as in the first forward
        try:
            for part, _, before in changed:
                part.training = before
            with enable_grad(), precision, use_generator(self.generator()), self.whole_batch():
                y = self.module.forward(x)
        finally:
            for part, now, _ in changed:
                part.training = now
            for buffer, values in buffers:
                buffer.data[...] = values
        y.backward(Tensor(grad_output))
        return None if x.grad is None else x.grad.data, *(None for _ in others)


RULES[Checkpoint] = Rule(autocast=0, half=True)  # casts happen at the ops inside the module
