"""L5: padding, and the exchange of channels for pixels; the functions are in `minigrad/functional/resize.py`."""

from typing import ClassVar, Literal

from minigrad import functional as F
from minigrad._tensor import Tensor
from minigrad.nn.module import Module


class _Pad(Module):
    """Pad the last `axes` axes; padding: one width for all sides, or the widths of `F.pad`."""

    axes: ClassVar[int]
    mode: ClassVar[Literal["constant", "reflect", "replicate"]]

    def __init__(self, padding: int | tuple[int, ...]) -> None:
        self.padding = (padding,) * (2 * self.axes) if isinstance(padding, int) else tuple(padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding, self.mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class ReflectionPad1d(_Pad):
    """`F.pad` of rows (N, C, L) with mode "reflect"."""

    axes = 1
    mode = "reflect"


class ReflectionPad2d(_Pad):
    """`F.pad` of images (N, C, H, W) with mode "reflect"."""

    axes = 2
    mode = "reflect"


class ReplicationPad1d(_Pad):
    """`F.pad` of rows (N, C, L) with mode "replicate"."""

    axes = 1
    mode = "replicate"


class ReplicationPad2d(_Pad):
    """`F.pad` of images (N, C, H, W) with mode "replicate"."""

    axes = 2
    mode = "replicate"


class ZeroPad1d(_Pad):
    """`F.pad` of rows (N, C, L) with mode "constant"."""

    axes = 1
    mode = "constant"


class ZeroPad2d(_Pad):
    """`F.pad` of images (N, C, H, W) with mode "constant"."""

    axes = 2
    mode = "constant"


class _ConstantPad(_Pad):
    mode = "constant"

    def __init__(self, padding: int | tuple[int, ...], value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding, self.mode, self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """`F.pad` of rows (N, C, L) with mode "constant" and a value."""

    axes = 1


class ConstantPad2d(_ConstantPad):
    """`F.pad` of images (N, C, H, W) with mode "constant" and a value."""

    axes = 2


class PixelShuffle(Module):
    """Channels to pixels: `F.pixel_shuffle`."""

    def __init__(self, upscale_factor: int) -> None:
        self.upscale_factor = upscale_factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


class PixelUnshuffle(Module):
    """Pixels to channels: `F.pixel_unshuffle`."""

    def __init__(self, downscale_factor: int) -> None:
        self.downscale_factor = downscale_factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.downscale_factor)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}"
