"""L5: gradient checkpointing of a function, as in torch.utils.checkpoint."""

from collections.abc import Callable
from typing import Any

from minigrad._tensor import Tensor
from minigrad.nn.checkpoint import Checkpoint
from minigrad.nn.module import Module


class _Call(Module):
    """A function of one Tensor as a module, with its other arguments."""

    def __init__(self, function: Callable[..., Any], others: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.function, self.others, self.options = function, others, options

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.others, **self.options)


def checkpoint(function: Any, x: Tensor, *others: Any, use_reentrant: bool | None = None, **options: Any) -> Any:
    """`function(x, *others, **options)`, without saving its activations: backward runs the function again.

    Gradients reach x and the parameters that the function uses (`minigrad/nn/checkpoint.py`): x requires a gradient,
    or the function is a Module. Other arguments must not require gradients. `use_reentrant` has no effect.
    `module.checkpointing = True` checkpoints every call of a module.
    """
    if any(isinstance(value, Tensor) and value.requires_grad for value in (*others, *options.values())):
        raise ValueError("checkpoint: only the first argument may require a gradient; make the others parameters")
    call = _Call(function, others, options)
    return Tensor.apply(Checkpoint, x, *call.parameters(), module=call)
