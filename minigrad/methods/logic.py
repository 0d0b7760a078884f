"""L3: methods of Tensor with truth values: logic, tests of values, comparisons of tensors. None has a gradient."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import array_module, promote
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.methods.base import Dim, numpy_names, raw, raw_array
from minigrad.methods.elementwise import Elementwise
from minigrad.ops import checks

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Logic(Elementwise):
    """Truth values: of elements, of axes, of tensors."""

    __slots__ = ()

    def logical_and(self, other: Any) -> "Tensor":
        """True where x and `other` are both not 0, as bool."""
        return self._logical(operator.and_, other)

    def logical_or(self, other: Any) -> "Tensor":
        """True where x or `other` is not 0, as bool."""
        return self._logical(operator.or_, other)

    def logical_xor(self, other: Any) -> "Tensor":
        """True where exactly one of x and `other` is not 0, as bool."""
        return self._logical(operator.xor, other)

    def logical_not(self) -> "Tensor":
        """True where x is 0, as bool."""
        return self.constant(self.data == 0)

    def _logical(self, combine: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        return self.constant(combine(self.data != 0, raw(other) != 0))

    def isnan(self) -> "Tensor":
        """True where an element is NaN, as bool."""
        return self.constant(self.data != self.data)

    def isinf(self) -> "Tensor":
        """True where an element is infinite, as bool."""
        return self.constant(abs(self.data) == np.inf)

    def isfinite(self) -> "Tensor":
        """True where an element is neither infinite nor NaN, as bool."""
        return self.constant(abs(self.data) < np.inf)

    @numpy_names
    def any(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """True if an element along `dim` (None: all axes) is not 0; as bool, of a uint8 tensor as uint8."""
        return self._over(self.data != 0, "any", dim, keepdim)

    @numpy_names
    def all(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """True if no element along `dim` (None: all axes) is 0; as bool, of a uint8 tensor as uint8."""
        return self._over(self.data != 0, "all", dim, keepdim)

    def _over(self, true: Any, name: str, dim: Dim, keepdim: bool) -> "Tensor":
        result = getattr(true, name)(axis=checks.axes(dim, self.ndim, name), keepdims=keepdim)
        return self.constant(result.astype(np.uint8) if self.dtype == np.uint8 else result)

    def isclose(self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> "Tensor":
        """True where |x - other| ≤ atol + rtol · |other| or x = other, as bool. NaN is close to NaN if `equal_nan`."""
        rtol, atol = (checks.not_negative(v, name, "isclose") for v, name in ((rtol, "rtol"), (atol, "atol")))
        both = promote([self.data, raw_array(other, "other", "isclose")])
        x, y = (cast(a, FLOAT32) if is_half(a.dtype) else a for a in both)
        return self.constant(array_module(x).isclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan))

    def allclose(self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
        """True if `isclose` holds for all elements."""
        return bool(self.isclose(other, rtol, atol, equal_nan).data.all())

    def equal(self, other: "Tensor") -> bool:
        """True if both tensors have the same shape and equal elements; NaN equals nothing."""
        return self.shape == other.shape and bool((self == other).data.all())
