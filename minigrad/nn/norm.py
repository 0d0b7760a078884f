"""L5: normalisation layers."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad import functional as F
from minigrad._tensor import Tensor
from minigrad.backend.batch import updates_buffers
from minigrad.nn import init
from minigrad.nn.module import Buffer, Module, Parameter
from minigrad.ops import checks


class _Norm(Module):
    """A normalisation layer with learnable scale (weight) and shift (bias)."""

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self, shape: tuple[int, ...], eps: float, affine: bool, device: str | None, dtype: Any, bias: bool = True
    ) -> None:
        self.eps = eps
        for name, make, present in (("weight", np.ones, affine), ("bias", np.zeros, affine and bias)):
            own = Parameter(make(shape, np.float32), dtype=dtype, device=device) if present else None
            self.register_parameter(name, own)

    def reset_parameters(self) -> None:
        """Set the weight to 1 and the bias to 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        init.zeros_(self.bias)


class LayerNorm(_Norm):
    """Normalisation over the last axes, of shape `normalized_shape`: for (N, L, D), of each token over D."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.normalized_shape = checks.integers(normalized_shape, "normalized_shape", "LayerNorm")
        super().__init__(self.normalized_shape, eps, elementwise_affine, device, dtype, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class GroupNorm(_Norm):
    """Normalisation of each of `num_groups` groups of channels of each sample; x is (N, num_channels, ...)."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        num_groups = checks.integer(num_groups, "num_groups", "GroupNorm")
        num_channels = checks.integer(num_channels, "num_channels", "GroupNorm")
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups must divide num_channels, got {num_groups} for {num_channels}")
        super().__init__((num_channels,), eps, affine, device, dtype)
        self.num_groups, self.num_channels = num_groups, num_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


class _BatchNorm(_Norm):
    """Normalisation of each channel over all other axes. If threads or processes share a batch, the mean and variance
    in training are those of the whole batch, as in `SyncBatchNorm`, not of each part."""

    layouts: ClassVar[dict[int, str]]  # the shapes of x that `forward` accepts, by their number of axes
    optional_state = ("num_batches_tracked",)
    num_batches_tracked: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.num_features = checks.integer(num_features, "num_features", type(self).__name__)
        super().__init__((self.num_features,), eps, affine, device, dtype)
        self.momentum = momentum
        if not track_running_stats:
            return
        self.running_mean = Buffer(np.zeros(num_features, np.float32), dtype=dtype, device=device)
        self.running_var = Buffer(np.ones(num_features, np.float32), dtype=dtype, device=device)
        if momentum is None:
            self.num_batches_tracked = Buffer(np.zeros((), np.int64), device=device)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1, and the number of batches to 0."""
        init.zeros_(self.running_mean, self.num_batches_tracked)
        if self.running_var is not None:
            init.ones_(self.running_var)

    def reset_parameters(self) -> None:
        """Set the weight to 1, the bias to 0, and reset the running statistics."""
        self.reset_running_stats()
        super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self.layouts:
            checks.rank(x, max(self.layouts), " or ".join(self.layouts.values()), type(self).__name__)
        momentum, count = self.momentum, self.num_batches_tracked
        if momentum is None and count is not None and self.training and updates_buffers():
            count.data += 1
            momentum = 1 / count.item()
        mean, var = self.running_mean, self.running_var
        training = self.training or mean is None
        return F.batch_norm(x, mean, var, self.weight, self.bias, training, momentum or 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """Normalisation of each channel over N and L, or in evaluation by running mean and variance. x is (N, C[, L]).

    The running statistics are those of BatchNorm2d.
    """

    layouts: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """Normalisation of each channel over (N, H, W), or in evaluation by running mean and variance. x is (N, C, H, W).

    With momentum=None, running statistics are cumulative averages over all batches: in batch n, momentum is 1/n. The
    buffer `num_batches_tracked` counts n; unlike in PyTorch, it exists only if momentum is None. With
    track_running_stats=False, there are no running statistics: evaluation too uses the statistics of the batch.
    """

    layouts: ClassVar = {4: "(N, C, H, W)"}


class SyncBatchNorm(_BatchNorm):
    """Normalisation of each channel over all other axes; x is (N, C), (N, C, L) or (N, C, H, W).

    Here BatchNorm1d and BatchNorm2d, too, use the whole batch if threads or processes share the batch (`Shards`,
    `sums_over_batch`): this class exists for programs that use PyTorch's name. Unlike in PyTorch, x may be on the CPU,
    and there are no process groups: `process_group` must be None.
    """

    layouts: ClassVar = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)"}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: None = None,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        if process_group is not None:
            raise ValueError(f"SyncBatchNorm: process_group must be None, for all parts of the batch: {process_group}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: None = None) -> Module:
        """Replace each BatchNorm1d and BatchNorm2d in `module` by a SyncBatchNorm with the same parameters and buffers.

        Returns `module`, or its replacement.
        """
        if isinstance(module, _BatchNorm) and not isinstance(module, cls):
            affine, tracks = module.weight is not None, module.running_mean is not None
            new = cls(module.num_features, module.eps, module.momentum, affine, tracks, process_group)
            for name, value in (*module.named_parameters(), *module.named_buffers()):
                setattr(new, name, value)
            return new.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_group))
        return module


class RMSNorm(Module):
    """x / √(mean x² + eps) · weight, the mean over the last axes, of shape `normalized_shape`: `F.rms_norm`."""

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.normalized_shape, self.eps = checks.integers(normalized_shape, "normalized_shape", "RMSNorm"), eps
        ones = np.ones(self.normalized_shape, np.float32)
        self.register_parameter("weight", Parameter(ones, dtype=dtype, device=device) if elementwise_affine else None)

    def reset_parameters(self) -> None:
        """Set the weight to 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class InstanceNorm2d(_Norm):
    """Normalisation of each channel of each image; x is (N, num_features, H, W)."""

    axes = 4

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        affine: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__((num_features,), eps, affine, device, dtype)
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.axes:
            raise ValueError(f"{type(self).__name__}: the input must have {self.axes} axes, got shape {x.shape}")
        return F.instance_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class InstanceNorm1d(InstanceNorm2d):
    """Normalisation of each channel of each row; x is (N, num_features, L)."""

    axes = 3
