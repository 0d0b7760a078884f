"""Pooling. The oracles loop over windows."""

from math import ceil, floor

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays
from tests.cases.case import Call, Case, torch_functional
from tests.cases.conv import SIDES, int_or_pair

BATCHES = st.sampled_from([(), (0,), (1,), (2,)])
GAP = 0.002


@st.composite
def pool_calls(draw, *, gap=0.0, max_dilation=1, **more):
    """Kernels with all valid paddings, and images down to the smallest valid size."""
    kernel = draw(SIDES), draw(SIDES)
    dilation = draw(st.integers(1, max_dilation)), draw(st.integers(1, max_dilation))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    stride = draw(st.none() | st.tuples(SIDES, SIDES).flatmap(int_or_pair))
    # A window must fit, and with dilation must contain a pixel of the image.
    min_size = [max(d, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    image = tuple(side + draw(st.integers(0, 4)) for side in min_size)
    options = {"kernel_size": draw(int_or_pair(kernel)), "stride": stride, "padding": draw(int_or_pair(padding))}
    options |= {"ceil_mode": draw(st.booleans())} | {name: draw(strategy) for name, strategy in more.items()}
    if dilation != (1, 1):
        options["dilation"] = draw(int_or_pair(dilation))
    return Call((draw(arrays((*draw(BATCHES), draw(SIDES), *image), gap=gap)),), options)


@st.composite
def adaptive_pool_calls(draw):
    x = draw(arrays((*draw(BATCHES), draw(SIDES), draw(st.integers(1, 7)), draw(st.integers(1, 7)))))
    size = st.none() | st.integers(1, 8)
    return Call((x,), {"output_size": draw(st.integers(1, 5) | st.tuples(size, size))})


def naive_pool(x, kernel_size, stride, padding, ceil_mode, reduce, dilation=1):
    """y[..., i, j] = reduce(pixels of window (i, j), number of the window's positions in the padded image)."""
    KH, KW = np.broadcast_to(kernel_size, 2)
    SH, SW = (KH, KW) if stride is None else np.broadcast_to(stride, 2)
    (PH, PW), (DH, DW), (H, W) = np.broadcast_to(padding, 2), np.broadcast_to(dilation, 2), x.shape[-2:]
    rows, columns = window_positions(H, KH, SH, PH, DH, ceil_mode), window_positions(W, KW, SW, PW, DW, ceil_mode)
    y = np.empty((*x.shape[:-2], len(rows), len(columns)))
    for *image, i, j in np.ndindex(y.shape):
        pixels = [x[(*image, h, w)] for h in rows[i] for w in columns[j] if 0 <= h < H and 0 <= w < W]
        y[(*image, i, j)] = reduce(pixels, len(rows[i]) * len(columns[j]))
    return y


def window_positions(size, kernel, stride, padding, dilation, ceil_mode):
    """For each window along one axis, the window's positions in the padded image."""
    count = (size + 2 * padding - (kernel - 1) * dilation - 1) / stride
    starts = [i * stride - padding for i in range((ceil if ceil_mode else floor)(count) + 1)]
    starts = [start for start in starts if not ceil_mode or start < size]
    return [[start + k * dilation for k in range(kernel) if start + k * dilation < size + padding] for start in starts]


def max_pool2d(x, **options):
    return naive_pool(x, reduce=lambda pixels, _: max(pixels), **options)


def avg_pool2d(x, count_include_pad, divisor_override, **options):
    def mean(pixels, count):
        return sum(pixels) / (divisor_override or (count if count_include_pad else len(pixels)))

    return naive_pool(x, reduce=mean, **options)


def adaptive_avg_pool2d(x, output_size):
    pair = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    H, W = x.shape[-2:]
    OH, OW = H if pair[0] is None else pair[0], W if pair[1] is None else pair[1]
    y = np.empty((*x.shape[:-2], OH, OW))
    for i, j in np.ndindex(OH, OW):
        window = x[..., floor(i * H / OH) : ceil((i + 1) * H / OH), floor(j * W / OW) : ceil((j + 1) * W / OW)]
        y[..., i, j] = window.mean(axis=(-2, -1))
    return y


CASES = [
    Case(
        "max_pool2d",
        F.max_pool2d,
        pool_calls(gap=GAP, max_dilation=2),
        max_pool2d,
        torch_functional("max_pool2d"),
    ),
    Case(
        "avg_pool2d",
        F.avg_pool2d,
        pool_calls(count_include_pad=st.booleans(), divisor_override=st.none() | st.sampled_from([-2, 1, 3])),
        avg_pool2d,
        torch_functional("avg_pool2d"),
    ),
    Case(
        "adaptive_avg_pool2d",
        F.adaptive_avg_pool2d,
        adaptive_pool_calls(),
        adaptive_avg_pool2d,
        torch_functional("adaptive_avg_pool2d"),
    ),
]
