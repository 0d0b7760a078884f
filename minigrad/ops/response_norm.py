"""L2: global response normalisation (GRN): the channels of an image compete, each against the mean of all.

Woo et al. 2023, "ConvNeXt V2", arXiv:2301.00808, section 3.3. In ConvNeXt's MLP, many channels learn nearly the same
features. GRN scales each channel by its norm relative to the other channels: strong channels grow, weak ones shrink.
"""

from math import prod

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.sums import mean_over, sum_over
from minigrad.ops import checks


class GlobalResponseNorm(Function):
    """y = x + weight ⊙ N ⊙ x + bias, with a factor N for each image and channel:

        G_c = √(Σ x²)          the response of channel c: its norm over all positions of the image
        N_c = G_c / M,         M = ⟨G⟩ + eps,  ⟨·⟩ the mean over the channels

        ∂G_c = Σ_k ∂N_k · (δ_ck / M - G_k / (C M²)) = (∂N_c - ⟨∂N ⊙ N⟩) / M
        ∂x   = ∂y + ∂y ⊙ weight ⊙ N + ∂G ⊙ x / G          ∂G_c/∂x = x / G_c, taken as 0 where G_c = 0

    With S = Σ ∂y ⊙ x over the positions: ∂N = weight ⊙ S, ∂weight = Σ N ⊙ S over the images, and ∂bias = Σ ∂y (both
    sums by the engine).

    Shapes: x, y (B, ..., C); weight, bias (C,); G, N, S (B, 1, .., 1, C); M (B, 1, .., 1).  Saves x, G, N, M, weight.
    """

    def forward(self, x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
        checks.floating(x, "global_response_norm")
        if x.ndim < 3 or not prod(x.shape[1:]):
            raise ValueError(
                f"global_response_norm: the input must be (B, ..., C) with positions and channels, got shape {x.shape}"
            )
        checks.affine(weight, x.shape[-1:], "weight", "global_response_norm")
        checks.affine(bias, x.shape[-1:], "bias", "global_response_norm")
        self.x, self.weight, self.positions = x, weight, tuple(range(1, x.ndim - 1))
        self.G = array_module(x).sqrt(sum_over(x * x, self.positions, keepdims=True))
        self.M = mean_over(self.G, -1, keepdims=True) + eps
        self.N = self.G / self.M
        return x * (1 + weight * self.N) + bias

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array]:
        want_x, want_weight, _ = self.needs_input_grad
        grad_x = grad_weight = None
        if want_x or want_weight:
            S = sum_over(grad_output * self.x, self.positions, keepdims=True)
        if want_weight:
            grad_weight = self.N * S
        if want_x:
            grad_N = self.weight * S
            grad_G = (grad_N - mean_over(grad_N * self.N, -1, keepdims=True)) / self.M
            grad_G /= array_module(S).where(self.G == 0, np.inf, self.G).astype(S.dtype, copy=False)
            grad_x = grad_output * (1 + self.weight * self.N)
            grad_x += grad_G * self.x
        return grad_x, grad_weight, grad_output
