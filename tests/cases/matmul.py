"""Matrix products. The oracles are loops."""

import operator

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays, broadcastable_shapes, shapes
from tests.cases.case import Call, Case

SIDE = st.integers(0, 4)


@st.composite
def matmul_calls(draw):
    """(..., M, K) times (..., K, N); either operand may be 1-D."""
    M, K, N = draw(SIDE), draw(SIDE), draw(SIDE)
    batch_a, batch_b = draw(broadcastable_shapes(2, max_dims=2, max_side=3))
    a = draw(st.sampled_from([(K,), (M, K), (*batch_a, M, K)]))
    b = draw(st.sampled_from([(K,), (K, N), (*batch_b, K, N)]))
    return Call((draw(arrays(a)), draw(arrays(b))))


@st.composite
def linear_calls(draw):
    batch, rows, columns = draw(shapes(max_dims=3, max_side=3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    bias = draw(arrays((rows,))) if draw(st.booleans()) else None
    return Call((draw(arrays((*batch, columns))), draw(arrays((rows, columns))), bias))


def naive_matmul(a, b):
    rows, columns = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    M, K, N = *rows.shape[-2:], columns.shape[-1]
    rows, columns = np.broadcast_to(rows, (*batch, M, K)), np.broadcast_to(columns, (*batch, K, N))
    y = np.zeros((*batch, M, N))
    for *batch_index, m, k, n in np.ndindex(*batch, M, K, N):
        y[*batch_index, m, n] += rows[*batch_index, m, k] * columns[*batch_index, k, n]
    if a.ndim == 1:
        y = y[..., 0, :]
    return y[..., 0] if b.ndim == 1 else y


def linear(x, weight, bias):
    y = np.zeros((*x.shape[:-1], len(weight)))
    for *batch_index, o, d in np.ndindex(*x.shape[:-1], *weight.shape):
        y[*batch_index, o] += x[*batch_index, d] * weight[o, d]
    return y if bias is None else y + bias


CASES = [
    Case("matmul", operator.matmul, matmul_calls(), naive_matmul, torch=lambda torch, a, b: a @ b),
    Case("linear", F.linear, linear_calls(), linear, torch=lambda torch, *xs: torch.nn.functional.linear(*xs)),
]
