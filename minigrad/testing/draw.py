"""L5: the autograd graph of a Tensor in Graphviz's DOT language."""

from collections.abc import Iterable
from json import dumps
from typing import Any

from minigrad._tensor import Tensor
from minigrad.autograd.node import Leaf, Node, Output
from minigrad.testing.gradcheck import graph


def draw_graph(output: Tensor, parameters: Iterable[tuple[str, Tensor]] = ()) -> str:
    """The graph that `output.backward()` would traverse, in Graphviz's DOT language.

    Boxes are leaves, ellipses are ops. An arrow is an array, from the op or leaf that computed the array to an op that
    uses it, labelled with shape and dtype; backward follows the arrows in reverse. Inputs that do not require gradients
    are not part of the graph.

        dot = draw_graph(loss, model.named_parameters())
        pathlib.Path("graph.dot").write_text(dot)          # dot -Tsvg graph.dot > graph.svg

    Args:
        output: a Tensor that requires a gradient, before `backward` has freed its graph.
        parameters: names of leaves, such as `model.named_parameters()`; other leaves are labelled "leaf".

    Raises:
        RuntimeError: `output` has no graph, or backward has freed its graph.
    """
    if output.grad_fn is None or output.grad_fn.edges is None:
        raise RuntimeError(
            "draw_graph: this tensor has no graph. Compute the tensor from an input with requires_grad=True, outside "
            "no_grad(), and draw the graph before backward() frees it"
        )
    names = {tensor._node: name for name, tensor in parameters}
    nodes = {node: f"n{i}" for i, node in enumerate(n for n in graph(output) if not isinstance(n, Output))}
    lines = [f"{name} [{_appearance(node, names)}]" for node, name in nodes.items()]
    for node, name in nodes.items():
        for source, shape, dtype in filter(None, node.edges or ()):
            lines.append(f'{nodes[_op(source)]} -> {name} [label="{shape} {dtype}"]')
    lines += [f'{nodes[_op(output.grad_fn)]} -> output [label="{output.shape} {output.dtype}"]']
    return "\n  ".join(["digraph {", "output [shape=plaintext]", *lines]) + "\n}\n"


def _op(node: Node) -> Node:
    """The op of an Output node; any other node itself."""
    return node.edges[0][0] if isinstance(node, Output) and node.edges else node  # type: ignore[index]


def _appearance(node: Node, names: dict[Any, str]) -> str:
    if isinstance(node, Leaf):
        return f"shape=box, label={dumps(names.get(node, 'leaf'))}"
    return f"label={dumps(node.op_name)}"
