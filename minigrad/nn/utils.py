"""L5: gradient clipping, and parameters as one vector."""

from collections.abc import Iterable
from math import inf

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.backend import Array, array_module, fast_paths
from minigrad.functional import cat
from minigrad.ops import checks
from minigrad.ops.updates import clip_by_global_norm, global_norm, scale_to_norm


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients, in place, so that their norm as one vector is at most `max_norm`.

    Does not synchronize with the GPU, so a CUDA graph can contain this function.

    Args:
        norm_type: p of the norm (Σ |g|ᵖ)^(1/p); inf: the largest |g|.
        error_if_nonfinite: raise RuntimeError if the norm is infinite or NaN; synchronizes.
        foreach: no effect.

    Returns:
        The norm before clipping, a 0-d Tensor of the gradients' dtype; for several dtypes the widest, at least float32.
        If the norm is not finite in float64, the gradients are not changed.
    """
    max_norm, norm_type = checks.norm_arguments(max_norm, norm_type)
    grads = _gradients(parameters)
    if not grads:
        return Tensor(0.0)
    if error_if_nonfinite and not array_module(grads[0]).isfinite(norm := global_norm(grads, norm_type)):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {float(norm)}")
    writes.note(grads)
    if norm_type == 2:
        return Tensor(fast_paths.call(clip_by_global_norm, grads, max_norm))
    return Tensor(scale_to_norm(grads, global_norm(grads, norm_type), max_norm))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clamp all gradients, in place, to [-clip_value, clip_value]. `foreach` has no effect."""
    limit = checks.scalar(clip_value, "clip_value", "clip_grad_value_")
    if not 0 <= limit <= inf:
        raise ValueError(f"clip_grad_value_: clip_value must not be negative or NaN, got {limit}")
    grads = _gradients(parameters)
    for g in grads:
        g[...] = array_module(g).clip(g, -limit, limit)
    writes.note(grads)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters as one vector, in the order given."""
    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copy the elements of a vector into the parameters, in the order of `parameters_to_vector`."""
    parameters = list(parameters)
    count = sum(p.data.size for p in parameters)
    if vec.shape != (count,):
        raise ValueError(f"vector_to_parameters: needs a vector of {count} elements, got shape {vec.shape}")
    start = 0
    for p in parameters:
        p.data[...] = vec.data[start : start + p.data.size].reshape(p.shape)
        start += p.data.size
    writes.note(p.data for p in parameters)


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Array]:
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad.data for p in parameters if p.grad is not None]
