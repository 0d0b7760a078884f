"""L2: faster algorithms for depthwise, 3 x 3 and 1 x 1 convolutions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.backend import Array, products
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.chunks import is_float32
from minigrad.kernels.cpu.depthwise import Tiles, plan_for
from minigrad.kernels.cpu.depthwise_rows import Rows, rows_cost
from minigrad.kernels.cpu.winograd import Winograd
from minigrad.ops import conv
from minigrad.ops.matmul import rows
from minigrad.ops.windows import Pair, Windows

MIN_CHANNELS = 16  # with fewer, matrix products are not the slowest part of a 3 x 3 convolution


@fast_path_of(conv.Conv2d)
class CPUConv2d(conv.Conv2d):
    """`TilesOrRows` computes depthwise convolutions with stride 1 and an output as large as the input, `Winograd`
    3 x 3 convolutions with stride 1, `Pointwise` 1 x 1 convolutions, as a linear layer."""

    @staticmethod
    def supports(
        x: Array, weight: Array, bias: Array | None, *, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> bool:
        if not (is_float32(x) and is_float32(weight) and x.ndim == weight.ndim == 4 and x.size):
            return False
        if isinstance(padding, str) or dilation not in (1, (1, 1)):
            return False
        (_, C, H, W), (O, _, *kernel) = x.shape, weight.shape  # noqa: E741 (the output channels' axis)
        (above, below), (left, right) = conv.sides_of_padding(padding)
        if above != below or left != right:
            return False
        padding = above, left
        if groups == 1 and kernel == [1, 1]:
            return padding == (0, 0)
        if stride not in (1, (1, 1)):
            return False
        if groups == 1:
            return kernel == [3, 3] and max(padding) <= 2 and min(H, W) >= 3 and min(C, O) >= MIN_CHANNELS
        same = kernel[0] % 2 == kernel[1] % 2 == 1 and padding == (kernel[0] // 2, kernel[1] // 2)
        return groups == C == O and same

    def method_for(self, windows: Windows, groups: int, channels: int) -> Any:
        if groups == channels > 1:
            return TilesOrRows(windows)
        return Winograd(windows) if windows.kernel == (3, 3) else Pointwise(windows.stride)


@dataclass(frozen=True)
class TilesOrRows:
    """Depthwise: the implementation with the lower estimated cost for these images, (N, H, W, C)."""

    windows: Windows

    def correlate(self, x: Array, weight: Array) -> Array:
        return self._method(x.shape).correlate(x, weight)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        return self._method(shape).grad_x(grad_y, weight, shape)

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        return self._method(x.shape).grad_weight(grad_y, x, shape)

    def _method(self, shape: tuple[int, ...]) -> Tiles | Rows:
        N, H, W, C = shape
        kernel = self.windows.kernel
        return (Tiles if plan_for(N, H, W, kernel).cost < rows_cost(kernel, W, C) else Rows)(self.windows)


@dataclass(frozen=True)
class Pointwise:
    """1 x 1: Y = X Wᵀ, ∂X = ∂Y W, ∂W = ∂Yᵀ X, where X has a row for each pixel of x[:, ::stride, ::stride]."""

    stride: Pair

    def correlate(self, x: Array, weight: Array) -> Array:
        pixels = self._strided(x)
        return products.matmul(rows(pixels), weight[:, :, 0, 0].T).reshape(*pixels.shape[:3], -1)

    def grad_x(self, grad_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        grad_pixels = products.matmul(rows(grad_y), weight[:, :, 0, 0]).reshape(*grad_y.shape[:3], -1)
        if self.stride == (1, 1):
            return grad_pixels
        grad_x = np.zeros(shape, np.float32)
        self._strided(grad_x)[...] = grad_pixels
        return grad_x

    def grad_weight(self, grad_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
        return products.accurate_matmul(rows(grad_y).T, rows(self._strided(x))).reshape(shape)

    def _strided(self, x: Array) -> Array:
        return x[:, :: self.stride[0], :: self.stride[1]]
