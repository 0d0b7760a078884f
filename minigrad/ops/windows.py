"""L1: sliding windows over images, shared by convolution and pooling.

Inside these ops, images are channels-last, (N, H, W, C): a row of a window is contiguous in memory, and so are the
channels of a pixel, as matrix products need. Along H and along W, tap k of window i is the pixel

    i · stride + k · dilation - before

of the image, with `before` pixels of padding before the image and `after` behind. Two methods give the pixels:

    view    all windows of a padded image, as a view                   used by convolution, as rows of a matrix
    taps    for each tap, the pixels of all windows at this tap        used by depthwise, pooling, ∂x of convolution
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from minigrad.backend import Array, array_module, sliding_windows

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """The geometry of the windows. Each pair is (along H, along W); `out` is (OH, OW), the number of windows."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    after: Pair
    out: Pair

    def padded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of images (N, H, W, C) after padding."""
        N, H, W, C = shape
        return N, self.before[0] + H + self.after[0], self.before[1] + W + self.after[1], C

    def pad(self, x: Array, value: float = 0.0) -> Array:
        """x (N, H, W, C) padded with `value`; x itself if there is no padding."""
        if not any(self.before + self.after):
            return x
        padded = array_module(x).full(self.padded_shape(x.shape), value, x.dtype)
        self.unpad(padded)[...] = x
        return padded

    def unpad(self, padded: Array) -> Array:
        """Padded images without their padding, as a view."""
        (top, left), (bottom, right) = self.before, self.after
        return padded[:, top : padded.shape[1] - bottom, left : padded.shape[2] - right]

    def view(self, padded: Array) -> Array:
        """All windows of padded images, as a view: (N, H, W, C) -> (N, OH, OW, KH, KW, C)."""
        (SH, SW), (DH, DW), (OH, OW) = self.stride, self.dilation, self.out
        at_every_pixel = sliding_windows(padded, span(self.kernel, self.dilation), (1, 2))
        # (N, OH, OW, C, KH, KW) -> (N, OH, OW, KH, KW, C)
        return at_every_pixel[:, ::SH, ::SW, :, ::DH, ::DW][:, :OH, :OW].transpose(0, 1, 2, 4, 5, 3)

    def taps(self) -> Iterator[tuple[Pair, tuple[slice, slice, slice]]]:
        """For each tap (k, l): the tap, and the index that selects its pixels (N, OH, OW, C) from padded images."""
        for tap in product(range(self.kernel[0]), range(self.kernel[1])):
            rows, columns = (
                slice(k * dilation, k * dilation + (out - 1) * stride + 1, stride)
                for k, dilation, out, stride in zip(tap, self.dilation, self.out, self.stride, strict=True)
            )
            yield tap, (slice(None), rows, columns)


def span(kernel: Pair, dilation: Pair) -> Pair:
    """The extent of a window in pixels, (kernel - 1) · dilation + 1."""
    return (kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1


def blocks(x: Array, per_image: int) -> Iterator[slice]:
    """Slices of the batch x (N, ...) that bound the size of a scratch array of `per_image` elements per image.

    About 4 MiB of float32 on the CPU, so that a scratch array is still in the cache when it is read; 1 GiB on a GPU.
    """
    step = max(1, (1 << 20 if isinstance(x, np.ndarray) else 1 << 28) // max(1, per_image))
    return (slice(n, n + step) for n in range(0, len(x), step))
