"""L2: normalisation: ops with one formula, which differ in the sets of values that share a mean and a variance.

    x̂ = (x - μ) · r,   r = 1 / √(σ² + eps),   μ and σ² (divided by n, not n - 1) over each set

    ∂x = r · (ĝ - ⟨ĝ⟩ - x̂ ⟨ĝ ⊙ x̂⟩),   ĝ = ∂loss/∂x̂,   ⟨·⟩ the mean over the set

Why: x̂ has mean 0 and (up to eps) mean square 1 for every x, so ∂x lacks the two components of ĝ that would change
mean and mean square: the constant component, and the component along x̂.

    op                 one set                             x seen as, and the axis of ⟨·⟩
    LayerNorm          one token's channels                (·, C)       last
    GroupNorm          one image's group of channels       (N, G, ·)    last          (GroupNormReLU, too)
    BatchNorm          one channel, over all images        (N, C, ·)    first and last
    StandardizeWeight  the weights of one output channel   (O, ·)       last
"""

from collections.abc import Callable
from math import prod
from threading import Lock

import numpy as np

from minigrad.autograd import writes
from minigrad.autograd.function import Function, run
from minigrad.backend import Array, array_module
from minigrad.backend.batch import current_sum, updates_buffers
from minigrad.backend.dtypes import cast
from minigrad.backend.sums import deviations, means_over, sum_over
from minigrad.ops import checks
from minigrad.ops.activation import ReLU

Axis = int | tuple[int, ...]
Means = Callable[..., list[Array]]  # of (axis, *arrays): the mean of each array, with keepdims

_running_lock = Lock()


def normalize(x: Array, axis: Axis, eps: float, means: Means = means_over) -> tuple[Array, Array, Array, Array]:
    """x̂, r, μ and σ², with statistics over `axis`, computed by `means`; r, μ and σ² keep `axis` with size 1."""
    mean, centred = deviations(x, axis, means)
    (var,) = means(axis, centred * centred)
    rstd = 1 / array_module(x).sqrt(var + eps)
    return centred * rstd, rstd, mean, var


def normalize_backward(grad_x_hat: Array, x_hat: Array, rstd: Array, axis: Axis, means: Means = means_over) -> Array:
    """∂x = r · (ĝ - ⟨ĝ⟩ - x̂ ⟨ĝ ⊙ x̂⟩), with means over `axis`, computed by `means`."""
    constant, along_x_hat = means(axis, grad_x_hat, grad_x_hat * x_hat)
    return rstd * (grad_x_hat - constant - x_hat * along_x_hat)


class LayerNorm(Function):
    """y = x̂ ⊙ weight + bias, with a mean and a variance for each token, over the last axes.

    ∂weight = Σ ∂y ⊙ x̂,  ∂bias = Σ ∂y over the tokens (summed by the engine);  ĝ = ∂y ⊙ weight.

    Shapes: x, x̂, y (..., *shape); weight, bias `shape` or None; r (..., 1, .., 1).  Saves x̂, r, weight.
    Ba, Kiros, Hinton 2016, arXiv:1607.06450.
    """

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, *, shape: tuple[int, ...], eps: float
    ) -> Array:
        checks.floating(x, "layer_norm")
        lead = x.ndim - len(shape)
        if not prod(shape) or not shape or x.shape[max(lead, 0) :] != shape:
            raise ValueError(
                f"layer_norm: normalized_shape must equal the last sizes of the input's shape, and not be empty: "
                f"got {shape} for an input of shape {x.shape}"
            )
        checks.affine(weight, shape, "weight", "layer_norm")
        checks.affine(bias, shape, "bias", "layer_norm")
        self.axis, self.weight = tuple(range(lead, x.ndim)), weight
        self.x_hat, self.rstd, _, _ = normalize(x, self.axis, eps)
        y = self.x_hat if weight is None else self.x_hat * weight
        return y if bias is None else y + bias

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array]:
        want_x, want_weight, _ = self.needs_input_grad
        grad_x = None
        if want_x:
            grad_x_hat = grad_output if self.weight is None else grad_output * self.weight
            grad_x = normalize_backward(grad_x_hat, self.x_hat, self.rstd, self.axis)
        return grad_x, grad_output * self.x_hat if want_weight else None, grad_output


class GroupNorm(Function):
    """y = x̂ ⊙ weight + bias, with a mean and a variance for each image and each group of C / G channels.

    ∂weight = Σ ∂y ⊙ x̂,  ∂bias = Σ ∂y over images and positions;  ∂x from ĝ = ∂y ⊙ weight.

    Shapes: x, y (N, C, ...); weight, bias (C,) or None; x̂ (N, G, ·); r (N, G, 1).  Saves x̂, r, weight.
    Wu and He 2018, arXiv:1803.08494.
    """

    def forward(self, x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> Array:
        N, C = _channels(x, weight, bias, "group_norm")
        if num_groups < 1 or C % num_groups:
            raise ValueError(
                f"group_norm: num_groups must divide the number of channels: got {num_groups} groups, {C} channels"
            )
        self.weight = weight
        sets = x.reshape(N, num_groups, prod(x.shape[1:]) // num_groups)  # (N, C, ...) -> (N, G, ·)
        self.x_hat, self.rstd, _, _ = normalize(sets, -1, eps)
        return _scaled(self.x_hat.reshape(x.shape), weight, bias)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        grad_x = None
        if self.needs_input_grad[0]:
            grad_x_hat = _scaled(grad_output, self.weight, None).reshape(self.x_hat.shape)
            grad_x = normalize_backward(grad_x_hat, self.x_hat, self.rstd, -1).reshape(grad_output.shape)
        return grad_x, *_channel_grads(self, grad_output, self.x_hat.reshape(grad_output.shape))


class GroupNormReLU(Function):
    """y = max(z, 0),  z = GroupNorm(x) + shortcut: the end of a convolution of a ResNet, with a shortcut of a block.

        ∂shortcut = ∂z = ∂y, and 0 where y ≤ 0;   ∂x, ∂weight and ∂bias from ∂z as in `GroupNorm`

    One op, because elementwise operations are memory-bound: fused, z is neither written nor read.

    Shapes: x, z, y (N, C, ...); shortcut as x, or None; weight, bias (C,) or None.  Saves what GroupNorm saves, and y.
    """

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, shortcut: Array | None, *, num_groups: int, eps: float
    ) -> Array:
        *for_norm, _ = self.needs_input_grad
        self.norm, z = run(GroupNorm, for_norm, x, weight, bias, num_groups=num_groups, eps=eps)
        if shortcut is not None:
            if shortcut.shape != x.shape:
                raise ValueError(
                    f"group_norm_relu: shortcut must have the shape of the input, {x.shape}, got {shortcut.shape}"
                )
            z = z + shortcut
        self.relu, y = run(ReLU, (any(self.needs_input_grad),), z)
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        *for_norm, want_shortcut = self.needs_input_grad
        grad_z = self.relu.backward(grad_output)
        grads = self.norm.backward(grad_z) if any(for_norm) else (None, None, None)
        return *grads, grad_z if want_shortcut else None


class BatchNorm(Function):
    """y = x̂ ⊙ weight + bias, with a mean and a variance for each channel: computed from the batch in training, else
    the running mean and variance, which are constants, so that ∂x = r · ĝ.

        running <- (1 - momentum) · running + momentum · batch,  with the batch variance divided by n - 1

    If threads or processes share the batch, ⟨·⟩ is the mean over all parts (`batch_sum`), in forward and backward, n
    counts the values of all parts, and ∂weight and ∂bias are the sums over this part (PyTorch: SyncBatchNorm).

    Shapes: x, x̂, y (N, C, ...); weight, bias, running_mean, running_var (C,); r (1, C, 1, ..).  Saves x̂, r, weight.
    Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, *,
        running_mean: Array | None, running_var: Array | None, training: bool, momentum: float, eps: float,
    ) -> Array:  # fmt: skip
        _, C = _channels(x, weight, bias, "batch_norm")
        for name, running in (("running_mean", running_mean), ("running_var", running_var)):
            checks.affine(running, (C,), name, "batch_norm")
        self.axis, self.weight, self.training = (0, *range(2, x.ndim)), weight, training
        if training:
            self.sum = current_sum()  # over all parts of the batch; None: this is the whole batch
            self.n = x.size // C  # values per channel; of all parts of a shared batch, from the first `means`
            if self.n < 2 and self.sum is None:
                raise ValueError(f"batch_norm: training needs more than one value per channel, got shape {x.shape}")
            self.x_hat, self.rstd, mean, var = normalize(x, self.axis, eps, self.means)
            if updates_buffers():  # once per batch
                self.update(running_mean, mean, momentum)
                self.update(running_var, var * (self.n / (self.n - 1)), momentum)
        else:
            if running_mean is None or running_var is None:
                raise ValueError("batch_norm: with training=False, running_mean and running_var must be given")
            self.rstd = _per_channel(1 / array_module(x).sqrt(running_var + eps), x.ndim)
            self.x_hat = (x - _per_channel(running_mean, x.ndim)) * self.rstd
        return _scaled(self.x_hat, weight, bias)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        grad_x = None
        if self.needs_input_grad[0]:
            grad_x_hat = _scaled(grad_output, self.weight, None)
            if self.training:
                grad_x = normalize_backward(grad_x_hat, self.x_hat, self.rstd, self.axis, self.means)
            else:
                grad_x = grad_x_hat * self.rstd
        return grad_x, *_channel_grads(self, grad_output, self.x_hat)

    def means(self, axis: Axis, *arrays: Array) -> list[Array]:
        """The mean of each array over `axis` and all parts of the batch: their sums and n are added in one call."""
        if self.sum is None:
            return means_over(axis, *arrays)
        xp, dtype = array_module(arrays[0]), arrays[0].dtype
        sums = [sum_over(x, axis, keepdims=True).astype(np.float64) for x in arrays]
        n = xp.full(sums[0].shape, arrays[0].size // sums[0].size, np.float64)
        *sums, n = self.sum(xp.stack([*sums, n]))
        self.n = cast(n, dtype)
        return [cast(total / n, dtype) for total in sums]

    def update(self, running: Array | None, batch: Array, momentum: float) -> None:
        """Update a running statistic (C,) in place by that of the batch, (1, C, 1, ..)."""
        if running is not None:
            with _running_lock:  # several threads may train one model
                running += momentum * (batch.reshape(-1) - running)
                writes.note([running])


class StandardizeWeight(Function):
    """ŵ = (w - μ) · r for each output channel: a convolution with weight ŵ has filters of mean 0 and variance 1.

    LayerNorm of each filter, without weight and bias: `LayerNorm` computes forward and backward.

    Shapes: w, ŵ (O, ...); r (O, 1, .., 1).  Saves x̂ and r, in `LayerNorm`.  Qiao et al. 2019, arXiv:1903.10520.
    """

    def forward(self, weight: Array, *, eps: float) -> Array:
        checks.floating(weight, "standardize_weight")
        if weight.ndim < 2 or not prod(weight.shape[1:]):
            raise ValueError(f"standardize_weight: the weight must be (O, ...) and not empty, got shape {weight.shape}")
        needs = *self.needs_input_grad, False, False
        self.norm, w_hat = run(LayerNorm, needs, weight, None, None, shape=weight.shape[1:], eps=eps)
        return w_hat

    def backward(self, grad_output: Array) -> Array:
        return self.norm.backward(grad_output)[0]


def _channels(x: Array, weight: Array | None, bias: Array | None, op: str) -> tuple[int, int]:
    """Check an input (N, C, ...) and its weight and bias (C,); return N and C."""
    checks.floating(x, op)
    if x.ndim < 2 or not prod(x.shape[1:]):
        raise ValueError(f"{op}: the input must be (N, C, ...) with values to normalise over, got shape {x.shape}")
    checks.affine(weight, x.shape[1:2], "weight", op)
    checks.affine(bias, x.shape[1:2], "bias", op)
    return x.shape[0], x.shape[1]


def _per_channel(param: Array, ndim: int) -> Array:
    return param.reshape(-1, *(1,) * (ndim - 2))  # (C,) -> (C, 1, ..), against (N, C, ...)


def _scaled(x_hat: Array, weight: Array | None, bias: Array | None) -> Array:
    y = x_hat if weight is None else x_hat * _per_channel(weight, x_hat.ndim)
    return y if bias is None else y + _per_channel(bias, x_hat.ndim)


def _channel_grads(op: Function, grad_output: Array, x_hat: Array) -> tuple[Array | None, Array | None]:
    """∂weight and ∂bias: sums over all axes but C."""
    axis = (0, *range(2, grad_output.ndim))
    _, want_weight, want_bias = op.needs_input_grad
    return (
        sum_over(grad_output * x_hat, axis) if want_weight else None,
        sum_over(grad_output, axis) if want_bias else None,
    )
