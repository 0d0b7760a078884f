"""L5: layers, with PyTorch's names and arguments: linear, embedding, dropout, shapes, resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import functional as F
from minigrad._tensor import Tensor
from minigrad.functional import Pair
from minigrad.nn import init
from minigrad.nn.module import Module, Parameter
from minigrad.ops import checks


class Linear(Module):
    """y = x Wᵀ + b. Shapes: x (..., in_features), weight (out_features, in_features), bias (out_features,)."""

    bias: Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str | None = None, dtype: Any = None
    ) -> None:
        in_features, out_features = checks.integers((in_features, out_features), "each number of features", "Linear")
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(np.empty((out_features, in_features), np.float32), dtype=dtype, device=device)
        own = Parameter(np.empty(out_features, np.float32), dtype=dtype, device=device) if bias else None
        self.register_parameter("bias", own)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values of weight and bias: `init.torch_default_`."""
        init.torch_default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Embedding(Module):
    """y = weight[i], a learned vector for each index.

    Shapes: i (...) of integers, weight (num_embeddings, embedding_dim), y (..., embedding_dim).

    The vector of the index `padding_idx` is 0 at first and receives no gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        shape = checks.integers((num_embeddings, embedding_dim), "num_embeddings and embedding_dim", "Embedding")
        self.num_embeddings, self.embedding_dim = shape
        if padding_idx is not None and not -shape[0] <= padding_idx < shape[0]:
            raise ValueError(f"Embedding: padding_idx must be below num_embeddings, {shape[0]}, got {padding_idx}")
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % shape[0]
        self.weight = Parameter(np.empty(shape, np.float32), dtype=dtype, device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values of the weight, of the standard normal distribution, and 0 for the index `padding_idx`."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            init.zeros_(self.weight.detach()[self.padding_idx])

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None) -> "Embedding":
        """An Embedding with the weight `embeddings` (num_embeddings, D); freeze: the weight requires no gradient."""
        with init.skip_init():
            layer = cls(embeddings.shape[0], embeddings.shape[1], padding_idx)
        layer.weight = Parameter(embeddings, requires_grad=not freeze)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class Dropout(Module):
    """In training, set each element to 0 with probability p, else multiply by 1 / (1 - p).

    `inplace` is accepted, and has no effect on the result: the input is not overwritten.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        self.p = checks.probability(p, type(self).__name__)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """In training, set each channel of each sample to 0 with probability p, else multiply by 1 / (1 - p).

    Neighbouring pixels are correlated, so that dropping single pixels would hardly regularise. x is (N, C, ...).
    Tompson et al. 2014, arXiv:1411.4280.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, self.p, self.training)


class DropPath(Module):
    """Stochastic depth: in training, set each sample to 0 with probability p, else multiply by 1 / (1 - p)."""

    def __init__(self, p: float = 0.0) -> None:
        self.p = checks.probability(p, "DropPath")

    def forward(self, x: Tensor) -> Tensor:
        return F.drop_path(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """y = x. Arguments of the constructor have no effect."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x


class Flatten(Module):
    """Merge the axes from `start_dim` to `end_dim`, both included, into one: (N, C, H, W) -> (N, C · H · W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Split the axis `dim` into axes of these sizes: the inverse of Flatten."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        self.dim, self.unflattened_size = dim, unflattened_size

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class CosineSimilarity(Module):
    """x1 · x2 / (‖x1‖ ‖x2‖) along `dim`, with each norm at least eps: `F.cosine_similarity`."""

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        self.dim, self.eps = dim, eps

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(Module):
    """‖x1 - x2 + eps‖, the `p`-norm along the last axis: `F.pairwise_distance`."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        self.norm, self.eps, self.keepdim = p, eps, keepdim

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)


class Upsample(Module):
    """Resize images (N, C, H, W), with the arguments of `F.interpolate`."""

    def __init__(
        self,
        size: Pair | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        self.size, self.scale_factor, self.mode = size, scale_factor, mode
        self.align_corners, self.recompute_scale_factor = align_corners, recompute_scale_factor

    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, Any] = vars(self).copy()
        names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
        return F.interpolate(x, **{name: options[name] for name in names})

    def extra_repr(self) -> str:
        size = f"size={self.size}" if self.scale_factor is None else f"scale_factor={self.scale_factor}"
        return f"{size}, mode={self.mode!r}"
