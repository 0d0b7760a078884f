"""L2: scaled dot-product attention."""

from collections.abc import Sequence

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, device_of, gemm
from minigrad.backend.random import default_generator
from minigrad.backend.sums import sum_over
from minigrad.ops import checks
from minigrad.ops.shape import stacked_view


class ScaledDotProductAttention(Function):
    """y = P v,  P = softmax(Z) of each row,  Z = scale · q kᵀ + bias.  Vaswani et al. 2017, arXiv:1706.03762.

        ∂v = Pᵀ ∂y,   ∂P = ∂y vᵀ,   ∂Z = P ⊙ (∂P - ⟨∂P, P⟩),   ∂bias = ∂Z,   ⟨·,·⟩ the inner product of each row
        ∂q = scale · ∂Z k,   ∂k = scale · ∂Zᵀ q

    `mask` is boolean (True: the query may attend to the key), or a float bias that is added to the scores (such as
    Swin's relative position bias), which has a gradient. The mask is broadcast to the scores Z, never the scores to the
    mask. A query that may attend to no key gets zeros. Dropout with probability p draws a mask M of zeros and ones:
    P ⊙ M / (1 - p) replaces P in y and ∂v, and ∂P ⊙ M / (1 - p) replaces ∂P.

    Shapes: q (..., L, E), k (..., S, E), v (..., S, V), Z, P, M (..., L, S), y (..., L, V), leading axes broadcast.
    Saves q, k, v, P, and M / (1 - p) of the dropout.
    """

    def forward(
        self, q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, is_causal: bool, dropout_p: float
    ) -> Array:
        checks.floating(q, "attention")
        if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
            raise ValueError(
                "attention: needs queries (..., L, E), keys (..., S, E) and values (..., S, V): "
                f"got {q.shape}, {k.shape} and {v.shape}"
            )
        xp = array_module(q)
        scores = gemm(q, k.swapaxes(-1, -2))  # (..., L, E) (..., E, S) -> (..., L, S)
        scores *= scale
        L, S = scores.shape[-2:]
        if is_causal:
            if mask is not None:
                raise ValueError("attention: give a mask or is_causal=True, not both")
            mask = xp.tri(L, S, dtype=bool)
        if mask is not None:
            full = (*np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2]), L, S)
            if not broadcasts_to(mask.shape, full):
                raise ValueError(f"attention: the mask must broadcast to (..., L, S), here {full}, got {mask.shape}")
            if mask.dtype == bool:
                scores = xp.where(mask, scores, -xp.inf)
            elif mask.dtype.kind == "f":
                scores = scores + mask.astype(scores.dtype, copy=False)
            else:
                raise TypeError(
                    f"attention: the mask must be boolean, or floating-point and added to the scores, got {mask.dtype}"
                )
        self.probs = softmax_(scores)
        self.q, self.k, self.v, self.scale, self.keep = q, k, v, scale, None
        if dropout_p:
            M = default_generator().uniform(scores.shape, device=device_of(q), axis=0) >= dropout_p
            self.keep = M.astype(q.dtype) * (1 / (1 - dropout_p) if dropout_p < 1 else 0.0)
        return gemm(self.probs if self.keep is None else self.probs * self.keep, v)

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        want_q, want_k, want_v, want_mask = self.needs_input_grad
        grad_q = grad_k = grad_v = grad_scores = None
        if want_v:
            used = self.probs if self.keep is None else self.probs * self.keep
            grad_v = gemm(used.swapaxes(-1, -2), grad_output)
        if want_q or want_k or want_mask:
            grad_probs = gemm(grad_output, self.v.swapaxes(-1, -2))
            if self.keep is not None:
                grad_probs *= self.keep
            along = sum_over(grad_probs * self.probs, -1, keepdims=True)
            grad_scores = grad_probs
            grad_scores -= along
            grad_scores *= self.probs
            if want_q:
                grad_q = gemm(grad_scores, self.k)
                grad_q *= self.scale
            if want_k:
                grad_k = gemm(grad_scores.swapaxes(-1, -2), self.q)
                grad_k *= self.scale
        return grad_q, grad_k, grad_v, grad_scores


def broadcasts_to(shape: Sequence[int], target: Sequence[int]) -> bool:
    """True if an array of shape `shape` can be broadcast to shape `target`."""
    aligned = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, target_size) for size, target_size in aligned)


def gradients_like(q: Array, k: Array, v: Array, wanted: Sequence[object]) -> list[Array | None]:
    """Empty arrays for ∂q, ∂k and ∂v (None if not wanted), in the memory layout of q, k and v.

    If q, k and v are views of one array (packed q, k, v), the gradients are views of one array too.
    """
    packed = stacked_view((q, k, v)) if all(wanted) else None
    if packed is not None and 0 not in packed.strides:
        return list(array_module(q).empty_like(packed))
    return [_empty_like(x) if want else None for x, want in zip((q, k, v), wanted, strict=True)]


def _empty_like(x: Array) -> Array:
    """An empty array in the memory order of x; in C order if x is an expanded view, with a stride of 0."""
    xp = array_module(x)
    return xp.empty(x.shape, x.dtype) if 0 in x.strides else xp.empty_like(x)


def softmax_(scores: Array) -> Array:
    """Softmax over the last axis, in place. A row in which every score is -∞ gives zeros."""
    xp = array_module(scores)
    if not scores.size:
        return scores
    largest = scores.max(axis=-1, keepdims=True)
    scores -= xp.where(xp.isneginf(largest), xp.zeros_like(largest), largest)
    xp.exp(scores, out=scores)
    total = sum_over(scores, -1, keepdims=True)
    scores /= xp.where(total == 0, xp.ones_like(total), total)
    return scores
