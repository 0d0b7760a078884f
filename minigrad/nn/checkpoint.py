"""L5: gradient checkpointing: memory for time.  Chen, Xu, Zhang, Guestrin 2016, arXiv:1604.06174."""

from typing import Any

from minigrad.autograd.autocast import autocast
from minigrad.autograd.dispatch import RULES, Rule
from minigrad.autograd.function import Function
from minigrad.autograd.grad_mode import enable_grad, mode, no_grad
from minigrad.backend import Array
from minigrad.backend.random import Generator, default_generator, use_generator
from minigrad.tensor import Tensor


class Checkpoint(Function):
    """y = module(x), of which nothing is kept but x. Backward runs the forward again, this time recorded, and walks
    back through that: one more forward in time, and the activations of one module at a time in memory.

    It is the one op that knows Tensors, as it holds a graph of its own. The parameters are inputs so that the op is
    recorded even where x wants no gradient; theirs arrive through the inner graph. Both times random numbers come from
    a generator of the op's own, set to the same place in the stream, so dropout drops the same numbers. The second time
    each module is in the mode, training or evaluation, that it was in the first time, and buffers keep their values: a
    running mean has been updated already.

    Saves x, the parameters, the modules' modes, the state of the generator, and autocast's dtype.
    """

    def forward(self, x: Array, *parameters: Array, module: Any) -> Array:
        shared = default_generator()
        self.x, self.parameters = x, parameters  # these so that the engine notices if they are overwritten
        self.module, self.state = module, (shared.seed, shared.draws)
        self.modes = [(part, part.training) for part in module.modules()]
        self.dtype = mode.autocast.dtype if mode.autocast is not None else None
        own = Generator(*self.state)
        with no_grad(), use_generator(own):
            y: Tensor = module.forward(Tensor(x))
        shared.skip(own.draws - self.state[1])
        return y.data

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        want_x, *others = self.needs_input_grad
        x = Tensor(self.x, requires_grad=want_x)
        buffers = [(buffer, buffer.data.copy()) for _, buffer in self.module.named_buffers()]
        changed = [(part, part.training, before) for part, before in self.modes if part.training != before]
        precision = autocast(self.dtype, enabled=self.dtype is not None)  # off where the first time it was off
        try:
            for part, _, before in changed:
                part.training = before
            with enable_grad(), precision, use_generator(Generator(*self.state)):
                y = self.module.forward(x)
        finally:
            for part, now, _ in changed:
                part.training = now
            for buffer, values in buffers:
                buffer.data[...] = values
        y.backward(Tensor(grad_output))
        return None if x.grad is None else x.grad.data, *(None for _ in others)


RULES[Checkpoint] = Rule(autocast=0, half=True)  # its inner ops decide for themselves
