"""L1: `minigrad.autograd.grad`, gradients as return values instead of in `x.grad`, and `minigrad.autograd.backward`."""

from collections.abc import Sequence
from typing import Any

from minigrad.autograd import tape
from minigrad.autograd.node import Leaf, Node
from minigrad.backend import Array, array_module, as_array, plus
from minigrad.backend.dtypes import cast


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """∂(Σ outputs · grad_outputs) / ∂input for each input, without a change of any `x.grad` (torch.autograd.grad).

    Args:
        outputs: a Tensor, or a sequence of Tensors.
        inputs: a Tensor, or a sequence of Tensors: leaves, or outputs of ops in the graph of `outputs`.
        grad_outputs: the gradient of each output, of its shape; None for an output with one element.
        retain_graph: keep the arrays that the ops saved, so that backward can run through this graph again.
        create_graph: refused: gradients of gradients do not exist here.
        allow_unused: return None for an input that the outputs do not depend on. By default this is an error.
        materialize_grads: return zeros instead of None.

    Raises:
        RuntimeError: a Tensor does not require a gradient, an input is not used, or an output with several elements
            has no `grad_outputs`.
        ValueError: an output and its `grad_outputs` have different shapes.
        NotImplementedError: `create_graph` is True.
    """
    if create_graph:
        raise NotImplementedError(
            "autograd.grad: create_graph=True needs second-order gradients; minigrad is first-order"
        )
    inputs = _sequence(inputs)
    gradients = _start_gradients(_sequence(outputs), grad_outputs, inputs, "autograd.grad")
    tape.backward(gradients, bool(retain_graph), {x._node for x in inputs})
    found = [gradients.get(x._node) for x in inputs]
    if materialize_grads:
        found = [
            array_module(x.data).zeros_like(x.data) if g is None else g for g, x in zip(found, inputs, strict=True)
        ]
    elif not allow_unused and any(g is None for g in found):
        raise RuntimeError(
            "One of the differentiated Tensors appears to not have been used in the graph: input "
            f"{next(i for i, g in enumerate(found) if g is None)}. Pass allow_unused=True to get None for its gradient"
        )
    return tuple(None if g is None else x.constant(g) for g, x in zip(found, inputs, strict=True))


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Add ∂(Σ tensors · grad_tensors) / ∂x to `x.grad` of every leaf x, or of `inputs` (torch.autograd.backward).

    The arguments and errors are those of `grad`.
    """
    if inputs is None and not create_graph:
        tape.backward(_start_gradients(_sequence(tensors), grad_tensors, (), "autograd.backward"), bool(retain_graph))
        return
    inputs = () if inputs is None else _sequence(inputs)
    found = grad(tensors, inputs, grad_tensors, retain_graph, create_graph, allow_unused=True)
    hooked: list[Leaf] = []
    for x, g in zip(inputs, found, strict=True):
        if g is not None:
            x.grad = g if x.grad is None else x.constant(x.grad.data + g.data)
            if isinstance(x._node, Leaf) and x._node.post_hooks:
                hooked.append(x._node)
    if hooked:
        with tape.Outermost() as outermost:
            for leaf in hooked:
                outermost.run_hooks(leaf)


def _start_gradients(
    outputs: Sequence[Any], grad_outputs: Any, inputs: Sequence[Any], caller: str
) -> dict[Node, Array]:
    """The gradient of each output, by its node, where backward starts. `inputs` are checked too."""
    given = [None] * len(outputs) if grad_outputs is None else _sequence(grad_outputs)
    if len(given) != len(outputs):
        raise RuntimeError(f"{caller}: needs one gradient per output, {len(outputs)}, got {len(given)}")
    for x in (*outputs, *inputs):
        if x._node is None:
            raise RuntimeError(f"{caller}: one of the tensors does not require grad and does not have a grad_fn")
    gradients: dict[Node, Array] = {}
    for y, grad_y in zip(outputs, given, strict=True):
        start = start_gradient(y, grad_y, caller)
        gradients[y._node] = as_array(plus(gradients[y._node], start)) if y._node in gradients else start
    return gradients


def start_gradient(output: Any, gradient: Any, caller: str) -> Array:
    """The array of `gradient`, a Tensor or None, in the dtype of `output`, where backward starts.

    Raises:
        RuntimeError: `gradient` is None, and `output` has more than one element.
        ValueError: the shapes differ.
    """
    if gradient is None:
        if output.data.size != 1:
            raise RuntimeError(
                f"{caller}: the gradient can be omitted only for a tensor with one element, got shape {output.shape}: "
                "reduce the tensor, as in x.sum().backward(), or pass the gradient"
            )
        return array_module(output.data).ones_like(output.data)
    if gradient.shape != output.shape:
        raise ValueError(f"{caller}: gradient must have the tensor's shape {output.shape}, got {gradient.shape}")
    return cast(gradient.data, output.dtype)


def _sequence(x: Any) -> Sequence[Any]:
    return x if isinstance(x, Sequence) else (x,)
