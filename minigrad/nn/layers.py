"""L5: layers, with PyTorch's names and arguments."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minigrad import functional as F
from minigrad._tensor import Tensor
from minigrad.functional import Pair
from minigrad.nn import init
from minigrad.nn.module import Buffer, Module, Parameter
from minigrad.ops import checks


class Linear(Module):
    """y = x Wᵀ + b. Shapes: x (..., in_features), weight (out_features, in_features), bias (out_features,)."""

    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        in_features, out_features = checks.integers((in_features, out_features), "each number of features", "Linear")
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.register_parameter("bias", Parameter(np.empty(out_features, np.float32)) if bias else None)
        init.torch_default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}"


class Conv2d(Module):
    """2-D convolution of images (N, in_channels, H, W), weight (out_channels, in_channels / groups, KH, KW)."""

    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        in_channels, out_channels, groups = checks.integers(
            (in_channels, out_channels, groups), "channels and groups", "Conv2d"
        )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups must divide in_channels and out_channels, got {groups} groups for "
                f"{in_channels} -> {out_channels} channels"
            )
        KH, KW = checks.pair(kernel_size, "kernel_size", "Conv2d", minimum=1)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = Parameter(np.empty((out_channels, in_channels // groups, KH, KW), np.float32))
        self.register_parameter("bias", Parameter(np.empty(out_channels, np.float32)) if bias else None)
        init.torch_default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        O, C, KH, KW = self.weight.shape  # noqa: E741 (O: output channels)
        return (
            f"{C * self.groups}, {O}, kernel_size=({KH}, {KW}), stride={self.stride}, padding={self.padding}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )


class _Norm(Module):
    """A normalisation layer with learnable scale (weight) and shift (bias)."""

    weight: Parameter | None
    bias: Parameter | None

    def __init__(self, shape: tuple[int, ...], eps: float, affine: bool) -> None:
        self.eps = eps
        self.register_parameter("weight", Parameter(np.ones(shape, np.float32)) if affine else None)
        self.register_parameter("bias", Parameter(np.zeros(shape, np.float32)) if affine else None)


class LayerNorm(_Norm):
    """Normalisation over the last axes, of shape `normalized_shape`: for (N, L, D), of each token over D."""

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-5, elementwise_affine: bool = True
    ) -> None:
        self.normalized_shape = checks.integers(normalized_shape, "normalized_shape", "LayerNorm")
        super().__init__(self.normalized_shape, eps, elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class GroupNorm(_Norm):
    """Normalisation of each of `num_groups` groups of channels of each sample; x is (N, num_channels, ...)."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        num_groups = checks.integer(num_groups, "num_groups", "GroupNorm")
        num_channels = checks.integer(num_channels, "num_channels", "GroupNorm")
        super().__init__((num_channels,), eps, affine)
        self.num_groups, self.num_channels = num_groups, num_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


class BatchNorm2d(_Norm):
    """Normalisation of each channel over (N, H, W), or in evaluation by running mean and variance. x is (N, C, H, W).

    With momentum=None, running statistics are cumulative averages over all batches: in batch n, momentum is 1/n. The
    buffer `num_batches_tracked` counts n; unlike in PyTorch, it exists only if momentum is None.
    """

    optional_state = ("num_batches_tracked",)
    num_batches_tracked: Tensor | None = None

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        super().__init__((checks.integer(num_features, "num_features", "BatchNorm2d"),), eps, affine)
        self.momentum = momentum
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))
        if momentum is None:
            self.num_batches_tracked = Buffer(np.zeros((), np.int64))

    def forward(self, x: Tensor) -> Tensor:
        checks.rank(x, 4, "(N, C, H, W)", "BatchNorm2d")
        momentum, count = self.momentum, self.num_batches_tracked
        if momentum is None and count is not None and self.training:
            count.data += 1
            momentum = 1 / count.item()
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum or 0.0, self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.running_mean.shape[0]}, eps={self.eps}, momentum={self.momentum}"


class Dropout(Module):
    """In training, set each element to 0 with probability p, else multiply by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = checks.probability(p, "Dropout")

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropPath(Module):
    """Stochastic depth: in training, set each sample to 0 with probability p, else multiply by 1 / (1 - p)."""

    def __init__(self, p: float = 0.0) -> None:
        self.p = checks.probability(p, "DropPath")

    def forward(self, x: Tensor) -> Tensor:
        return F.drop_path(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """y = x"""

    def forward(self, x: Tensor) -> Tensor:
        return x


class GELU(Module):
    """x · Φ(x), Φ the standard normal CDF; with approximate="tanh" the tanh approximation."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, self.approximate)  # type: ignore[arg-type]


class ReLU(Module):
    """max(x, 0)"""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class ModuleList(Module):
    """A list of modules, named by their indices: "0", "1", ..."""

    def __init__(self, modules: Sequence[Module] = ()) -> None:
        for module in modules:
            self.append(module)

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Any]:
        return (module for _, module in self.named_children())

    def __getitem__(self, index: int) -> Any:
        return list(self)[index]

    def append(self, module: Module) -> "ModuleList":
        """Append a module."""
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: elements must be Modules, got {type(module).__name__}")
        setattr(self, str(len(self)), module)
        return self


class Sequential(ModuleList):
    """Apply modules in sequence: `Sequential(Linear(4, 8), GELU(), Linear(8, 2))`."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
