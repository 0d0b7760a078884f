"""L2: attention within windows, a few images at a time."""

from typing import Any

import numpy as np

from minigrad.backend import Array
from minigrad.kernels.cpu.pieces import is_float32, some_rows
from minigrad.kernels.twins import twin_of
from minigrad.ops import window_attention


@twin_of(window_attention.WindowAttention)
class WindowAttention(window_attention.WindowAttention):
    """The same formula on as many images at a time as stay in the cache while they are cut, attended and joined.

    Shapes: qkv (B, H, W, 3C), bias (heads, N, N), y (B, H, W, C).  Saves for each piece what the specification does.
    """

    @staticmethod
    def takes(qkv: Array, bias: Array | None, *, dropout_p: float, **choices: Any) -> bool:
        return is_float32(qkv) and qkv.ndim == 4 and len(list(some_rows(len(qkv), qkv[:1].size))) > 1 and not dropout_p

    def forward(self, qkv: Array, bias: Array | None, **choices: Any) -> Array:
        self.pieces = []
        y = None
        for some in some_rows(len(qkv), qkv[0].size):
            op = window_attention.WindowAttention()
            op.needs_input_grad = self.needs_input_grad
            part = op.forward(qkv[some], bias, **choices)
            y = np.empty((len(qkv), *part.shape[1:]), np.float32) if y is None else y
            y[some] = part
            self.pieces.append((some, op))
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        want_qkv, want_bias = self.needs_input_grad
        B, H, W, C = grad_output.shape
        grad_qkv = np.empty((B, H, W, 3 * C), np.float32) if want_qkv else None
        grad_bias = None
        for some, op in self.pieces:
            part, of_bias = op.backward(grad_output[some])
            if grad_qkv is not None:
                grad_qkv[some] = part
            if want_bias:
                grad_bias = of_bias if grad_bias is None else grad_bias + of_bias
        return grad_qkv, grad_bias
