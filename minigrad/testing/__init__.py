"""L5: gradient checks, hypothesis strategies for their inputs, and drawings of the autograd graph.

`gradcheck` needs only NumPy. The strategies need hypothesis (`pip install hypothesis`):

    @given(arrays(shapes(max_dims=3)))
    def test_my_op(x):
        gradcheck(my_op, x)
"""

from minigrad.testing.draw import draw_graph
from minigrad.testing.gradcheck import GradcheckError, gradcheck, graph, watch
from minigrad.testing.strategies import arrays, axes, broadcastable_shapes, dtypes, shapes

__all__ = [
    "GradcheckError", "arrays", "axes", "broadcastable_shapes", "draw_graph", "dtypes", "gradcheck", "graph",
    "shapes", "watch",
]  # fmt: skip
