"""L2: AdamW, chunk by chunk."""

from typing import Any

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu import chunks
from minigrad.ops import updates

LARGE = 1 << 19  # elements of a parameter: below, x, g, m, v and the temporary arrays stay in the L3 cache anyway


def in_chunks(x: Array, g: Array, m: Array, v: Array, *options: Any, v_max: Array | None = None) -> bool:
    """True for large parameters whose arrays are contiguous, so that their chunks are views."""
    arrays = [a for a in (x, g, m, v, v_max) if a is not None]
    return x.size > LARGE and all(chunks.is_float32(a) and a.flags.c_contiguous for a in arrays)


@fast_path_of(updates.adamw, supports=in_chunks)
def adamw(x: Array, g: Array, m: Array, v: Array, *options: Any, v_max: Array | None = None) -> None:
    """One step of AdamW, in place: the reference implementation for each chunk."""
    for *arrays, v_max_chunk in chunks.chunks(x, g, m, v, v_max):
        updates.adamw(*arrays, *options, v_max=v_max_chunk)  # type: ignore[misc]  # options: t to weight_decay
