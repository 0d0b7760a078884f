"""L2: attention, a chunk of the batch at a time."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from minigrad.backend import Array, products
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.chunks import is_float32, ones, row_chunks
from minigrad.ops import attention

SMALL, LARGE = 1e-20, 1e30  # a sum of exponentials in between is not affected by over- or underflow


@fast_path_of(attention.ScaledDotProductAttention)
class CPUScaledDotProductAttention(attention.ScaledDotProductAttention):
    """The op's formula, for chunks of the first axis whose scores stay in the cache.

    Subtracting the maximum of each row against overflow is the slowest step of a softmax, and seldom needed. So this
    subtraction is left out; if the sum of exponentials of a row is then too large or too small, the chunk is computed
    again with `softmax_`. Dropout and boolean or causal masks are not supported.

    Shapes: q (B, ..., L, E), k (B, ..., S, E), v (B, ..., S, V); the mask broadcasts to (B, ..., L, S).
    Saves q, k, v, P.
    """

    @staticmethod
    def supports(
        q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, is_causal: bool, dropout_p: float
    ) -> bool:
        if is_causal or dropout_p or q.ndim < 3 or not all(is_float32(x) and x.size for x in (q, k, v)):
            return False
        same_lead = q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
        same_sizes = q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
        scores = (*q.shape[:-1], k.shape[-2])
        mask_fits = mask is None or (is_float32(mask) and attention.broadcasts_to(mask.shape, scores))
        return same_lead and same_sizes and mask_fits

    def forward(self, q: Array, k: Array, v: Array, mask: Array | None, **options: Any) -> Array:
        self.q, self.k, self.v, self.scale = q, k, v, options["scale"]
        self.shape = *q.shape[:-1], k.shape[-2]
        self.probs = np.empty(self.shape, np.float32) if any(self.needs_input_grad) else None
        y = np.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]))  # in the memory order of q
        for chunk, P in self._chunks(self.probs):
            self._scores(chunk, mask, P)
            with np.errstate(over="ignore"):
                np.exp(P, out=P)
                total = P.reshape(-1, P.shape[-1]) @ ones(P.shape[-1])
            if total.min() > SMALL and total.max() < LARGE:
                P /= total.reshape(*P.shape[:-1], 1)
            else:
                attention.softmax_(self._scores(chunk, mask, P))
            products.matmul(P, v[chunk], out=y[chunk])
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        q, k, v = self.q, self.k, self.v
        want_q, want_k, want_v, want_mask = self.needs_input_grad
        grad_q, grad_k, grad_v = attention.gradients_like(q, k, v, wanted=(want_q, want_k, want_v))
        grad_scores = np.empty_like(self.probs) if want_mask else None
        for chunk, S in self._chunks(grad_scores):
            P, grad_y = self.probs[chunk], grad_output[chunk]
            if grad_v is not None:
                products.matmul(P.swapaxes(-1, -2), grad_y, out=grad_v[chunk])
            products.matmul(grad_y, v[chunk].swapaxes(-1, -2), out=S)
            S -= np.vecdot(S, P)[..., None]
            S *= P
            if grad_q is not None:
                products.matmul(S, k[chunk], out=grad_q[chunk])
                grad_q[chunk] *= self.scale
            if grad_k is not None:
                products.matmul(S.swapaxes(-1, -2), q[chunk], out=grad_k[chunk])
                grad_k[chunk] *= self.scale
        return grad_q, grad_k, grad_v, grad_scores

    def _scores(self, chunk: slice, mask: Array | None, out: Array) -> Array:
        """scale · q kᵀ + mask of a chunk, in `out`."""
        products.matmul(self.q[chunk], self.k[chunk].swapaxes(-1, -2), out=out)
        out *= self.scale
        if mask is not None:
            out += mask[chunk] if mask.ndim == self.q.ndim and len(mask) > 1 else mask
        return out

    def _chunks(self, x: Array | None) -> Iterator[tuple[slice, Array]]:
        """Chunks of the batch axis, each with an array for its scores: x[chunk], or if x is None a reused scratch
        array."""
        B, *rest = self.shape
        chunks = list(row_chunks(B, prod(rest)))
        scratch: Array = np.empty((min(chunks[0].stop, B), *rest), np.float32) if x is None else None
        for chunk in chunks:
            yield chunk, scratch[: B - chunk.start] if x is None else x[chunk]
