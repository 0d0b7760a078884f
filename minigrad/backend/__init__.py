"""L0: arrays of NumPy or CuPy. All functions here accept both."""

from minigrad.backend.arrays import (
    Array,
    Device,
    array_module,
    as_array,
    cuda_is_available,
    cupy_module,
    device_of,
    empty,
    plain,
    plus,
    promote,
    promote_and_wrap,
    promote_to_float,
    require_gpu,
    scatter_add,
    sliding_windows,
    to_device,
    to_device_of,
)
from minigrad.backend.gemm import gemm, gemm_and_sums

__all__ = [
    "Array", "Device", "array_module", "as_array", "cuda_is_available", "cupy_module", "device_of", "empty", "gemm",
    "gemm_and_sums", "plain", "plus", "promote", "promote_and_wrap", "promote_to_float", "require_gpu", "scatter_add",
    "sliding_windows", "to_device", "to_device_of",
]  # fmt: skip
