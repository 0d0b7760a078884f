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
    kind, mask, options = draw(st.sampled_from(["none", "causal", "bool", "float"])), None, {}
    if kind in ("bool", "float"):
        shape = tuple(draw(st.sampled_from([1, size])) for size in whole)[draw(st.integers(0, len(whole) - 2)) :]
        mask = draw(arrays(shape, dtype=bool if kind == "bool" else np.float64))
    if kind == "causal":
        options["is_causal"] = True
    if draw(st.booleans()):
        options["scale"] = 0.7
    return Call((q, k, v, mask), options)


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


def attention_in_torch(torch, q, k, v, mask, **options):
    """PyTorch broadcasts some leading axes and not others: here they are all there."""
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, **options)


@st.composite
def window_attentions(draw):
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
    """Each token's mean of the values in its window. What the roll has moved against it counts for exp(-100) of it."""
    B, H, W, channels = qkv.shape
    M, tokens = np.broadcast_to(window_size, 2), list(np.ndindex(H, W))
    qkv = qkv.reshape(B, H, W, 3, num_heads, channels // (3 * num_heads))
    place = lambda at: ((at[0] - shift[0]) % H, (at[1] - shift[1]) % W)  # noqa: E731  in the rolled map
    window = lambda at: tuple(i // side for i, side in zip(place(at), M, strict=True))  # noqa: E731
    within = lambda at: place(at)[0] % M[0] * M[1] + place(at)[1] % M[1]  # noqa: E731
    y = np.zeros((B, H, W, num_heads, qkv.shape[-1]))
    for image, head in np.ndindex(B, num_heads):
        for i in tokens:
            seen = [j for j in tokens if window(i) == window(j)]
            scores = []
            for j in seen:
                apart = any(place(i)[axis] - place(j)[axis] != i[axis] - j[axis] for axis in (0, 1))
                score = math.fsum(qkv[image, *i, 0, head] * qkv[image, *j, 1, head]) / math.sqrt(qkv.shape[-1])
                score += 0 if bias is None else bias[head, within(i), within(j)]
                scores.append(score - 100 * apart)
            weights = np.exp(np.array(scores) - max(scores))
            for j, weight in zip(seen, weights / weights.sum(), strict=True):
                y[image, *i, head] += weight * qkv[image, *j, 2, head]
    return y.reshape(B, H, W, channels // 3)


CASES = [
    Case(
        name="window_attention",
        run=F.window_attention,
        calls=window_attentions(),
        oracle=window_attention,
        torch=None,  # torchvision's models are what it is compared with
    ),
    Case(
        name="scaled_dot_product_attention",
        run=F.scaled_dot_product_attention,
        calls=attentions(),
        oracle=attention,
        torch=attention_in_torch,
    ),
]
