"""L2: weight standardisation of a convolution: LayerNorm of each filter."""

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.norm import CUDALayerNorm
from minigrad.ops import norm


@fast_path_of(norm.StandardizeWeight)
class CUDAStandardizeWeight(norm.StandardizeWeight):
    """The op's formula by `norm.cu`, with a filter as a row, without weight and bias: one kernel forward, one backward.

    Shapes: w, ŵ (O, ...), viewed as (O, ·).  Saves w, μ, r.
    """

    @staticmethod
    def supports(weight: Array, *, eps: float) -> bool:
        return CUDALayerNorm.supports(weight, None, None, shape=weight.shape[1:], eps=eps)

    def forward(self, weight: Array, *, eps: float) -> Array:
        self.filters = CUDALayerNorm()
        self.filters.needs_input_grad = (*self.needs_input_grad, False, False)
        return self.filters.forward(weight, None, None, shape=weight.shape[1:], eps=eps)

    def backward(self, grad_output: Array) -> Array | None:
        return self.filters.backward(grad_output)[0]
