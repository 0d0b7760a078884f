"""L2: attention within windows, a few images at a time."""

from typing import Any

import numpy as np

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.chunks import CHUNK, is_float32, row_chunks
from minigrad.ops import window_attention


class Piece(window_attention.WindowAttention):
    """The specification on some images, which puts them where they belong: `to`, (images, H, W, C).

    What is added to the scores is the same for all pieces, and is made by the first.
    """

    to: Array
    added: list[Array | None]

    def mask(self, qkv: Array, bias: Array | None) -> Array | None:
        if not self.added:
            self.added.append(super().mask(qkv, bias))
        return self.added[0]

    def uncut(self, windows: Array, C: int) -> Array:
        B, H, W, _ = self.shape
        places = window_attention.map_places(H, W, *self.windows)
        # (Without a mode, NumPy would make the result elsewhere and copy it.)
        np.take(windows.reshape(B, H * W, C), places, axis=1, out=self.to.reshape(B, H * W, C), mode="clip")
        return self.to


@fast_path_of(window_attention.WindowAttention)
class CPUWindowAttention(window_attention.WindowAttention):
    """The same formula on as many images at a time as stay in the cache while they are cut, attended and joined.

    Shapes: qkv (B, H, W, 3C), bias (heads, N, N), y (B, H, W, C).  Saves for each piece what the specification does.
    """

    @staticmethod
    def supports(qkv: Array, bias: Array | None, *, dropout_p: float, **options: Any) -> bool:
        return is_float32(qkv) and qkv.ndim == 4 and qkv.size > CHUNK and len(qkv) > 1 and not dropout_p

    def forward(self, qkv: Array, bias: Array | None, **options: Any) -> Array:
        y = np.empty((*qkv.shape[:3], qkv.shape[3] // 3), np.float32)
        self.pieces = []
        added: list[Array | None] = []
        for some in row_chunks(len(qkv), qkv[0].size):
            piece = Piece()
            piece.needs_input_grad, piece.to, piece.added = self.needs_input_grad, y[some], added
            piece.forward(qkv[some], bias, **options)
            self.pieces.append((some, piece))
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        want_qkv, want_bias = self.needs_input_grad
        B, H, W, C = grad_output.shape
        grad_qkv = np.empty((B, H, W, 3 * C), np.float32) if want_qkv else None
        grad_bias = None
        for some, piece in self.pieces:
            piece.to = None if grad_qkv is None else grad_qkv[some]
            _, of_piece = piece.backward(grad_output[some])
            if want_bias:
                grad_bias = of_piece if grad_bias is None else grad_bias + of_piece
        return grad_qkv, grad_bias
