"""L2: attention, a few images at a time."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.chunks import is_float32, ones, row_chunks
from minigrad.ops import attention

SMALL, LARGE = 1e-20, 1e30  # a sum of exponentials between them has lost nothing


@fast_path_of(attention.ScaledDotProductAttention)
class CPUScaledDotProductAttention(attention.ScaledDotProductAttention):
    """The same formula, on as many entries of the first axis at a time as keep their scores in the cache.

    The largest score of a row, subtracted against overflow, is the slowest step of a softmax, and seldom needed: it
    is left out, and where a row's sum then comes out too large or too small, that piece is done again by the
    specification's formula. Without dropout, and without the causal mask.

    Shapes: q (B, ..., L, E), k (B, ..., S, E), v (B, ..., S, V); the mask broadcasts to (B, ..., L, S).
    Saves q, k, v, P.
    """

    @staticmethod
    def supports(
        q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, is_causal: bool, dropout_p: float
    ) -> bool:
        if is_causal or dropout_p or q.ndim < 3 or not all(is_float32(x) and x.size for x in (q, k, v)):
            return False
        alike = q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
        fitting = q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
        scores = (*q.shape[:-1], k.shape[-2])
        masked = mask is None or (is_float32(mask) and attention.broadcasts_to(mask.shape, scores))
        return alike and fitting and masked

    def forward(self, q: Array, k: Array, v: Array, mask: Array | None, **options: Any) -> Array:
        self.q, self.k, self.v, self.scale = q, k, v, options["scale"]
        self.shape = *q.shape[:-1], k.shape[-2]
        self.probs = np.empty(self.shape, np.float32) if any(self.needs_input_grad) else None
        y = np.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]))  # in memory, axes in the order of q's
        for some, P in self._pieces_of(self.probs):
            self._scores(some, mask, P)
            with np.errstate(over="ignore"):
                np.exp(P, out=P)
            total = P.reshape(-1, P.shape[-1]) @ ones(P.shape[-1])
            if total.min() > SMALL and total.max() < LARGE:
                P /= total.reshape(*P.shape[:-1], 1)
            else:
                attention.softmax_(self._scores(some, mask, P))
            np.matmul(P, v[some], out=y[some])
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        q, k, v = self.q, self.k, self.v
        want_q, want_k, want_v, want_mask = self.needs_input_grad
        grad_q, grad_k, grad_v = attention.gradients_like(q, k, v, wanted=(want_q, want_k, want_v))
        grad_scores = np.empty_like(self.probs) if want_mask else None
        for some, S in self._pieces_of(grad_scores):
            P, grad_y = self.probs[some], grad_output[some]
            if grad_v is not None:
                np.matmul(P.swapaxes(-1, -2), grad_y, out=grad_v[some])
            np.matmul(grad_y, v[some].swapaxes(-1, -2), out=S)
            S -= np.vecdot(S, P)[..., None]
            S *= P
            if grad_q is not None:
                np.matmul(S, k[some], out=grad_q[some])
                grad_q[some] *= self.scale
            if grad_k is not None:
                np.matmul(S.swapaxes(-1, -2), q[some], out=grad_k[some])
                grad_k[some] *= self.scale
        return grad_q, grad_k, grad_v, grad_scores

    def _scores(self, some: slice, mask: Array | None, out: Array) -> Array:
        """scale · q kᵀ + mask of a piece."""
        np.matmul(self.q[some], self.k[some].swapaxes(-1, -2), out=out)
        out *= self.scale
        if mask is not None:
            out += mask[some] if mask.ndim == self.q.ndim and len(mask) > 1 else mask
        return out

    def _pieces_of(self, x: Array | None) -> Iterator[tuple[slice, Array]]:
        """Which entries of the first axis, and room for their scores: a part of x, or the same memory every time."""
        B, *rest = self.shape
        pieces = list(row_chunks(B, prod(rest)))
        room: Array = np.empty((min(pieces[0].stop, B), *rest), np.float32) if x is None else x
        for some in pieces:
            yield some, room[: B - some.start] if x is None else room[some]
