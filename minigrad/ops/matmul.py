"""L2: matrix products."""

from math import prod

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, gemm, gemm_and_sums
from minigrad.backend.dtypes import is_half
from minigrad.backend.sums import sum_over


class MatMul(Function):
    """y = a b over the last two axes; other axes broadcast;  ∂a = ∂y bᵀ,  ∂b = aᵀ ∂y.

    A 1-D a is treated as a row, a 1-D b as a column, and the added axis is removed from y.

    Shapes: a (..., M, K), b (..., K, N), y (..., M, N).  Saves b if ∂a is wanted, a if ∂b is.
    """

    def forward(self, a: Array, b: Array) -> Array:
        if not a.ndim or not b.ndim or a.shape[-1] != b.shape[0 if b.ndim == 1 else -2]:
            raise ValueError(
                f"matmul: the last axis of a must be as long as the second to last axis of b (a 1-D b: its only axis): "
                f"got shapes {a.shape} and {b.shape}"
            )
        want_a, want_b = self.needs_input_grad
        self.a_ndim, self.b_ndim = a.ndim, b.ndim
        self.a, self.b = a if want_b else None, b if want_a else None
        return gemm(a, b)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        if self.a_ndim == 1:
            grad_output = grad_output[..., None, :] if self.b_ndim > 1 else grad_output[None]
        if self.b_ndim == 1:
            grad_output = grad_output[..., None]
        grad_a = grad_b = None  # grad_output is (..., M, N) now
        if self.b is not None:
            b = self.b if self.b_ndim > 1 else self.b[:, None]
            grad_a = gemm(grad_output, b.swapaxes(-1, -2))
            if self.a_ndim == 1:
                grad_a = grad_a[..., 0, :]
        if self.a is not None:
            a = self.a if self.a_ndim > 1 else self.a[None]
            if self.b_ndim <= 2 < a.ndim:  # the same b for all matrices of the batch: one product sums over the batch
                a, grad_output = rows(a), rows(grad_output)
            grad_b = gemm(a.swapaxes(-1, -2), grad_output, dtype=self.grad_dtype(1, a.dtype))
            if self.b_ndim == 1:
                grad_b = grad_b[..., 0]
        return grad_a, grad_b


class Linear(Function):
    """y = x Wᵀ + b;  ∂x = ∂y W,  ∂W = ∂yᵀ x,  ∂b = Σ ∂y over all rows.

    Shapes: x (..., D), W (O, D), b (O,), y (..., O).  Saves W if ∂x is wanted, x if ∂W is.
    """

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"linear: the weight must be (out_features, in_features) with in_features = the last axis of x: "
                f"x has shape {x.shape}, the weight {weight.shape}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"linear: the bias must have shape {weight.shape[:1]} to fit the weight, got {bias.shape}")
        want_x, want_weight, *_ = self.needs_input_grad
        self.x, self.weight = x if want_weight else None, weight if want_x else None
        y = gemm(rows(x), weight.T, bias=bias)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        grad_rows = rows(grad_output)
        grad_x = grad_weight = grad_bias = None
        if self.weight is not None:
            grad_x = gemm(grad_rows, self.weight).reshape(*grad_output.shape[:-1], self.weight.shape[1])
        want_bias, bias_dtype = self.needs_input_grad[2], self.grad_dtype(2, grad_rows.dtype)
        if self.x is not None:
            dtype = self.grad_dtype(1, self.x.dtype)
            if want_bias and dtype == bias_dtype:
                grad_weight, grad_bias = gemm_and_sums(grad_rows.T, rows(self.x), dtype=dtype)
            else:
                grad_weight = gemm(grad_rows.T, rows(self.x), dtype=dtype)
        if want_bias and grad_bias is None:
            grad_bias = sum_of_rows(grad_rows, bias_dtype)
        return grad_x, grad_weight, grad_bias


def sum_of_rows(x: Array, dtype: np.dtype) -> Array:
    """Σ over the rows of a matrix. A 16-bit x is multiplied by a row of ones, with sums in float32 and the result in
    `dtype`: on a GPU this needs no copy of x in float32."""
    if not is_half(x.dtype):
        return sum_over(x, 0)
    return gemm(array_module(x).ones((1, len(x)), x.dtype), x, dtype=dtype)[0]


def rows(x: Array) -> Array:
    """x as a matrix, with all axes but the last merged: (..., D) -> (·, D)."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])
