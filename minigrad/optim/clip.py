"""L5: gradient clipping."""

from collections.abc import Iterable

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.backend import fast_paths
from minigrad.ops import checks
from minigrad.ops.updates import clip_by_global_norm


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients, in place, so that their norm as one vector is at most `max_norm`.

    Does not synchronize with the GPU, so a CUDA graph can contain this function.

    Returns:
        The norm before clipping, a 0-d Tensor of the gradients' dtype; for several dtypes the widest, at least float32.
        If the norm is not finite in float64, the gradients are not changed.
    """
    max_norm = checks.scalar(max_norm, "max_norm", "clip_grad_norm_")
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: max_norm must be above 0, got {max_norm}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [p.grad.data for p in parameters if p.grad is not None]
    if not grads:
        return Tensor(0.0)
    writes.note(grads)
    return Tensor(fast_paths.call(clip_by_global_norm, grads, max_norm))
