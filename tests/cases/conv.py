"""Convolution. The oracle is the definition, as loops over all elements."""

from itertools import product

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays
from tests.cases.case import Call, Case, torch_functional

SIDES = st.integers(1, 3)


def int_or_pair(pair):
    """The pair, or if both integers are equal, also the single integer."""
    return st.sampled_from([pair, pair[0]]) if pair[0] == pair[1] else st.just(pair)


@st.composite
def conv2d_calls(draw):
    """Groups from dense to depthwise, kernels from 1 × 1, and images down to the smallest that the kernel fits in."""
    groups, kernel = draw(SIDES), (draw(SIDES), draw(SIDES))
    channels_per_group, outputs = draw(st.sampled_from([1, 1, 2])), groups * draw(st.integers(1, 2))
    stride, dilation = (draw(SIDES), draw(SIDES)), (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    options = {"padding": draw(int_or_pair(padding)), "groups": groups}
    kind = draw(st.sampled_from([None, None, "sides", "same", "valid", "patches"]))
    if kind == "same":
        options["padding"], stride = kind, (1, 1)
    elif kind == "valid":
        options["padding"], padding = kind, (0, 0)
    elif kind == "sides":
        options["padding"] = tuple((draw(st.integers(before, 3)), draw(st.integers(before, 3))) for before in padding)
    elif kind == "patches":
        options["padding"], padding, stride, dilation = 0, (0, 0), kernel, (1, 1)
    options |= {"stride": draw(int_or_pair(stride)), "dilation": draw(int_or_pair(dilation))}
    minimum = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    minimum = [1 if kind == "same" else max(1, side) for side in minimum]
    image = (groups * channels_per_group, minimum[0] + draw(st.integers(0, 4)), minimum[1] + draw(st.integers(0, 4)))
    batch = draw(st.sampled_from([(), (0,), (1,), (2,)]))
    bias = draw(st.none() | arrays((outputs,)))
    return Call((draw(arrays((*batch, *image))), draw(arrays((outputs, channels_per_group, *kernel))), bias), options)


def sides_of(padding):
    """(above, below) and (left, right)."""
    if np.ndim(padding) == 2:
        return padding
    height, width = np.broadcast_to(padding, 2)
    return (height, height), (width, width)


def conv2d(x, weight, bias, stride, padding, dilation, groups):
    if x.ndim == 3:
        return conv2d(x[None], weight, bias, stride, padding, dilation, groups)[0]
    (SH, SW), (DH, DW) = (np.broadcast_to(value, 2) for value in (stride, dilation))
    (N, _, H, W), (O, Cg, KH, KW) = x.shape, weight.shape  # noqa: E741
    if padding == "same":
        top, left = (KH - 1) * DH // 2, (KW - 1) * DW // 2
        OH, OW = H, W
    else:
        (top, below), (left, right) = sides_of(0 if padding == "valid" else padding)
        OH, OW = (H + top + below - (KH - 1) * DH - 1) // SH + 1, (W + left + right - (KW - 1) * DW - 1) // SW + 1
    y = np.zeros((N, O, OH, OW))
    for n, o, i, j in np.ndindex(y.shape):
        if bias is not None:
            y[n, o, i, j] = bias[o]
        for c, k, l in product(range(Cg), range(KH), range(KW)):  # noqa: E741
            h, w = i * SH + k * DH - top, j * SW + l * DW - left
            if 0 <= h < H and 0 <= w < W:
                y[n, o, i, j] += weight[o, c, k, l] * x[n, o // (O // groups) * Cg + c, h, w]
    return y


@st.composite
def conv1d_calls(draw):
    """The calls of conv2d along W alone, with equal padding on both sides."""
    call = draw(conv2d_calls().filter(lambda call: np.ndim(call.options["padding"]) < 2))
    x, weight, bias = call.inputs
    options = {
        name: value if name == "groups" or isinstance(value, str) else int(np.broadcast_to(value, 2)[1])
        for name, value in call.options.items()
    }
    return Call((x[..., 0, :], weight[..., 0, :], bias), options)


def conv1d(x, weight, bias, **options):
    pairs = {  # stride and dilation 1 along H, padding 0
        name: value if name == "groups" or isinstance(value, str) else (int(name != "padding"), value)
        for name, value in options.items()
    }
    return conv2d(x[..., None, :], weight[..., None, :], bias, **pairs)[..., 0, :]


@st.composite
def conv_transpose2d_calls(draw):
    """Groups from dense to depthwise; outputs of at least one pixel."""
    groups, kernel = draw(SIDES), (draw(SIDES), draw(SIDES))
    inputs, outputs_per_group = groups * draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))
    stride, dilation = (draw(SIDES), draw(SIDES)), (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    image = (draw(SIDES), draw(SIDES))
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    size = [
        (n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(image, stride, dilation, kernel, extra, strict=True)
    ]
    padding = [draw(st.integers(0, min(2, (n - 1) // 2))) for n in size]
    pairs = {"stride": stride, "dilation": dilation, "padding": tuple(padding), "output_padding": tuple(extra)}
    options = {name: draw(int_or_pair(pair)) for name, pair in pairs.items()} | {"groups": groups}
    x = draw(arrays((*draw(st.sampled_from([(), (0,), (1,), (2,)])), inputs, *image)))
    weight = draw(arrays((inputs, outputs_per_group, *kernel)))
    return Call((x, weight, draw(st.none() | arrays((groups * outputs_per_group,)))), options)


def conv_transpose2d(x, weight, bias, stride, dilation, padding, output_padding, groups):
    """Each input pixel adds the weight, scaled by its value, to a window of the output."""
    if x.ndim == 3:
        return conv_transpose2d(x[None], weight, bias, stride, dilation, padding, output_padding, groups)[0]
    (SH, SW), (DH, DW), (PH, PW), (EH, EW) = (
        np.broadcast_to(value, 2) for value in (stride, dilation, padding, output_padding)
    )
    (N, C, H, W), (_, Og, KH, KW) = x.shape, weight.shape
    OH = (H - 1) * SH - 2 * PH + DH * (KH - 1) + EH + 1
    OW = (W - 1) * SW - 2 * PW + DW * (KW - 1) + EW + 1
    y = np.zeros((N, groups * Og, OH, OW)) + (0 if bias is None else bias[:, None, None])
    for n, c, i, j, o, k, l in np.ndindex(N, C, H, W, Og, KH, KW):  # noqa: E741
        h, w = i * SH + k * DH - PH, j * SW + l * DW - PW
        if 0 <= h < OH and 0 <= w < OW:
            y[n, c // (C // groups) * Og + o, h, w] += x[n, c, i, j] * weight[c, o, k, l]
    return y


def conv2d_in_torch(torch, x, weight, bias, padding, **options):
    if np.ndim(padding) == 2:
        (above, below), (left, right) = padding
        x, padding = torch.nn.functional.pad(x, (left, right, above, below)), 0
    return torch.nn.functional.conv2d(x, weight, bias, padding=padding, **options)


CASES = [
    Case("conv1d", F.conv1d, conv1d_calls(), conv1d, torch_functional("conv1d")),
    Case(
        "conv_transpose2d",
        F.conv_transpose2d,
        conv_transpose2d_calls(),
        conv_transpose2d,
        torch_functional("conv_transpose2d"),
    ),
    Case("conv2d", F.conv2d, conv2d_calls(), conv2d, conv2d_in_torch),
]
