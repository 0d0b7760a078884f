"""unfold and fold. The oracle of unfold is its definition, as loops; fold adds the same elements."""

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays
from tests.cases.case import Call, Case, torch_functional
from tests.cases.conv import int_or_pair

SIDES = st.integers(1, 3)


@st.composite
def unfold_calls(draw):
    kernel, stride = (draw(SIDES), draw(SIDES)), (draw(SIDES), draw(SIDES))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    minimum = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    image = (draw(SIDES), minimum[0] + draw(st.integers(0, 3)), minimum[1] + draw(st.integers(0, 3)))
    options = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": padding}
    options = {name: draw(int_or_pair(pair)) for name, pair in options.items()}
    return Call((draw(arrays((*draw(st.sampled_from([(), (1,), (2,)])), *image))),), options)


@st.composite
def fold_calls(draw):
    """The shapes that unfold has for some images."""
    (x,), options = (call := draw(unfold_calls())).inputs, call.options
    columns = unfold(np.zeros(x.shape), **options)
    return Call((draw(arrays(columns.shape)),), {"output_size": x.shape[-2:], **options})


def elements(shape, kernel_size, stride, dilation, padding):
    """The index of each element of the columns, and of its pixel in the images, for pixels that are not padding."""
    (KH, KW), (SH, SW), (DH, DW), (PH, PW) = (
        np.broadcast_to(value, 2).tolist() for value in (kernel_size, stride, dilation, padding)
    )
    N, C, H, W = shape
    OH, OW = (H + 2 * PH - (KH - 1) * DH - 1) // SH + 1, (W + 2 * PW - (KW - 1) * DW - 1) // SW + 1
    found = []
    for n, c, k, l, i, j in np.ndindex(N, C, KH, KW, OH, OW):  # noqa: E741
        h, w = i * SH + k * DH - PH, j * SW + l * DW - PW
        if 0 <= h < H and 0 <= w < W:
            found.append(((n, (c * KH + k) * KW + l, i * OW + j), (n, c, h, w)))
    return (N, C * KH * KW, OH * OW), found


def unfold(x, **options):
    if x.ndim == 3:
        return unfold(x[None], **options)[0]
    shape, found = elements(x.shape, **options)
    y = np.zeros(shape)
    for column, pixel in found:
        y[column] = x[pixel]
    return y


def fold(x, output_size, kernel_size, **options):
    if x.ndim == 2:
        return fold(x[None], output_size, kernel_size, **options)[0]
    y = np.zeros((x.shape[0], x.shape[1] // np.prod(np.broadcast_to(kernel_size, 2)), *output_size))
    for column, pixel in elements(y.shape, kernel_size, **options)[1]:
        y[pixel] += x[column]
    return y


CASES = [
    Case("unfold", F.unfold, unfold_calls(), unfold, torch_functional("unfold")),
    Case("fold", F.fold, fold_calls(), fold, torch_functional("fold")),
]
