"""Attention. The oracles loop over queries and keys."""

import math

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays, broadcastable_shapes
from tests.cases.case import Call, Case

SIDE = st.integers(1, 4)


@st.composite
def attention_calls(draw):
    """Leading axes broadcast; the mask is None, a boolean or float mask that broadcasts, or causal."""
    L, S, E, V = draw(SIDE), draw(SIDE), draw(SIDE), draw(SIDE)
    lead = draw(broadcastable_shapes(3, max_dims=2, max_side=2))
    q, k, v = (draw(arrays((*batch, *m))) for batch, m in zip(lead, [(L, E), (S, E), (S, V)], strict=True))
    scores = (*np.broadcast_shapes(*lead), L, S)
    kind, mask, options = draw(st.sampled_from(["none", "causal", "bool", "float"])), None, {}
    if kind in ("bool", "float"):
        shape = tuple(draw(st.sampled_from([1, size])) for size in scores)[draw(st.integers(0, len(scores) - 2)) :]
        mask = draw(arrays(shape, dtype=bool if kind == "bool" else np.float64))
    if kind == "causal":
        options["is_causal"] = True
    if draw(st.booleans()):
        options["scale"] = 0.7
    return Call((q, k, v, mask), options)


def attention(q, k, v, mask, is_causal=False, scale=None):
    """The mean of the values for each query, weighted by exp(score); zeros for a query whose keys are all masked."""
    (L, E), (S, V) = q.shape[-2:], v.shape[-2:]
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
    mask = np.broadcast_to(np.zeros(()) if mask is None else mask, (*lead, L, S))
    y = np.zeros((*lead, L, V))
    for *batch, i in np.ndindex(*lead, L):
        weights = []
        for j in range(S):
            score = math.fsum(q[*batch, i] * k[*batch, j]) * (scale or 1 / math.sqrt(E))
            if mask.dtype == bool:
                weights.append(math.exp(score) * mask[*batch, i, j])
            else:
                weights.append(math.exp(score + mask[*batch, i, j]) * (j <= i or not is_causal))
        for j in range(S):
            y[*batch, i] += v[*batch, j] * (weights[j] / sum(weights) if any(weights) else 0)
    return y


def attention_in_torch(torch, q, k, v, mask, **options):
    """PyTorch does not broadcast all leading axes: expand the axes first."""
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, **options)


@st.composite
def window_attention_calls(draw):
    heads, d = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    MH = MW = M = draw(st.integers(1, 3))
    if draw(st.booleans()):
        M = MH, MW = M, draw(st.integers(1, 3))
    B, down, right = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    qkv = draw(arrays((B, down * MH, right * MW, 3 * heads * d)))
    bias = draw(arrays((heads, MH * MW, MH * MW))) if draw(st.booleans()) else None
    options = {"num_heads": heads, "window_size": M}
    if draw(st.booleans()):
        options["shift"] = draw(st.integers(0, MH - 1)), draw(st.integers(0, MW - 1))
    return Call((qkv, bias), options)


def window_attention(qkv, bias, num_heads, window_size, shift=(0, 0)):
    """The mean of the values in each token's window.

    The mask adds -100 to the score of two tokens that are neighbours only through the cyclic shift.
    """
    B, H, W, channels = qkv.shape
    M, tokens = np.broadcast_to(window_size, 2), list(np.ndindex(H, W))
    qkv = qkv.reshape(B, H, W, 3, num_heads, channels // (3 * num_heads))
    rolled = lambda token: ((token[0] - shift[0]) % H, (token[1] - shift[1]) % W)  # noqa: E731
    window = lambda token: tuple(i // side for i, side in zip(rolled(token), M, strict=True))  # noqa: E731
    within = lambda token: rolled(token)[0] % M[0] * M[1] + rolled(token)[1] % M[1]  # noqa: E731
    y = np.zeros((B, H, W, num_heads, qkv.shape[-1]))
    for image, head in np.ndindex(B, num_heads):
        for i in tokens:
            keys = [j for j in tokens if window(i) == window(j)]
            scores = []
            for j in keys:
                masked = any(rolled(i)[axis] - rolled(j)[axis] != i[axis] - j[axis] for axis in (0, 1))
                score = math.fsum(qkv[image, *i, 0, head] * qkv[image, *j, 1, head]) / math.sqrt(qkv.shape[-1])
                score += 0 if bias is None else bias[head, within(i), within(j)]
                scores.append(score - 100 * masked)
            weights = np.exp(np.array(scores) - max(scores))
            for j, weight in zip(keys, weights / weights.sum(), strict=True):
                y[image, *i, head] += weight * qkv[image, *j, 2, head]
    return y.reshape(B, H, W, channels // 3)


CASES = [
    Case(
        name="window_attention",
        run=F.window_attention,
        calls=window_attention_calls(),
        oracle=window_attention,
        torch=None,  # tests/reference/test_models.py compares it with torchvision's Swin
    ),
    Case(
        name="scaled_dot_product_attention",
        run=F.scaled_dot_product_attention,
        calls=attention_calls(),
        oracle=attention,
        torch=attention_in_torch,
    ),
]
