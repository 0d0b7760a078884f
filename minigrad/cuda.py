"""L1: the GPU of this process, with the names of torch.cuda. CUDA graphs: `minigrad.cuda_graph`."""

from minigrad.backend import cuda_is_available, cupy_module
from minigrad.backend.random import manual_seed

__all__ = ["device_count", "empty_cache", "is_available", "manual_seed", "manual_seed_all", "synchronize"]

manual_seed_all = manual_seed


def is_available() -> bool:
    """True if CuPy is installed and finds a GPU."""
    return cuda_is_available()


def device_count() -> int:
    """The number of GPUs that minigrad uses: 0 or 1."""
    return int(cuda_is_available())


def synchronize() -> None:
    """Wait until the GPU has finished all work."""
    cupy_module().cuda.Device().synchronize()


def empty_cache() -> None:
    """Return unused memory of CuPy's pool to the GPU; nothing without a GPU."""
    if cuda_is_available():
        cupy_module().get_default_memory_pool().free_all_blocks()
