"""draw_graph: the autograd graph in Graphviz's DOT language."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn
from minigrad.testing import draw_graph


def test_graph_has_all_nodes_and_edges():
    x, w = Tensor([[1.0, 2.0]]), Tensor([[3.0], [4.0]], requires_grad=True)
    assert (
        draw_graph((x @ w).exp().sum(), [("w", w)])
        == """digraph {
  output [shape=plaintext]
  n0 [label="Sum"]
  n1 [label="Exp"]
  n2 [label="MatMul"]
  n3 [shape=box, label="w"]
  n1 -> n0 [label="(1, 1) float32"]
  n2 -> n1 [label="(1, 1) float32"]
  n3 -> n2 [label="(2, 1) float32"]
  n0 -> output [label="() float32"]
}
"""
    )


def test_input_used_twice_has_two_arrows():
    x = Tensor([1.0], requires_grad=True)
    assert draw_graph(x * x).count("-> n0") == 2


def test_arrows_of_several_outputs_start_at_their_op():
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    first, second = x.unbind(0)
    dot = draw_graph(first + second)
    assert dot.count("Unbind") == 1 and dot.count('-> n0 [label="(3,) float64"]') == 2
    assert "Unbind" in draw_graph(x.unbind(0)[1])


def test_parameters_are_labelled_by_name():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    dot = draw_graph(model(minigrad.ones(4, 2)).mean(), model.named_parameters())
    assert all(f'[shape=box, label="{name}"]' in dot for name, _ in model.named_parameters())
    assert "leaf" not in dot


def test_tensor_without_graph_is_refused():
    y = Tensor([1.0], requires_grad=True).exp()
    y.backward()
    for tensor in (Tensor([1.0]), Tensor([1.0], requires_grad=True), y):
        with pytest.raises(RuntimeError, match="has no graph"):
            draw_graph(tensor)
