"""Interpolation. The oracle lists the taps of each output pixel: its input pixels and their weights."""

from math import floor

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays
from tests.cases.case import Call, Case, torch_functional

SIDES = st.integers(1, 6)
NEAREST = ("nearest", "nearest-exact")


def scales(side, min_size):
    """Scales that change the size `side`, to at least `min_size`."""
    return st.sampled_from([scale for scale in (0.4, 0.7, 1.3, 2.0, 2.7) if min_size <= int(side * scale) != side])


@st.composite
def interpolate_calls(draw):
    """All modes and flags, by size or by scale.

    Two kinds are excluded, as PyTorch's backward contradicts its forward: antialias to a width of 1, and a scale other
    than 1 that keeps the size of an axis. tests/ops/test_interpolate.py tests both.
    """
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic"]))
    options = {"mode": mode}
    if mode not in NEAREST:
        options |= {"align_corners": draw(st.sampled_from([None, False, True])), "antialias": draw(st.booleans())}
    x = draw(arrays((draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(SIDES), draw(SIDES))))
    min_size = (1, 2 if options.get("antialias") else 1)
    if draw(st.booleans()):
        options["size"] = tuple(draw(st.integers(out, 9)) for out in min_size)
    else:
        scale_factors = tuple(draw(scales(*sides)) for sides in zip(x.shape[2:], min_size, strict=True))
        options["scale_factor"] = (
            draw(st.sampled_from([scale_factors, scale_factors[0]]))
            if scale_factors[0] == scale_factors[1]
            else scale_factors
        )
        options["recompute_scale_factor"] = draw(st.sampled_from([None, False, True]))
    return Call((x,), options)


def interpolate(
    x, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None, antialias=False
):
    rows, columns = (
        resampling_taps(
            side,
            int(side * scale) if size is None else out,
            None if recompute_scale_factor else scale,
            mode,
            bool(align_corners),
            antialias,
        )
        for side, out, scale in zip(x.shape[2:], pair(size), pair(scale_factor), strict=True)
    )
    y = np.zeros((*x.shape[:2], len(rows), len(columns)))
    for n, c, i, j in np.ndindex(y.shape):
        y[n, c, i, j] = sum(r * s * x[n, c, h, w] for h, r in rows[i] for w, s in columns[j])
    return y


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def resampling_taps(size, out, scale, mode, align_corners, antialias):
    """For each of `out` output pixels, its taps: a list of (input pixel, weight)."""
    step = size / out if scale is None else 1 / scale
    if align_corners:
        step = (size - 1) / (out - 1) if out > 1 else 0
    if mode == "nearest":
        return [[(min(floor(r * step), size - 1), 1)] for r in range(out)]
    if mode == "nearest-exact":
        return [[(min(floor((r + 0.5) * step), size - 1), 1)] for r in range(out)]
    if antialias:
        return [antialias_taps(step * (r + 0.5), max(step, 1), size, mode) for r in range(out)]
    return [interpolation_taps(step * r if align_corners else step * (r + 0.5) - 0.5, size, mode) for r in range(out)]


def interpolation_taps(source, size, mode):
    """The two or four taps next to the coordinate `source`. Pixel j is at j; pixels outside repeat the border."""
    first, t = floor(source), source - floor(source)
    if mode == "bilinear":
        weights = {first: 1 - t, first + 1: t}
    else:
        weights = {first + k: cubic_kernel(t - k, -0.75) for k in (-1, 0, 1, 2)}
    return [(min(max(j, 0), size - 1), weight) for j, weight in weights.items()]


def antialias_taps(centre, width, size, mode):
    """The taps of a filter scaled to `width` times its support, with weights normalized to sum 1."""
    distances = [(j + 0.5 - centre) / width for j in range(size)]
    weights = [max(0, 1 - abs(t)) if mode == "bilinear" else cubic_kernel(t, -0.5) for t in distances]
    return [(j, weight / sum(weights)) for j, weight in enumerate(weights)]


def cubic_kernel(t, a):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0


CASES = [
    Case(
        "interpolate",
        F.interpolate,
        interpolate_calls(),
        interpolate,
        torch_functional("interpolate"),
    )
]
