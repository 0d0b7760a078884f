"""L3: conversions of Tensor to other dtypes and devices."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import to_device
from minigrad.backend.dtypes import as_dtype, is_floating
from minigrad.methods.base import TensorBase, sequence
from minigrad.methods.operators import Operators
from minigrad.ops import elementwise as pointwise

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor

Bool = bool  # the class below has a method of this name


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
        """`to(float32)`."""
        return self.to(np.float32)

    def double(self) -> "Tensor":
        """`to(float64)`."""
        return self.to(np.float64)

    def half(self) -> "Tensor":
        """`to(float16)`."""
        return self.to(np.float16)

    def bfloat16(self) -> "Tensor":
        """`to(bfloat16)`."""
        return self.to("bfloat16")

    def long(self) -> "Tensor":
        """`to(int64)`: towards zero."""
        return self.to(np.int64)

    def int(self) -> "Tensor":
        """`to(int32)`: towards zero."""
        return self.to(np.int32)

    def short(self) -> "Tensor":
        """`to(int16)`: towards zero."""
        return self.to(np.int16)

    def bool(self) -> "Tensor":
        """`to(bool)`: True where an element is not 0."""
        return self.to(np.bool_)

    def type(self, dtype: Any) -> "Tensor":
        """`to(dtype)`."""
        return self.to(dtype=dtype)

    def type_as(self, other: "Tensor") -> "Tensor":
        """`to(other.dtype)`."""
        return self.to(other.dtype)

    def cpu(self) -> "Tensor":
        """`to("cpu")`."""
        return self.to("cpu")

    def cuda(self, device: str = "cuda") -> "Tensor":
        """`to("cuda")`."""
        return self.to(device)

    @property
    def is_cuda(self) -> Bool:
        """True on a GPU."""
        return self.device.type == "cuda"

    def is_floating_point(self) -> Bool:
        """True for float16, bfloat16, float32 and float64."""
        return is_floating(self.dtype)

    # Tensors of self's dtype and device, without a gradient ----------------------------------------------------------

    def new_full(self, size: Any, fill_value: Any, *, dtype: Any = None, device: str | None = None) -> "Tensor":
        """A tensor filled with `fill_value`."""
        array = np.full(size, fill_value, self.dtype if dtype is None else as_dtype(dtype))
        return self.constant(to_device(array, device or self.device))

    def new_zeros(self, *size: Any, dtype: Any = None, device: str | None = None) -> "Tensor":
        """A tensor filled with 0."""
        return self.new_full(sequence(size), 0, dtype=dtype, device=device)

    def new_ones(self, *size: Any, dtype: Any = None, device: str | None = None) -> "Tensor":
        """A tensor filled with 1."""
        return self.new_full(sequence(size), 1, dtype=dtype, device=device)

    new_empty = new_zeros

    def new_tensor(self, data: Any, *, dtype: Any = None, device: str | None = None) -> "Tensor":
        """A tensor with a copy of `data`."""
        array = np.array(data, self.dtype if dtype is None else as_dtype(dtype))
        return self.constant(to_device(array, device or self.device))


def target(*targets: Any, dtype: Any = None, device: str | None = None) -> tuple[np.dtype | None, str | None]:
    """The dtype and the device among the arguments of `to`, in any order, positional or by keyword; None if absent.

    A Tensor among the arguments stands for its dtype and device.
    """
    for given in targets:
        if isinstance(given, TensorBase):
            dtype, device = given.dtype, given.device
        elif isinstance(given, str) and given.partition(":")[0] in ("cpu", "cuda"):
            device = given
        else:
            dtype = given
    try:
        return None if dtype is None else as_dtype(dtype), "cuda:0" if device == "cuda" else device
    except TypeError:
        raise ValueError(f'to: needs a dtype, or a device "cpu" or "cuda", got {dtype!r}') from None
