"""L2: normalisation, with sums by BLAS."""

from collections.abc import Iterable, Iterator
from math import prod

import numpy as np

from minigrad.backend import Array
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cpu.activation import relu_, relu_backward
from minigrad.kernels.cpu.chunks import is_float32, ones, row_chunks
from minigrad.ops import norm

OFFSET = 4  # if |μ| exceeds this many σ, the rounding error of μ is subtracted from x - μ, as in `sums.deviations`


@fast_path_of(norm.LayerNorm)
class CPULayerNorm(norm.LayerNorm):
    """The op's formula, for chunks of tokens.

    Shapes: x, x̂, y as (tokens, C), C the size of the normalised axes; r (tokens, 1).  Saves x̂, r, weight.
    """

    @staticmethod
    def supports(x: Array, weight: Array | None, bias: Array | None, *, shape: tuple[int, ...], eps: float) -> bool:
        if not (is_float32(x) and x.flags.c_contiguous and x.size and x.ndim > len(shape) > 0):
            return False
        fits = x.shape[-len(shape) :] == shape
        return fits and all(p is None or (is_float32(p) and p.shape == shape) for p in (weight, bias))

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, *, shape: tuple[int, ...], eps: float
    ) -> Array:
        C, output = prod(shape), np.empty(x.shape, np.float32)
        tokens, y = x.reshape(-1, C), output.reshape(-1, C)  # (..., *shape) -> (tokens, C)
        weight, bias = (None if p is None else p.reshape(C) for p in (weight, bias))
        self.x_hat, self.rstd = np.empty_like(tokens), np.empty((len(tokens), 1), np.float32)
        self.weight, self.shape = weight, shape
        for chunk in row_chunks(*tokens.shape):
            x_hat, rstd = self.x_hat[chunk], self.rstd[chunk]
            mean = tokens[chunk] @ ones(C)
            mean *= 1 / C
            np.subtract(tokens[chunk], mean[:, None], out=x_hat)
            var = np.vecdot(x_hat, x_hat)
            var *= 1 / C
            var += eps
            std = np.sqrt(var, out=var)
            if (np.abs(mean, out=mean) > OFFSET * std).any():
                x_hat -= (x_hat @ ones(C) / C)[:, None]
                std = np.sqrt(np.vecdot(x_hat, x_hat) / C + eps)
            np.divide(1, std, out=rstd[:, 0])
            x_hat *= rstd
            if weight is None:
                y[chunk] = x_hat
            else:
                np.multiply(x_hat, weight, out=y[chunk])
            if bias is not None:
                y[chunk] += bias
        return output

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        want_x, want_weight, want_bias = self.needs_input_grad
        C = prod(self.shape)
        grad_y = grad_output.reshape(-1, C)  # (..., *shape) -> (tokens, C)
        grad_input = np.empty(grad_output.shape, np.float32) if want_x else None
        grad_x = None if grad_input is None else grad_input.reshape(-1, C)
        grad_weight = np.zeros(self.shape, np.float32) if want_weight else None
        grad_bias = np.zeros(self.shape, np.float32) if want_bias else None
        for chunk in row_chunks(*grad_y.shape):
            g, x_hat = grad_y[chunk], self.x_hat[chunk]
            if grad_bias is not None:
                grad_bias += (ones(len(g)) @ g).reshape(self.shape)
            if grad_weight is not None:
                grad_weight += (ones(len(g)) @ (g * x_hat)).reshape(self.shape)
            if grad_x is not None:
                g = g if self.weight is None else g * self.weight
                mean, along_x_hat = g @ ones(C), np.vecdot(g, x_hat)
                mean *= 1 / C
                along_x_hat *= 1 / C
                np.multiply(x_hat, along_x_hat[:, None], out=grad_x[chunk])
                np.subtract(g, grad_x[chunk], out=grad_x[chunk])
                grad_x[chunk] -= mean[:, None]
                grad_x[chunk] *= self.rstd[chunk]
        return grad_input, grad_weight, grad_bias


@fast_path_of(norm.GroupNorm)
class CPUGroupNorm(norm.GroupNorm):
    """The op's formula on images that are channels-last in memory, as the output of a convolution is.

    A channels-last image is a matrix (P, C) of P pixels and C channels. Mean μ and variance are sums for each channel,
    added over each group; y and ∂x are affine in x and ∂y, with coefficients for each channel:

        y  = a x + bias - a μ,                         a = r · weight,   σ² = Σ Σ x² / n - μ²
        ∂x = a ∂y - k x - (r ⟨ĝ⟩ - k μ),               k = r² ⟨ĝ ⊙ x̂⟩
        ⟨ĝ⟩ = Σ weight · Σ ∂y / n,   ⟨ĝ ⊙ x̂⟩ = r Σ weight · (Σ ∂y ⊙ x - μ Σ ∂y) / n

    with inner sums over the pixels, outer sums over the channels of a group, and n elements in a group. The differences
    cancel if |μ| is large: then x - μ, which has the same y and ∂x, replaces x.

    Shapes: x, y (N, C, H, W).  Saves x as (N, P, C), μ, r and a as (N, 1, C).
    """

    @staticmethod
    def supports(x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> bool:
        if not (is_float32(x) and x.ndim == 4 and x.size and num_groups > 0 and x.shape[1] % num_groups == 0):
            return False
        affine = all(p is not None and is_float32(p) and p.shape == x.shape[1:2] for p in (weight, bias))
        return affine and bool(x.transpose(0, 2, 3, 1).flags.c_contiguous)

    def forward(self, x: Array, weight: Array, bias: Array, *, num_groups: int, eps: float) -> Array:
        images = pixels(x)
        y = np.empty_like(images)
        for _ in self.normalize(images, weight, bias, y, num_groups, eps):
            pass
        return maps(y, x.shape)

    def normalize(
        self, images: Array, weight: Array, bias: Array, y: Array, num_groups: int, eps: float
    ) -> Iterator[slice]:
        """Write y, (N, P, C), chunk by chunk; yields each chunk of images while it is in the cache."""
        N, P, C = images.shape
        self.n, self.groups = P * C // num_groups, num_groups
        self.weight, self.x = weight, images
        self.mean, self.rstd, self.scale = np.empty((3, N, 1, C), np.float32)
        for chunk in row_chunks(N, P * C):
            y_chunk, scale = y[chunk], self.scale[chunk]
            with np.errstate(over="ignore", invalid="ignore"):
                mean, var = self._moments(images[chunk], y_chunk)
                for _ in range(2):  # subtract μ, then the rounding error of μ
                    if (mean * mean <= OFFSET**2 * var).all():  # False if x² overflows
                        break
                    if self.x is images:
                        self.x = images.copy()
                    self.x[chunk] -= mean
                    mean, var = self._moments(self.x[chunk], y_chunk)
            self.mean[chunk], self.rstd[chunk] = mean, 1 / np.sqrt(var + eps)
            np.multiply(self.rstd[chunk], weight, out=scale)
            np.multiply(self.x[chunk], scale, out=y_chunk)
            y_chunk += bias - scale * mean
            yield chunk

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        grads = pixels(grad_output)
        return self.gradients(((chunk, grads[chunk]) for chunk in self.chunks()), grad_output.shape)

    def chunks(self) -> Iterator[slice]:
        """Chunks of images that stay in the cache."""
        N, P, C = self.x.shape
        return row_chunks(N, P * C)

    def gradients(
        self, grads: Iterable[tuple[slice, Array]], shape: tuple[int, ...]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """∂x of `shape` (N, C, H, W), ∂weight and ∂bias, from the chunks of images and their ∂y, (n, P, C)."""
        _, P, C = self.x.shape
        grad_x = np.empty(self.x.shape, np.float32) if self.needs_input_grad[0] else None
        grad_weight, grad_bias = np.zeros((2, C), np.float32)
        for chunk, g in grads:
            x, mean, rstd = self.x[chunk], self.mean[chunk], self.rstd[chunk]
            along_x = g * x
            total = ones(P) @ g  # (n, C)
            along = rstd[:, 0] * (ones(P) @ along_x - mean[:, 0] * total)  # Σ ∂y ⊙ x̂
            grad_bias += total.sum(axis=0)
            grad_weight += along.sum(axis=0)
            if grad_x is not None:
                k = rstd**2 * self._over_groups(self.weight * along)
                np.multiply(g, self.scale[chunk], out=grad_x[chunk])
                grad_x[chunk] -= rstd * self._over_groups(self.weight * total) - k * mean
                np.multiply(x, k, out=along_x)
                grad_x[chunk] -= along_x
        return (
            None if grad_x is None else maps(grad_x, shape),
            grad_weight if self.needs_input_grad[1] else None,
            grad_bias if self.needs_input_grad[2] else None,
        )

    def _moments(self, x: Array, scratch: Array) -> tuple[Array, Array]:
        """μ and σ² of the groups of x (n, P, C), repeated for each channel: (n, 1, C). `scratch` has the shape of x."""
        total = ones(x.shape[1])
        mean = self._over_groups(total @ x)
        var = self._over_groups(total @ np.multiply(x, x, out=scratch)) - mean * mean
        return mean, np.maximum(var, 0, out=var)  # rounding errors may be negative

    def _over_groups(self, sums: Array) -> Array:
        """Per-channel sums -> the mean over the group, repeated for each channel: (n, C) -> (n, 1, C)."""
        means = sums.reshape(len(sums), self.groups, -1).sum(axis=2) / self.n
        return np.repeat(means, sums.shape[1] // self.groups, axis=1)[:, None]


@fast_path_of(norm.GroupNormReLU)
class CPUGroupNormReLU(norm.GroupNormReLU):
    """The op's formula: shortcut and ReLU in the chunks of `CPUGroupNorm`, forward and backward.

    Shapes: as for `CPUGroupNorm`; the shortcut as x.  Saves what CPUGroupNorm saves, and y as (N, P, C).
    """

    norm: CPUGroupNorm

    @staticmethod
    def supports(
        x: Array, weight: Array | None, bias: Array | None, shortcut: Array | None, *, num_groups: int, eps: float
    ) -> bool:
        fits = shortcut is None or (is_float32(shortcut) and shortcut.shape == x.shape)
        return fits and CPUGroupNorm.supports(x, weight, bias, num_groups=num_groups, eps=eps)

    def forward(
        self, x: Array, weight: Array, bias: Array, shortcut: Array | None, *, num_groups: int, eps: float
    ) -> Array:
        self.norm = CPUGroupNorm()
        self.norm.needs_input_grad = self.needs_input_grad[:3]
        images, added = pixels(x), None if shortcut is None else pixels(shortcut)
        self.y = np.empty_like(images)
        for chunk in self.norm.normalize(images, weight, bias, self.y, num_groups, eps):
            y = self.y[chunk]
            if added is not None:
                y += added[chunk]
            relu_(y)
        return maps(self.y, x.shape)

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        grads = pixels(grad_output)
        grad_z = np.empty_like(self.y) if self.needs_input_grad[3] else None

        def chunks() -> Iterator[tuple[slice, Array]]:
            for chunk in self.norm.chunks():
                g = np.empty_like(self.y[chunk]) if grad_z is None else grad_z[chunk]
                relu_backward(self.y[chunk], grads[chunk], g)
                yield chunk, g

        grads_of_norm = self.norm.gradients(chunks(), grad_output.shape)
        return *grads_of_norm, None if grad_z is None else maps(grad_z, grad_output.shape)


def pixels(x: Array) -> Array:
    """(N, C, H, W) -> (N, P, C), with P = H·W; a view of a channels-last array."""
    N, C, H, W = x.shape
    return x.transpose(0, 2, 3, 1).reshape(N, H * W, C)


def maps(images: Array, shape: tuple[int, ...]) -> Array:
    """(N, P, C) -> (N, C, H, W) of `shape`, channels-last in memory."""
    N, C, H, W = shape
    return images.reshape(N, H, W, C).transpose(0, 3, 1, 2)
