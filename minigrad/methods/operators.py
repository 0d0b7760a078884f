"""L3: the operators of Tensor: arithmetic, in-place assignment, comparisons, bitwise logic."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import promote, promote_and_wrap
from minigrad.backend.dtypes import is_held
from minigrad.methods.base import TensorBase, raw
from minigrad.ops import elementwise as pointwise
from minigrad.ops import matmul, rounding

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Operators(TensorBase):
    """Python's operators, and the methods of the same names."""

    __slots__ = ()

    def __add__(self, other: Any) -> "Tensor":
        """y = x + other, elementwise."""
        return self.apply(pointwise.Add, self, other)

    def __sub__(self, other: Any) -> "Tensor":
        """y = x - other, elementwise."""
        return self.apply(pointwise.Sub, self, other)

    def __mul__(self, other: Any) -> "Tensor":
        """y = x · other, elementwise."""
        return self.apply(pointwise.Mul, self, other)

    def __truediv__(self, other: Any) -> "Tensor":
        """y = x / other, elementwise. Integers give float32."""
        return self.apply(pointwise.Div, self, other)

    def __floordiv__(self, other: Any) -> "Tensor":
        """y = ⌊x / other⌋, elementwise, without a gradient (0). Integers stay integers."""
        return self.apply(rounding.FloorDivide, self, other)

    def __mod__(self, other: Any) -> "Tensor":
        """y = x - other · ⌊x / other⌋, elementwise, with the sign of `other`. Integers stay integers."""
        return self.apply(rounding.Remainder, self, other)

    def fmod(self, other: Any) -> "Tensor":
        """y = x - other · trunc(x / other), elementwise, with the sign of x. Integers stay integers."""
        return self.apply(rounding.Fmod, self, other)

    def __pow__(self, other: Any) -> "Tensor":
        """y = x ** other, elementwise."""
        return self.apply(pointwise.Pow, self, other)

    def __matmul__(self, other: Any) -> "Tensor":
        """The matrix product over the last two axes; the others broadcast. A 1-D x is a row, a 1-D `other` a column."""
        return self.apply(matmul.MatMul, self, other)

    def __pos__(self) -> "Tensor":
        """x itself."""
        return self  # type: ignore[return-value]

    def __radd__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Add, other, self)

    def __rsub__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Sub, other, self)

    def __rmul__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Mul, other, self)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Div, other, self)

    def __rfloordiv__(self, other: Any) -> "Tensor":
        return self.apply(rounding.FloorDivide, other, self)

    def __rmod__(self, other: Any) -> "Tensor":
        return self.apply(rounding.Remainder, other, self)

    def __rpow__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Pow, other, self)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return self.apply(matmul.MatMul, other, self)

    def __neg__(self) -> "Tensor":
        """y = -x, elementwise."""
        return self.apply(pointwise.Neg, self)

    def __abs__(self) -> "Tensor":
        """y = |x|, elementwise."""
        return self.apply(pointwise.Abs, self)

    mul, floor_divide, remainder, pow, neg, abs, matmul = (
        __mul__, __floordiv__, __mod__, __pow__, __neg__, __abs__, __matmul__,
    )  # fmt: skip

    def add(self, other: Any, *, alpha: Any = 1) -> "Tensor":
        """y = x + alpha · other, elementwise."""
        return self + (other if alpha == 1 else other * alpha)

    def sub(self, other: Any, *, alpha: Any = 1) -> "Tensor":
        """y = x - alpha · other, elementwise."""
        return self - (other if alpha == 1 else other * alpha)

    def div(self, other: Any, *, rounding_mode: str | None = None) -> "Tensor":
        """y = x / other, elementwise; rounding_mode "floor": `x // other`, "trunc": rounded towards 0, gradient 0."""
        if rounding_mode is None:
            return self / other
        if rounding_mode == "floor":
            return self // other
        if rounding_mode != "trunc":
            raise ValueError(f'div: rounding_mode must be None, "floor" or "trunc", got {rounding_mode!r}')
        return self.apply(rounding.TruncDivide, self, other)

    multiply, negative, absolute, subtract, divide, true_divide = __mul__, __neg__, __abs__, sub, div, __truediv__

    # In place: `x += y` changes the Tensor itself, so every reference to the Tensor sees the new values --------------

    def __iadd__(self, other: Any) -> "Tensor":
        return self._in_place("+=", operator.add, other)

    def __isub__(self, other: Any) -> "Tensor":
        return self._in_place("-=", operator.sub, other)

    def __imul__(self, other: Any) -> "Tensor":
        return self._in_place("*=", operator.mul, other)

    def __itruediv__(self, other: Any) -> "Tensor":
        return self._in_place("/=", operator.truediv, other)

    def __ifloordiv__(self, other: Any) -> "Tensor":
        return self._in_place("//=", operator.floordiv, other)

    def __imod__(self, other: Any) -> "Tensor":
        return self._in_place("%=", operator.mod, other)

    def __ipow__(self, other: Any) -> "Tensor":
        return self._in_place("**=", operator.pow, other)

    def __iand__(self, other: Any) -> "Tensor":
        return self._in_place("&=", operator.and_, other)

    def __ior__(self, other: Any) -> "Tensor":
        return self._in_place("|=", operator.or_, other)

    def __ixor__(self, other: Any) -> "Tensor":
        return self._in_place("^=", operator.xor, other)

    # Comparisons and bitwise operators: no gradient ------------------------------------------------------------------

    def __eq__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return NotImplemented if other is None or isinstance(other, str) else self._compared(operator.eq, other)

    def __ne__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return NotImplemented if other is None or isinstance(other, str) else self._compared(operator.ne, other)

    def __lt__(self, other: Any) -> "Tensor":
        return self._compared(operator.lt, other)

    def __le__(self, other: Any) -> "Tensor":
        return self._compared(operator.le, other)

    def __gt__(self, other: Any) -> "Tensor":
        return self._compared(operator.gt, other)

    def __ge__(self, other: Any) -> "Tensor":
        return self._compared(operator.ge, other)

    def __invert__(self) -> "Tensor":
        return self.constant(~self.data)

    def __and__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.and_, other)

    def __or__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.or_, other)

    def __xor__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.xor, other)

    def __lshift__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.lshift, other)

    def __rshift__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.rshift, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__
    eq, ne, lt, le, gt, ge = __eq__, __ne__, __lt__, __le__, __gt__, __ge__
    not_equal, less, less_equal, greater, greater_equal = ne, lt, le, gt, ge
    bitwise_and, bitwise_or, bitwise_xor, bitwise_not = __and__, __or__, __xor__, __invert__

    def _compared(self, compare: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        """`compare` of both operands, promoted to one dtype. A Python integer out of the dtype's range is exact."""
        x, y = self.data, raw(other)
        if getattr(y, "dtype", None) != x.dtype:
            x, y = promote([x, y])
            if isinstance(y, int) and x.dtype.kind in "iu" and not is_held(y, x.dtype):
                x = x.astype(np.int64)  # so that CuPy too compares correctly
        return self.constant(compare(x, y))

    def _bitwise(self, combine: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        """`combine` of both operands, promoted to one dtype."""
        return self.constant(combine(*promote_and_wrap([self.data, raw(other)])))

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).data.any())

    __hash__ = object.__hash__  # by identity, as a dictionary key, although == compares elements
