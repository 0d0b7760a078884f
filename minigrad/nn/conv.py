"""L5: convolution layers."""

from typing import Any

import numpy as np

from minigrad import functional as F
from minigrad.functional import Pair
from minigrad.nn import init
from minigrad.nn.module import Module, Parameter
from minigrad.ops import checks
from minigrad.tensor import Tensor

PADDING_MODES = "zeros", "reflect", "replicate", "circular"


class Conv2d(Module):
    """2-D convolution of images (N, in_channels, H, W), weight (out_channels, in_channels / groups, KH, KW).

    padding_mode: the pixels outside the image are "zeros", or as in `F.pad`, "reflect", "replicate" or "circular".
    """

    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        in_channels, out_channels, groups = checks.integers(
            (in_channels, out_channels, groups), "channels and groups", "Conv2d"
        )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups must divide in_channels and out_channels, got {groups} groups for "
                f"{in_channels} -> {out_channels} channels"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"Conv2d: padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
        KH, KW = checks.pair(kernel_size, "kernel_size", "Conv2d", minimum=1)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (KH, KW)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.padding_mode = padding_mode
        shape = (out_channels, in_channels // groups, KH, KW)
        self.weight = Parameter(np.empty(shape, np.float32), dtype=dtype, device=device)
        own = Parameter(np.empty(out_channels, np.float32), dtype=dtype, device=device) if bias else None
        self.register_parameter("bias", own)
        init.torch_default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._widths(), self.padding_mode), 0  # type: ignore[arg-type]
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _widths(self) -> list[int]:
        """The widths (left, right, top, bottom) of the padding; "same" puts an odd pixel right and below."""
        if self.padding == "valid":
            return [0] * 4
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(checks.sides(self.dilation), self.kernel_size, strict=True)]
            return [width for total in reversed(totals) for width in (total // 2, total - total // 2)]
        PH, PW = checks.pair(self.padding, "padding", "Conv2d", minimum=0)
        return [PW, PW, PH, PH]

    def extra_repr(self) -> str:
        KH, KW = self.kernel_size
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size=({KH}, {KW}), stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, bias={self.bias is not None}{mode}"
        )
