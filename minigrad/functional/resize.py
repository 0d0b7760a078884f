"""L4: padding and resizing."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from minigrad._tensor import Tensor
from minigrad.functional.arguments import Pair
from minigrad.functional.pooling import adaptive_avg_pool2d
from minigrad.ops import checks
from minigrad.ops.interpolate import Interpolate
from minigrad.ops.shape import Pad


def pad(
    input: Tensor,
    pad: Sequence[int],
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant",
    value: float | None = None,
) -> Tensor:
    """Pad the last axes; negative widths crop.

    Args:
        pad: widths (before, after) of the last axis, then of the second to last, and so on. Widths are at most the
            axis size for "circular", and 1 less for "reflect".
        mode: "constant" fills with `value`; "reflect" mirrors at the border elements, "replicate" repeats the border
            elements, "circular" continues at the opposite end. As in PyTorch, "circular" crops before it pads;
            "reflect" and "replicate" pad before they crop.
        value: for mode "constant" only; by default 0. An integer dtype must be able to hold the value.
    """
    if not isinstance(pad, Sequence) or len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(f"pad: needs widths (before, after) for at most {input.ndim} axes, got {pad!r}")
    pad = checks.integers(pad, "each width", "pad")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        widths = [(0, 0)] * (input.ndim - len(pairs)) + pairs[::-1]
        return Tensor.apply(Pad, input, widths=widths, value=0 if value is None else value)
    if value is not None:
        raise ValueError(f"pad: value is only for mode 'constant', got mode {mode!r}")
    for axis, (before, after) in enumerate(pairs, 1):
        if before or after:
            index = _border_index(input.shape[-axis], before, after, mode)
            input = input.index_select(-axis, Tensor(index, device=input.device))
    return input


def interpolate(
    input: Tensor,
    size: Pair | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: Literal["nearest", "nearest-exact", "linear", "bilinear", "bicubic", "area"] = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize images. Shapes: input (N, C, H, W), floating-point; result (N, C, OH, OW). Rows: (N, C, L), (N, C, OL).

    Args:
        size: (OH, OW), or one integer for both. Give either `size` or `scale_factor`.
        scale_factor: OH = ⌊H · scale_factor⌋, and OW likewise; a number or a pair.
        mode: "nearest-exact" copies the input pixel at the centre of an output pixel, "nearest" the input pixel at the
            output pixel's upper left corner; "bilinear" and "bicubic" interpolate between 2 x 2 and 4 x 4 input pixels;
            "area" is `adaptive_avg_pool2d`. Of rows, "linear" is the mode that interpolates.
        align_corners: for "bilinear" and "bicubic": True aligns the centres of the corner pixels of input and output,
            False (default) the outer edges of these pixels.
        recompute_scale_factor: True: place output pixels by the ratio OH / H of the sizes, not by `scale_factor`.
        antialias: for "bilinear" and "bicubic": when downsampling, widen the filter by the ratio of the sizes.
    """
    if mode in ("linear", "area") and antialias:
        raise ValueError(f"interpolate: antialias is only for bilinear and bicubic, got mode {mode!r}")
    if mode == "area" and align_corners is not None:
        raise ValueError("interpolate: align_corners is only for linear, bilinear and bicubic, got mode 'area'")
    if input.ndim == 3 and mode in ("linear", "nearest", "nearest-exact", "area"):
        rows = input.unsqueeze(-2)  # (N, C, 1, L)
        length, scale = (x if x is None or isinstance(x, Sequence) else (x,) for x in (size, scale_factor))
        size, scale_factor = length and (1, *length), scale and (1.0, *scale)  # type: ignore[assignment]
        mode = "bilinear" if mode == "linear" else mode
        return interpolate(rows, size, scale_factor, mode, align_corners, recompute_scale_factor).squeeze(-2)
    checks.rank(input, 4, "(N, C, H, W)", "interpolate")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor, and not both")
    scales = None
    if scale_factor is not None:
        scales = _scales(scale_factor)
        size = (int(input.shape[2] * scales[0]), int(input.shape[3] * scales[1]))
        if min(size) < 1:
            raise ValueError(f"interpolate: scale_factor {scale_factor} of images {input.shape[2:]} gives size {size}")
        scales = None if recompute_scale_factor else scales
    if mode == "area":
        return adaptive_avg_pool2d(input, size)  # type: ignore[arg-type]
    options = {"mode": mode, "align_corners": align_corners, "antialias": antialias}
    size = checks.pair(size, "size", "interpolate", minimum=1)
    return Tensor.apply(Interpolate, input, size=size, scales=scales, **options)


def _scales(scale_factor: Any) -> tuple[float, float]:
    """`scale_factor`, a number or a pair, as a pair of floats (height, width)."""
    both = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor, scale_factor)
    if isinstance(both, str) or any(not isinstance(scale, int | float | np.number) for scale in both):
        raise TypeError(f"interpolate: scale_factor must be a number or a pair (height, width), got {scale_factor!r}")
    if len(both) != 2:
        raise ValueError(
            f"interpolate: scale_factor must be a number or a pair (height, width), got {len(both)} values: "
            f"{scale_factor!r}"
        )
    if not all(0 < scale < np.inf for scale in both):
        raise ValueError(f"interpolate: each scale_factor must be above 0 and finite, got {scale_factor!r}")
    return float(both[0]), float(both[1])


def _border_index(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """The index of the input element at each position of a padded axis, from -before to size + after - 1."""
    start, end = max(-before, 0), size - max(-after, 0)  # the part of the axis that is not cropped
    limits = {"reflect": size - 1, "circular": max(end - start, 0), "replicate": np.inf if size else 0}
    if mode not in limits:
        raise ValueError(f'pad: mode must be "constant", "reflect", "replicate" or "circular", got {mode!r}')
    if max(before, after) > limits[mode]:
        raise ValueError(
            f"pad: in mode {mode!r} widths must be at most {limits[mode]} for an axis of size {size}"
            f"{' that is cropped' if mode == 'circular' and min(before, after) < 0 else ''}, got {(before, after)}"
        )
    length = size + before + after
    if length < 0 or (length == 0 and mode != "circular"):
        raise ValueError(f"pad: widths {before, after} crop all of an axis of size {size} in mode {mode!r}")
    position = np.arange(-before, size + after)
    if mode == "reflect":
        return size - 1 - abs(size - 1 - abs(position))
    if mode == "replicate":
        return position.clip(0, size - 1)
    return start + (position - start) % max(end - start, 1)


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """Channels to pixels: (.., C r², H, W) -> (.., C, H r, W r), for r = `upscale_factor`.  Shi et al. 2016."""
    *batch, channels, height, width = input.shape
    r, c = upscale_factor, channels // upscale_factor**2
    x = input.reshape(*batch, c, r, r, height, width).movedim((-4, -3), (-3, -1))  # (.., C, H, r, W, r)
    return x.reshape(*batch, c, height * r, width * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """Pixels to channels, the inverse of `pixel_shuffle`: (.., C, H r, W r) -> (.., C r², H, W)."""
    *batch, c, height, width = input.shape
    r = downscale_factor
    x = input.reshape(*batch, c, height // r, r, width // r, r).movedim((-3, -1), (-4, -3))  # (.., C, r, r, H, W)
    return x.reshape(*batch, c * r * r, height // r, width // r)


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """The channels of each group in turn: (N, G · K, ...) as (N, K · G, ...).  Zhang et al. 2018, arXiv:1707.01083."""
    n, c, *sides = input.shape
    return input.reshape(n, groups, c // groups, *sides).transpose(1, 2).reshape(n, c, *sides)
