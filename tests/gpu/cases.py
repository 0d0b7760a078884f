"""Ops that have CUDA fast paths, in the sizes of the models: for stage `kernels` of `python -m tests.gpu`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from minigrad import Tensor, autocast, manual_seed, where
from minigrad import functional as F
from minigrad.autograd.dispatch import RULES, Rule
from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, device_of, to_device
from minigrad.backend.dtypes import as_dtype, cast


class Case(NamedTuple):
    """An op, the shapes of its inputs, and smaller shapes, for a machine without a GPU.

    A case in half precision runs under `autocast`: the first inputs are 16-bit, the others are float32 inputs
    with values that are exact in the 16-bit dtype.
    """

    name: str
    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[tuple[int, ...], ...]
    limit: float = 2e-5  # of the error, relative to the maximum absolute value
    images: bool = False  # the first input is channels-last in memory, as the output of a convolution is
    dtype: str = "float32"
    activations: int = 1  # number of leading inputs that have this dtype
    outputs: int = 1  # number of outputs, which have the shape of the first input

    def tensors(self, arrays: Sequence[Array], device: str) -> list[Tensor]:
        """The inputs on the device. (CuPy copies are C- or Fortran-ordered: images are transposed afterwards.)"""
        tensors = [Tensor(to_device(x, device), requires_grad=True) for x in arrays]
        if self.images:
            x = tensors[0].data.transpose(0, 2, 3, 1)
            tensors[0].data = array_module(x).ascontiguousarray(x).transpose(0, 3, 1, 2)
        return tensors

    def call(self, *inputs: Tensor) -> Tensor:
        with nullcontext() if self.dtype == "float32" else autocast(self.dtype):
            return self.run(*inputs)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """x with its values rounded to the case's dtype, in x's own dtype."""
        return x if self.dtype == "float32" else x.astype(as_dtype(self.dtype)).astype(x.dtype)

    def arrays(self, *, small: bool, device: str = "cpu") -> list[Array]:
        """The inputs, made on the device: NumPy would need minutes for the large ones."""
        shapes = self.small if small else self.shapes
        # a prime number of values, so that no two rows are equal
        values = self.rounded(np.random.default_rng(0).standard_normal(1_000_003, np.float32))
        xp = array_module(on_device := to_device(values, device))
        arrays = [xp.resize(xp.roll(on_device, -i * 7919), shape) for i, shape in enumerate(shapes)]
        count = self.activations
        arrays[:count] = [cast(x, as_dtype(self.dtype)) for x in arrays[:count]]
        return arrays

    def grad(self, y: Array) -> Array:
        """A gradient of the output y, with values that are exact in the case's dtype."""
        values = self.rounded(np.cos(np.arange(1009.0))).astype(np.float32)
        return cast(array_module(y).resize(to_device(values, device_of(y)), y.shape), y.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1], weight, bias)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 32, weight, bias)


def group_norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """z is far from 0, where a rounding error would switch the gradient on or off."""
    return F.group_norm_relu(x, 32, weight, bias + where(bias > 0, 20.0, -20.0))


class Last(Function):
    """The last output; backward passes its gradient to all. So all outputs count in the loss, without a kernel."""

    def forward(self, *outputs: Array) -> Array:
        self.count = len(outputs)
        return outputs[-1]

    def backward(self, grad_output: Array) -> tuple[Array, ...]:
        return (grad_output,) * self.count


RULES[Last] = Rule(half=True)


def residual_layer_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    manual_seed(0)  # drop the same images on every device
    return Tensor.apply(Last, *F.residual_layer_norm(x, branch, weight, bias, drop_path=0.1))


def standardize(weight: Tensor) -> Tensor:
    """The op inside `F.standardize_weight`: LayerNorm of each filter."""
    filters = weight.flatten(1)  # (O, C, KH, KW) -> (O, ·)
    return F.layer_norm(filters, filters.shape[1], eps=1e-8)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=3, groups=x.shape[1])


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def strided(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, stride=2, padding=((0, 1), (0, 1)))


def patches(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, stride=weight.shape[2])


def cross_entropy(logits: Tensor) -> Tensor:
    labels = np.arange(len(logits.data)) % logits.shape[1]
    return F.cross_entropy(logits, Tensor(labels, device=logits.device), label_smoothing=0.1)


def attention(q: Tensor, k: Tensor, v: Tensor, *mask: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, *mask)


def windows(window_size: int, shift: int) -> Callable[..., Tensor]:
    """Swin's attention, with 32 features per head."""

    def run(qkv: Tensor, bias: Tensor) -> Tensor:
        return F.window_attention(qkv, bias, qkv.shape[-1] // 96, window_size, shift)

    return run


CASES = [
    Case("layer_norm, ViT CIFAR b512", layer_norm, ((512, 65, 192), (192,), (192,)), ((2, 5, 192), (192,), (192,))),
    Case("layer_norm, ViT-B b128", layer_norm, ((128, 197, 768), (768,), (768,)), ((1, 3, 768), (768,), (768,))),
    Case(
        "residual + layer_norm, ViT-B b128", residual_layer_norm,
        (*((128, 197, 768),) * 2, (768,), (768,)), (*((3, 5, 768),) * 2, (768,), (768,)), activations=2, outputs=2,
    ),
    Case("gelu, ViT CIFAR b512", F.gelu, ((512, 65, 768),), ((2, 5, 768),)),
    Case("relu", F.relu, ((512, 64, 32, 32),), ((2, 8, 4, 4),)),
    Case("attention, ViT CIFAR b512", attention, ((512, 3, 65, 64),) * 3, ((2, 3, 65, 64),) * 3),
    Case("attention, ViT-B b128", attention, ((128, 12, 197, 64),) * 3, ((1, 2, 197, 64),) * 3),
    Case(
        "attention, Swin-T b128", attention,
        (*((128, 64, 3, 49, 32),) * 3, (64, 3, 49, 49)), (*((2, 4, 3, 49, 32),) * 3, (4, 3, 49, 49)),
    ),
    Case("cross_entropy b512", cross_entropy, ((512, 1000),), ((6, 10),)),
    Case("group_norm", group_norm, ((512, 64, 32, 32), (64,), (64,)), ((2, 64, 4, 4), (64,), (64,)), images=True),
    Case(
        "group_norm_relu", group_norm_relu,
        ((512, 32, 32, 32), (32,), (32,)), ((2, 64, 4, 4), (64,), (64,)), images=True,
    ),
    Case("depthwise, 56", depthwise, ((128, 96, 56, 56), (96, 1, 7, 7)), ((1, 32, 9, 9), (32, 1, 7, 7)), images=True),
    Case("depthwise, 14", depthwise, ((128, 384, 14, 14), (384, 1, 7, 7)), ((2, 8, 14, 14), (8, 1, 7, 7)), images=True),
    Case("conv 3 x 3", convolution, ((128, 64, 32, 32), (64, 64, 3, 3)), ((2, 16, 6, 6), (16, 16, 3, 3)), images=True),
    Case("standardized filters", standardize, ((512, 256, 3, 3),), ((8, 16, 3, 3),)),
]  # fmt: skip

# Limits: twice the relative error of a cast, 2⁻⁸ in bfloat16 and 2⁻¹¹ in float16, and the errors of sums.
HALF = {"bfloat16": 1e-2, "float16": 1.5e-3}
ALSO_IN_HALF_PRECISION = {
    "layer_norm, ViT-B b128", "residual + layer_norm, ViT-B b128", "gelu, ViT CIFAR b512", "relu", "group_norm",
    "group_norm_relu",
}  # fmt: skip
CASES += [
    case._replace(name=f"{case.name}, {dtype}", limit=limit, dtype=dtype)
    for dtype, limit in HALF.items()
    for case in CASES
    if case.name in ALSO_IN_HALF_PRECISION
]
CASES += [
    Case(f"{name}, bfloat16", run, shapes, small, HALF["bfloat16"], images=shapes[0][1] > 3, dtype="bfloat16")
    for name, run, shapes, small in [
        ("depthwise, 56", depthwise, ((128, 96, 56, 56), (96, 1, 7, 7)), ((1, 32, 9, 9), (32, 1, 7, 7))),
        ("depthwise, 14", depthwise, ((128, 384, 14, 14), (384, 1, 7, 7)), ((2, 8, 14, 14), (8, 1, 7, 7))),
        ("conv 3 x 3", convolution, ((128, 64, 32, 32), (64, 64, 3, 3)), ((2, 64, 6, 6), (64, 64, 3, 3))),
        ("conv 3 x 3, stride 2", strided, ((128, 64, 32, 32), (64, 64, 3, 3)), ((2, 64, 6, 6), (64, 64, 3, 3))),
        ("conv 3 x 3, im2col", convolution, ((128, 128, 16, 16), (128, 128, 3, 3)), ((2, 16, 6, 6), (16, 16, 3, 3))),
        ("patches 2 x 2", patches, ((128, 96, 56, 56), (192, 96, 2, 2), (192,)), ((2, 8, 4, 4), (6, 8, 2, 2), (6,))),
        ("patches 4 x 4", patches, ((128, 3, 224, 224), (96, 3, 4, 4), (96,)), ((2, 3, 8, 8), (6, 3, 4, 4), (6,))),
    ]
]  # fmt: skip
CASES += [
    Case(f"{name}, bfloat16", run, shapes, small, HALF["bfloat16"], dtype="bfloat16", activations=activations)
    for name, run, shapes, small, activations in [
        ("attention, ViT CIFAR b512", attention, ((512, 3, 65, 64),) * 3, ((2, 3, 65, 64),) * 3, 3),
        ("attention, ViT-B b128", attention, ((128, 12, 197, 64),) * 3, ((1, 2, 197, 64),) * 3, 3),
        ("windows, Swin-T b128", windows(7, 3), ((128, 56, 56, 288), (3, 49, 49)), ((1, 14, 14, 96), (1, 49, 49)), 1),
        ("windows, Swin CIFAR b512", windows(4, 2), ((512, 16, 16, 288), (3, 16, 16)), ((2, 8, 8, 96), (1, 16, 16)), 1),
    ]
]  # fmt: skip
