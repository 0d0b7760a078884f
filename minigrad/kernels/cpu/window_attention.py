"""L2: attention within windows, a few images at a time."""

from typing import Any

import numpy as np

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.chunks import CHUNK, is_float32, row_chunks
from minigrad.ops import window_attention


class Chunk(window_attention.WindowAttention):
    """The reference implementation on a few images, with its result written to `out`, (images, H, W, C).

    `masks` is a list that all chunks share: the first chunk computes the mask and appends it.
    """

    out: Array
    masks: list[Array | None]

    def mask(self, qkv: Array, bias: Array | None) -> Array | None:
        if not self.masks:
            self.masks.append(super().mask(qkv, bias))
        return self.masks[0]

    def merge(self, windows: Array, C: int) -> Array:
        B, H, W, _ = self.shape
        places = window_attention.map_places(H, W, *self.windows)
        # In the default mode, NumPy writes into a buffer and copies it to `out`.
        np.take(windows.reshape(B, H * W, C), places, axis=1, out=self.out.reshape(B, H * W, C), mode="clip")
        return self.out


@fast_path_of(window_attention.WindowAttention)
class CPUWindowAttention(window_attention.WindowAttention):
    """The op's formula, for chunks of images that stay in the cache from partitioning to merging.

    Shapes: qkv (B, H, W, 3C), bias (heads, N, N), y (B, H, W, C).  Saves the reference's arrays for each chunk.
    """

    @staticmethod
    def supports(qkv: Array, bias: Array | None, *, dropout_p: float, **options: Any) -> bool:
        return is_float32(qkv) and qkv.ndim == 4 and qkv.size > CHUNK and len(qkv) > 1 and not dropout_p

    def forward(self, qkv: Array, bias: Array | None, **options: Any) -> Array:
        y = np.empty((*qkv.shape[:3], qkv.shape[3] // 3), np.float32)
        self.chunks = []
        masks: list[Array | None] = []
        for images in row_chunks(len(qkv), qkv[0].size):
            chunk = Chunk()
            chunk.needs_input_grad, chunk.out, chunk.masks = self.needs_input_grad, y[images], masks
            chunk.forward(qkv[images], bias, **options)
            self.chunks.append((images, chunk))
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        want_qkv, want_bias = self.needs_input_grad
        B, H, W, C = grad_output.shape
        grad_qkv = np.empty((B, H, W, 3 * C), np.float32) if want_qkv else None
        grad_bias = None
        for images, chunk in self.chunks:
            chunk.out = None if grad_qkv is None else grad_qkv[images]
            _, grad = chunk.backward(grad_output[images])
            if want_bias:
                grad_bias = grad if grad_bias is None else grad_bias + grad
        return grad_qkv, grad_bias
