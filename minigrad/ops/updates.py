"""L2: the arithmetic of an optimizer step, on arrays: optimizers, gradient clipping, unscaling, EMA, flat copies.

Every function writes in place. x is a parameter and g its gradient; x, g and the state have one dtype, float32 or
float64: for a 16-bit parameter, `minigrad/optim/` passes float32 copies. (Fast paths: `kernels/cpu/optim.py` and
`kernels/cuda/optim.py`.)
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf, prod, sqrt
from typing import Any, TypeAlias

import numpy as np

from minigrad.backend import Array, array_module, gemm
from minigrad.backend.capture import is_capturing
from minigrad.backend.dtypes import FLOAT32, cast, is_half, upcast
from minigrad.backend.fast_paths import with_fast_paths

Update: TypeAlias = tuple[Array, Array, dict[str, Any], Mapping[str, Any]]
"""The arguments of one parameter's update: x, g, the state of the parameter, and the options of its parameter group."""


def sgd(
    x: Array, grad: Array, v: Array | None,
    lr: float, momentum: float, weight_decay: float, nesterov: bool, dampening: float = 0.0,
) -> None:  # fmt: skip
    """One step of stochastic gradient descent with momentum.  Sutskever et al. 2013.

        g = ∂x + weight_decay · x,    v <- momentum · v + g
        x <- x - lr · v               with `nesterov`: x <- x - lr · (g + momentum · v)

    v is 0 at first; None without momentum. With `dampening`, v <- momentum · v + (1 - dampening) · g.
    """
    g = with_l2(x, grad, weight_decay)
    step = g
    if v is not None:
        v *= momentum
        v += (1 - dampening) * g if dampening else g
        step = g + momentum * v if nesterov else v
    del g  # lr · step reuses its memory
    x -= lr * step


@with_fast_paths
def adamw(
    x: Array, g: Array, m: Array, v: Array, t: int,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, v_max: Array | None = None,
) -> None:  # fmt: skip
    """Step t = 1, 2, ... of Adam with decoupled weight decay.  Loshchilov and Hutter 2017, arXiv:1711.05101.

        m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
        x <- (1 - lr · weight_decay) x - lr · m̂ / (√v̂ + eps),    m̂ = m / (1 - β₁ᵗ),   v̂ = v / (1 - β₂ᵗ)

    With v_max (amsgrad), v_max <- max(v_max, v) replaces v in v̂.  Reddi et al. 2018, arXiv:1904.09237.

    m, v and v_max are 0 at first.
    """
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    square = g * g
    square *= 1 - beta2
    v += square
    x *= 1 - lr * weight_decay
    xp = array_module(x)
    if v_max is not None:
        v = xp.maximum(v_max, v, out=v_max)
    denominator = xp.sqrt(v, out=xp.empty_like(v))
    denominator *= 1 / sqrt(1 - beta2**t)
    denominator += eps
    step = xp.divide(m, denominator, out=denominator)
    step *= lr / (1 - beta1**t)
    x -= step


def adamw_all(updates: Sequence[Update]) -> None:
    """`adamw` of each parameter. The state holds "m", "v" and "step", the number of steps before this one.

    With the option amsgrad, the state holds "v_max" too.

    Raises:
        RuntimeError: the step is being captured. t and lr would be constants of the graph.
    """
    if updates and is_capturing():
        x = updates[0][0]
        raise RuntimeError(
            "AdamW: a CUDA graph can capture only the CUDA fast path, which supports contiguous float32 parameters and "
            f"gradients, without amsgrad, got {x.dtype} {x.shape}: the reference implementation would make the "
            "learning rate a constant"
        )
    for x, g, state, options in updates:
        state["step"] = t = state["step"] + 1
        beta1, beta2 = map(float, options["betas"])
        lr, eps, weight_decay = float(options["lr"]), float(options["eps"]), float(options["weight_decay"])
        v_max = state["v_max"] if options.get("amsgrad") else None
        adamw(x, g, state["m"], state["v"], t, lr, beta1, beta2, eps, weight_decay, v_max=v_max)


def with_l2(x: Array, grad: Array, weight_decay: float) -> Array:
    """g = ∂x + weight_decay · x, the gradient of loss + weight_decay/2 · ‖x‖²."""
    return grad + weight_decay * x if weight_decay else grad


def rmsprop(
    x: Array, grad: Array, v: Array, m: Array | None, b: Array | None,
    lr: float, alpha: float, eps: float, weight_decay: float, momentum: float,
) -> None:  # fmt: skip
    """One step of RMSprop, with α = alpha and μ = momentum.

        g = ∂x + weight_decay · x,    v <- α v + (1 - α) g²
        u = g / (√v + eps)                     with m:  m <- α m + (1 - α) g,  u = g / (√(v - m²) + eps)
        x <- x - lr · u                        with b:  b <- μ b + u,          x <- x - lr · b

    v, m and b are 0 at first; m is None if not centered, b without momentum.
    """
    g = with_l2(x, grad, weight_decay)
    v *= alpha
    v += (1 - alpha) * g * g
    variance = v
    if m is not None:
        m += (1 - alpha) * (g - m)
        variance = v - m * m
    u = g / (array_module(x).sqrt(variance) + eps)
    if b is not None:
        b *= momentum
        b += u
        u = b
    x -= lr * u


def adagrad(x: Array, grad: Array, s: Array, lr: float, eps: float, weight_decay: float) -> None:
    """One step of Adagrad:  g = ∂x + weight_decay · x,   s <- s + g²,   x <- x - lr · g / (√s + eps)"""
    g = with_l2(x, grad, weight_decay)
    s += g * g
    x -= lr * g / (array_module(x).sqrt(s) + eps)


_A, _B, _C = 3.4445, -4.7750, 2.0315  # a, b, c of `orthogonalize`


def orthogonalize(G: Array, steps: int = 5, eps: float = 1e-7) -> Array:
    """Approximately U Vᵀ of the SVD G = U S Vᵀ: all singular values become about 1. (A, B) -> (A, B).

    An SVD is slow on a GPU, matrix products are fast, so the Newton-Schulz iteration replaces the SVD:

        X <- G / ‖G‖                                              now no singular value is above 1
        X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X                       `steps` times

    The iteration keeps U and V, and maps each singular value σ <- a σ + b σ³ + c σ⁵. With these a, b, c, five steps map
    σ from 0.005 to 1 into 0.68 to 1.16: σ does not converge to 1, but small σ grow fastest.

    ‖G‖² is summed in float64, where no square of a float32 overflows; a 16-bit G is upcast to float32.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon.
    """
    (G32,), xp = upcast([G]), array_module(G)
    wide = G.shape[0] <= G.shape[1]
    X = G32 if wide else G32.T  # X Xᵀ is the smaller product then
    norm = xp.sqrt(xp.square(X, dtype=np.float64).sum())
    X = (X / xp.maximum(norm, float(eps))).astype(X.dtype)
    for _ in range(steps):
        XX = gemm(X, X.T)
        X = _A * X + gemm(_B * XX + _C * gemm(XX, XX), X)
    return cast(X if wide else X.T, G.dtype)


def muon(x: Array, g: Array, m: Array, lr: float, momentum: float, weight_decay: float) -> None:
    """One step of Muon for a matrix x (A, B), or filters x (A, ...), with μ the momentum.  Jordan et al. 2024.

        m <- μ m + (1 - μ) g,    u = μ m + (1 - μ) g
        x <- (1 - lr · weight_decay) x - lr · 0.2 √max(A, B) · orthogonalize(u)

    m is 0 at first. Gradients of matrices are nearly low-rank; an orthogonal update is equally large in all
    directions. The elements of an orthogonal matrix have a root mean square of about 1/√max(A, B), so the factor
    0.2 √max(A, B) makes the update about as large as an update of AdamW (Liu et al. 2025, arXiv:2502.16982).
    Filters are a matrix with a row for each output channel: B is the number of inputs of an output.
    """
    m *= momentum
    m += (1 - momentum) * g
    x *= 1 - lr * weight_decay
    u = momentum * m + (1 - momentum) * g
    u = u.reshape(len(u), prod(u.shape[1:]))  # (A, ...) -> (A, B)
    x -= lr * 0.2 * sqrt(max(u.shape)) * orthogonalize(u).reshape(x.shape)


def clip_by_global_norm(grads: Sequence[Array], max_norm: float) -> Array:
    """Scale gradients so that the norm of all of them, as one vector, is at most `max_norm`. Does not synchronize.

        ‖g‖ = √Σ g²,    g <- min(max_norm / (‖g‖ + 1e-6), 1) · g         if ‖g‖ is finite

    Squares are summed in float64, where no square of a float32 overflows or vanishes; 16-bit gradients are scaled in
    float32. Returns ‖g‖, a 0-d array of the gradients' dtype; for several dtypes the widest, at least float32.
    """
    return scale_to_norm(grads, global_norm(grads), max_norm)


def global_norm(grads: Sequence[Array], p: float = 2.0) -> Array:
    """(Σ |g|ᵖ)^(1/p) of all elements of all gradients, p = ∞: the largest |g|; a 0-d float64 array."""
    return norm_of_terms([norm_term(g, p) for g in grads], p)


def norm_term(g: Array, p: float) -> Array:
    """The term of one gradient in `global_norm`: Σ |g|ᵖ, p = ∞: the largest |g|; a 0-d float64 array."""
    row, xp = g.reshape(1, g.size).astype(np.float64), array_module(g)
    if p == 2:
        return gemm(row, row.T).reshape(())
    if p == inf:
        return xp.asarray(abs(row).max()) if g.size else xp.zeros(())
    return xp.asarray((abs(row) ** p).sum())


def norm_of_terms(terms: Sequence[Array], p: float) -> Array:
    """`global_norm`, from the terms of the gradients."""
    xp = array_module(terms[0])
    if p == inf:
        return xp.stack(terms).max()
    return xp.asarray(xp.sqrt(sum(terms)) if p == 2 else sum(terms) ** (1 / p))


def scale_to_norm(grads: Sequence[Array], norm: Array, max_norm: float) -> Array:
    """Scale gradients of this `norm` so that the norm is at most `max_norm`, as in `clip_by_global_norm`."""
    xp = array_module(grads[0])
    factor = xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1), 1)
    for g in grads:
        if is_half(g.dtype):
            g[...] = cast(cast(g, FLOAT32) * factor.astype(FLOAT32), g.dtype)
        else:
            g *= factor.astype(g.dtype)
    dtypes = {g.dtype for g in grads}
    widest = np.result_type(FLOAT32, *(dtype for dtype in dtypes if not is_half(dtype)))
    return cast(norm, grads[0].dtype if len(dtypes) == 1 else widest)


def unscale(grads: Sequence[Array], factor: float) -> Array:
    """g <- factor · g, with factor = 1/S for a loss scaled by S.  Micikevicius et al. 2017, arXiv:1710.03740.

    16-bit gradients are multiplied in float32: in float16, 1/S itself may be 0. Returns whether all results are finite,
    a 0-d bool array.
    """
    finite = np.True_
    for g in grads:
        if factor != 1 and is_half(g.dtype):
            g[...] = cast(cast(g, FLOAT32) * factor, g.dtype)
        elif factor != 1:
            g *= factor
        finite = array_module(g).isfinite(g).all() & finite
    return finite


def average(ema: Array, x: Array, rest: float) -> None:
    """ema <- decay · ema + (1 - decay) · x = ema + rest · (x - ema), with rest = 1 - decay.

    In float32, decay and 1 - decay are rounded and do not sum to 1: with decay = 0.9999, the first form would give the
    average of a constant an error of 0.02 %. For a 16-bit x, ema is float32.
    """
    change = cast(x, ema.dtype) - ema
    change *= rest
    ema += change


def average_all(pairs: Sequence[tuple[Array, Array]], next_rest: Callable[[], float]) -> None:
    """`average` of each pair (ema, x). `next_rest` returns 1 - decay of the next step, and is called once.

    Raises:
        RuntimeError: the step is being captured. The decay would be a constant of the graph.
    """
    if pairs and is_capturing():
        ema, x = pairs[0]
        raise RuntimeError(
            "EMA: a CUDA graph can capture only the CUDA fast path, which supports contiguous float32 arrays, got "
            f"{x.dtype} {x.shape} with an average in {ema.dtype}: the reference implementation would make the decay "
            "a constant"
        )
    rest = next_rest()
    for ema, x in pairs:
        average(ema, x, rest)


def copy_all(pairs: Sequence[tuple[Array, Array]], divisor: float = 1.0) -> None:
    """out <- x / divisor for each pair (out, x): gradients of many parameters into one flat array."""
    for out, x in pairs:
        if divisor == 1:
            out[...] = x
        else:
            array_module(x).divide(x, x.dtype.type(divisor), out=out)
