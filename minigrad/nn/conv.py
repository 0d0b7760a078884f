"""L5: convolution layers."""

from typing import Any, ClassVar

import numpy as np

from minigrad import functional as F
from minigrad._tensor import Tensor
from minigrad.functional import Pair
from minigrad.nn import init
from minigrad.nn.module import Module, Parameter
from minigrad.ops import checks

PADDING_MODES = "zeros", "reflect", "replicate", "circular"


class _Conv(Module):
    """A convolution over the last `dims` axes; weight (out_channels, in_channels / groups, *kernel_size).

    padding_mode: the values outside the input are "zeros", or as in `F.pad`, "reflect", "replicate" or "circular".
    """

    bias: Parameter | None
    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        name = type(self).__name__
        in_channels, out_channels, groups = checks.integers(
            (in_channels, out_channels, groups), "channels and groups", name
        )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups must divide in_channels and out_channels, got {groups} groups for "
                f"{in_channels} -> {out_channels} channels"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"{name}: padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = self._each(kernel_size, "kernel_size", 1)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.padding_mode = padding_mode
        self.weight = Parameter(np.empty(self._weight_shape(), np.float32), dtype=dtype, device=device)
        own = Parameter(np.empty(out_channels, np.float32), dtype=dtype, device=device) if bias else None
        self.register_parameter("bias", own)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values of weight and bias: `init.torch_default_`."""
        init.torch_default_(self.weight, self.bias)

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _each(self, value: Any, name: str, minimum: int) -> tuple[int, ...]:
        """A number, or one for each axis, as a tuple."""
        one_axis = self.dims == 1 and isinstance(value, tuple) and len(value) == 1
        return checks.pair(value[0] if one_axis else value, name, type(self).__name__, minimum=minimum)[: self.dims]

    def _padded(self, x: Tensor) -> tuple[Tensor, Any]:
        """The input, and the zero padding that the convolution is to add."""
        if self.padding_mode == "zeros":
            return x, self.padding
        return F.pad(x, self._widths(), self.padding_mode), 0  # type: ignore[arg-type]

    def _widths(self) -> list[int]:
        """The widths (before, after) of the padding, the last axis first; "same" puts an odd element after."""
        if self.padding == "same":
            dilation = self._each(self.dilation, "dilation", 1)
            totals = [d * (k - 1) for d, k in zip(dilation, self.kernel_size, strict=True)]
            return [width for total in reversed(totals) for width in (total // 2, total - total // 2)]
        padding = (0,) * self.dims if self.padding == "valid" else self._each(self.padding, "padding", 0)
        return [width for width in reversed(padding) for _ in range(2)]

    def extra_repr(self) -> str:
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, bias={self.bias is not None}{mode}"
        )


class Conv2d(_Conv):
    """2-D convolution of images (N, in_channels, H, W), weight (out_channels, in_channels / groups, KH, KW).

    padding_mode: the pixels outside the image are "zeros", or as in `F.pad`, "reflect", "replicate" or "circular".
    """

    dims = 2

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self._padded(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(_Conv):
    """1-D convolution of signals (N, in_channels, L), weight (out_channels, in_channels / groups, K)."""

    dims = 1

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self._padded(x)
        return F.conv1d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class ConvTranspose2d(_Conv):
    """Transposed 2-D convolution of images (N, in_channels, H, W): the gradient of a Conv2d with respect to its input.

    weight (in_channels, out_channels / groups, KH, KW). With stride s, the output is about s times as large.
    """

    dims = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f'ConvTranspose2d: padding_mode must be "zeros", got {padding_mode!r}')
        self.output_padding = output_padding
        sizes = kernel_size, stride, padding, dilation, groups
        super().__init__(in_channels, out_channels, *sizes, bias, device=device, dtype=dtype)

    def _weight_shape(self) -> tuple[int, ...]:
        return self.in_channels, self.out_channels // self.groups, *self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        options = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return F.conv_transpose2d(x, self.weight, self.bias, *options)


class Unfold(Module):
    """Each window of images (N, C, H, W) as a column: `F.unfold`."""

    def __init__(self, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1) -> None:
        self.windows = kernel_size, dilation, padding, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.unfold(x, *self.windows)


class Fold(Module):
    """The sum of columns (N, C · KH · KW, windows), each at the place of its window: `F.fold`."""

    def __init__(
        self, output_size: Pair, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1
    ) -> None:
        self.output_size, self.windows = output_size, (kernel_size, dilation, padding, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.fold(x, self.output_size, *self.windows)
