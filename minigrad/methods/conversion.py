"""L3: conversions of Tensor to other dtypes and devices."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import to_device
from minigrad.backend.dtypes import as_dtype, is_floating
from minigrad.methods.operators import Operators
from minigrad.ops import elementwise as pointwise

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Conversion(Operators):
    """Conversions to other dtypes and devices."""

    __slots__ = ()

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None) -> "Tensor":
        """The tensor in another dtype, on another device, or both: `x.to("cuda")`, `x.to("cuda", np.float16)`.

        Returns x itself if there is nothing to convert. Integers and booleans have no gradient.
        """
        dtype, device = target(*targets, dtype=dtype, device=device)
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else device
        if dtype == self.dtype and device == self.device:
            return self  # type: ignore[return-value]
        if not is_floating(dtype):
            return self.constant(to_device(self.data, device).astype(dtype, copy=False))  # without a gradient
        return self.apply(pointwise.Cast, self, dtype=dtype, device=device)

    def float(self) -> "Tensor":
        """`to(dtype=float32)`."""
        return self.to(dtype=np.float32)

    def double(self) -> "Tensor":
        """`to(dtype=float64)`."""
        return self.to(dtype=np.float64)

    def half(self) -> "Tensor":
        """`to(dtype=float16)`."""
        return self.to(dtype=np.float16)

    def bfloat16(self) -> "Tensor":
        """`to(dtype="bfloat16")`."""
        return self.to(dtype="bfloat16")

    def cpu(self) -> "Tensor":
        """`to("cpu")`."""
        return self.to(device="cpu")

    def cuda(self) -> "Tensor":
        """`to("cuda")`."""
        return self.to(device="cuda")


def target(*targets: Any, dtype: Any = None, device: str | None = None) -> tuple[np.dtype | None, str | None]:
    """The dtype and the device among the arguments of `to`, in any order, positional or by keyword; None if absent."""
    for given in targets:
        if isinstance(given, str) and given.partition(":")[0] in ("cpu", "cuda"):
            device = given
        else:
            dtype = given
    try:
        return None if dtype is None else as_dtype(dtype), device
    except TypeError:
        raise ValueError(f'to: needs a dtype, or a device "cpu" or "cuda", got {dtype!r}') from None
