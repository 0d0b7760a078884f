"""L5: hooks of Modules: functions of users that run before forward, after forward, and in backward."""

import threading
from collections.abc import Callable
from typing import Any

from minigrad._tensor import Tensor
from minigrad.autograd.dispatch import RULES, Rule
from minigrad.autograd.function import Function
from minigrad.autograd.hooks import RemovableHandle
from minigrad.backend import Array

KINDS = PRE, FORWARD, BACKWARD = "_forward_pre_hooks", "_forward_hooks", "_backward_hooks"
"""The attributes of a module with its hooks, lists of `Hook`."""

_lock = threading.Lock()


class Hook:
    """A registered function. Each registration is another Hook, so that a handle removes one registration."""

    def __init__(self, function: Callable[..., Any], with_kwargs: bool = False) -> None:
        self.function, self.with_kwargs = function, with_kwargs


def register(module: Any, kind: str, hook: Hook, prepend: bool = False) -> RemovableHandle:
    """Add a hook after, or with `prepend` before, the module's other hooks of this kind."""
    own = vars(module)
    with _lock:  # a new list: a call of the module in another thread iterates over the old list
        hooks = own.get(kind, [])
        own[kind] = [hook, *hooks] if prepend else [*hooks, hook]

    def remove() -> None:
        with _lock:
            own[kind] = [other for other in own.get(kind, []) if other is not hook]

    return RemovableHandle(remove)


def has_hooks(module: Any) -> bool:
    """True if a call of the module runs more than its `forward`."""
    own = vars(module)
    return bool(own.get(PRE) or own.get(FORWARD) or own.get(BACKWARD))


def before_forward(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """Run the forward pre-hooks. Returns the arguments of `forward`."""
    for hook in vars(module)[PRE]:
        if hook.with_kwargs:
            replaced = hook.function(module, inputs, options)
            if replaced is None:
                continue
            if not (isinstance(replaced, tuple) and len(replaced) == 2):
                raise RuntimeError(
                    "a forward pre-hook with with_kwargs=True must return None or a tuple (args, kwargs), "
                    f"got {type(replaced).__name__}"
                )
            inputs, options = replaced
        elif (replaced := hook.function(module, inputs)) is not None:
            inputs = replaced if isinstance(replaced, tuple) else (replaced,)
    return inputs, options


def after_forward(module: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
    """Run the forward hooks. Returns the output of the module."""
    for hook in vars(module)[FORWARD]:
        arguments = (module, inputs, options, output) if hook.with_kwargs else (module, inputs, output)
        replaced = hook.function(*arguments)
        output = output if replaced is None else replaced
    return output


class Boundary(Function):
    """yᵢ = xᵢ for the inputs, or the outputs, of a module. Backward calls `receive` with all gradients at once; the
    gradients that `receive` returns replace them."""

    def forward(self, *arrays: Array, receive: Callable[[list[Any]], tuple[Any, ...]]) -> tuple[Array, ...]:
        self.receive = receive
        return tuple(x.view() for x in arrays)

    def backward(self, grad_output: list[Any]) -> tuple[Any, ...]:
        return self.receive(grad_output)


RULES[Boundary] = Rule(autocast=0, half=True)


class BackwardHooks:
    """The full backward hooks of one call of a module: `inputs` and `output` put a Boundary around its forward.

    Backward reaches the Boundary of the outputs first, which stores grad_output. The Boundary of the inputs then runs
    hook(module, grad_input, grad_output). If no input requires a gradient, the Boundary of the outputs runs the hooks,
    with None for each input.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.hooks = module, list(vars(module)[BACKWARD])
        self.grad_output: tuple[Tensor | None, ...] = ()
        self.count, self.positions = 0, list[int]()  # of the inputs; of the inputs that require gradients

    def inputs(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs for the module's forward."""
        self.count, (self.positions, inputs) = len(inputs), _bounded(inputs, self._input_gradients)
        return inputs

    def output(self, output: Any) -> Any:
        """The output of the module, a Tensor or a tuple."""
        several = isinstance(output, tuple)
        outputs = output if several else (output,)

        def receive(grads: list[Any]) -> tuple[Any, ...]:
            self.grad_output = _spread(grads, positions, len(outputs))
            if not self.positions:
                self._run((None,) * self.count)
            return tuple(grads)

        positions, outputs = _bounded(outputs, receive)
        return outputs if several else outputs[0]

    def _input_gradients(self, grads: list[Any]) -> tuple[Any, ...]:
        replaced = self._run(_spread(grads, self.positions, self.count))
        return tuple(None if (grad := replaced[i]) is None else grad.data for i in self.positions)

    def _run(self, grad_input: tuple[Any, ...]) -> tuple[Any, ...]:
        for hook in self.hooks:
            replaced = hook.function(self.module, grad_input, self.grad_output)
            if replaced is None:
                continue
            replaced = replaced if isinstance(replaced, tuple) else (replaced,)
            if len(replaced) != len(grad_input):
                raise RuntimeError(
                    f"a backward hook must return None or one gradient for each input, {len(grad_input)}, of "
                    f"{type(self.module).__name__}, got {len(replaced)}"
                )
            grad_input = replaced
        return grad_input


def _bounded(
    tensors: tuple[Any, ...], receive: Callable[[list[Any]], tuple[Any, ...]]
) -> tuple[list[int], tuple[Any, ...]]:
    """The indices of the Tensors that require gradients, and `tensors` with those behind a Boundary."""
    positions = [i for i, x in enumerate(tensors) if isinstance(x, Tensor) and x.requires_grad]
    if not positions:
        return [], tensors
    passed = iter(Tensor.apply(Boundary, *(tensors[i] for i in positions), receive=receive))
    return positions, tuple(next(passed) if i in positions else x for i, x in enumerate(tensors))


def _spread(grads: list[Any], positions: list[int], count: int) -> tuple[Tensor | None, ...]:
    """A tuple of `count` gradients: those of `positions`, and None."""
    found = {i: grad for i, grad in zip(positions, grads, strict=True) if grad is not None}
    return tuple(Tensor(found[i]) if i in found else None for i in range(count))
