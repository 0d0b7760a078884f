"""Attention, one query at a time."""

import math

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays, broadcastable_shapes
from tests.cases.case import Call, Case

SIDE = st.integers(1, 4)


@st.composite
def attentions(draw):
    """Leading axes that broadcast; masks of two kinds, which broadcast too, or a causal one."""
    L, S, E, V = draw(SIDE), draw(SIDE), draw(SIDE), draw(SIDE)
    lead = draw(broadcastable_shapes(3, max_dims=2, max_side=2))
    q, k, v = (draw(arrays((*batch, *m))) for batch, m in zip(lead, [(L, E), (S, E), (S, V)], strict=True))
    whole = (*np.broadcast_shapes(*lead), L, S)
    kind, mask, choices = draw(st.sampled_from(["none", "causal", "bool", "float"])), None, {}
    if kind in ("bool", "float"):
        shape = tuple(draw(st.sampled_from([1, size])) for size in whole)[draw(st.integers(0, len(whole) - 2)) :]
        mask = draw(arrays(shape, dtype=bool if kind == "bool" else np.float64))
    if kind == "causal":
        choices["is_causal"] = True
    if draw(st.booleans()):
        choices["scale"] = 0.7
    return Call((q, k, v, mask), choices)


def attention(q, k, v, mask, is_causal=False, scale=None):
    """Each query's mean of the values, weighted by exp(score); zeros where a query may look at no key."""
    (L, E), (S, V) = q.shape[-2:], v.shape[-2:]
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
    mask = np.broadcast_to(np.zeros(()) if mask is None else mask, (*lead, L, S))
    y = np.zeros((*lead, L, V))
    for *place, i in np.ndindex(*lead, L):
        weights = []
        for j in range(S):
            score = math.fsum(q[*place, i] * k[*place, j]) * (scale or 1 / math.sqrt(E))
            if mask.dtype == bool:
                weights.append(math.exp(score) * mask[*place, i, j])
            else:
                weights.append(math.exp(score + mask[*place, i, j]) * (j <= i or not is_causal))
        for j in range(S):
            y[*place, i] += v[*place, j] * (weights[j] / sum(weights) if any(weights) else 0)
    return y


def attention_in_torch(torch, q, k, v, mask, **choices):
    """PyTorch broadcasts some leading axes and not others: here they are all there."""
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, **choices)


CASES = [
    Case(
        name="scaled_dot_product_attention",
        run=F.scaled_dot_product_attention,
        calls=attentions(),
        oracle=attention,
        torch=attention_in_torch,
    )
]
