"""Calls that have CUDA fast paths, in sizes of the models: for `python -m tests.gpu`, stage `kernels`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from minigrad import Tensor, autocast, manual_seed
from minigrad import functional as F
from minigrad.autograd.function import Function
from minigrad.backend import Array, to_device
from minigrad.backend.dtypes import as_dtype


class Case(NamedTuple):
    """An op, the shapes of its inputs, and smaller ones for a machine without a GPU.

    In a narrow dtype it runs within `autocast`: the first inputs are narrow, the others are float32 of so few digits.
    """

    name: str
    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[tuple[int, ...], ...]
    limit: float = 2e-5  # of the error, relative to the largest entry
    images: bool = False  # the first is channels-last in memory, as a convolution leaves it
    dtype: str = "float32"
    activations: int = 1  # the first inputs, which are narrow if dtype is
    outputs: int = 1  # of the shape of the first input

    def tensors(self, arrays: Sequence[np.ndarray], device: str) -> list[Tensor]:
        """The inputs there. (CuPy keeps no order of axes in memory but C's and Fortran's when it takes an array in.)"""
        tensors = [Tensor(np.ascontiguousarray(x), requires_grad=True, device=device) for x in arrays]
        if self.images:
            x = to_device(np.ascontiguousarray(arrays[0].transpose(0, 2, 3, 1)), device)
            tensors[0].data = x.transpose(0, 3, 1, 2)
        return tensors

    def call(self, *inputs: Tensor) -> Tensor:
        with nullcontext() if self.dtype == "float32" else autocast(self.dtype):
            return self.run(*inputs)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """x, in its own dtype; if the case's is narrow, only what has room there."""
        return x if self.dtype == "float32" else x.astype(as_dtype(self.dtype)).astype(x.dtype)

    def arrays(self, *, small: bool) -> list[np.ndarray]:
        shapes = self.small if small else self.shapes
        numbers = self.rounded(np.random.default_rng(0).standard_normal(1_000_003, np.float32))  # a prime: no pattern
        arrays = [np.resize(np.roll(numbers, -i * 7919), shape) for i, shape in enumerate(shapes)]
        count = self.activations
        arrays[:count] = [x.astype(as_dtype(self.dtype)) for x in arrays[:count]]
        return arrays


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1], weight, bias)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 32, weight, bias)


class Last(Function):
    """Of several outputs of an op the last, whose gradient goes to all: a loss of all of them that costs nothing."""

    narrow = True

    def forward(self, *outputs: Array) -> Array:
        self.count = len(outputs)
        return outputs[-1]

    def backward(self, grad_output: Array) -> tuple[Array, ...]:
        return (grad_output,) * self.count


def residual_layer_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    manual_seed(0)  # the same images are dropped wherever it runs
    return Tensor.apply(Last, *F.residual_layer_norm(x, branch, weight, bias, drop_path=0.1))


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=3, groups=x.shape[1])


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def patches(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, stride=weight.shape[2])


def cross_entropy(logits: Tensor) -> Tensor:
    labels = np.arange(len(logits.data)) % logits.shape[1]
    return F.cross_entropy(logits, Tensor(labels, device=logits.device), label_smoothing=0.1)


def attention(q: Tensor, k: Tensor, v: Tensor, *mask: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, *mask)


def windows(window_size: int, shift: int) -> Callable[..., Tensor]:
    """Swin's attention, 32 features for each head."""

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
    Case("depthwise, 56", depthwise, ((128, 96, 56, 56), (96, 1, 7, 7)), ((1, 32, 9, 9), (32, 1, 7, 7)), images=True),
    Case("depthwise, 14", depthwise, ((128, 384, 14, 14), (384, 1, 7, 7)), ((2, 8, 14, 14), (8, 1, 7, 7)), images=True),
    Case("conv 3 x 3", convolution, ((128, 64, 32, 32), (64, 64, 3, 3)), ((2, 16, 6, 6), (16, 16, 3, 3)), images=True),
    Case("standardize_weight", F.standardize_weight, ((512, 256, 3, 3),), ((8, 16, 3, 3),)),
]  # fmt: skip

# What a number may be away from itself, 2⁻⁸ of it in bfloat16 and 2⁻¹¹ in float16, twice, and what sums add.
HALF = {"bfloat16": 1e-2, "float16": 1.5e-3}
ALSO_NARROW = {
    "layer_norm, ViT-B b128", "residual + layer_norm, ViT-B b128", "gelu, ViT CIFAR b512", "relu", "group_norm",
}  # fmt: skip
CASES += [
    case._replace(name=f"{case.name}, {dtype}", limit=limit, dtype=dtype)
    for dtype, limit in HALF.items()
    for case in CASES
    if case.name in ALSO_NARROW
]
CASES += [
    Case(f"{name}, bfloat16", run, shapes, small, HALF["bfloat16"], images=shapes[0][1] > 3, dtype="bfloat16")
    for name, run, shapes, small in [
        ("depthwise, 56", depthwise, ((128, 96, 56, 56), (96, 1, 7, 7)), ((1, 32, 9, 9), (32, 1, 7, 7))),
        ("depthwise, 14", depthwise, ((128, 384, 14, 14), (384, 1, 7, 7)), ((2, 8, 14, 14), (8, 1, 7, 7))),
        ("conv 3 x 3", convolution, ((128, 64, 32, 32), (64, 64, 3, 3)), ((2, 16, 6, 6), (16, 16, 3, 3))),
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
