"""Calls for which there are CUDA twins, in sizes of the models: for `python -m tests.gpu`, stage `kernels`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minigrad import Tensor
from minigrad import functional as F


class Case(NamedTuple):
    """An op, the shapes of its float32 inputs, and smaller ones for a machine without a GPU."""

    name: str
    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[tuple[int, ...], ...]
    limit: float = 2e-5  # of the error, relative to the largest entry
    images: bool = False  # the first is channels-last in memory, as a convolution leaves it

    def arrays(self, *, small: bool) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal(shape, np.float32) for shape in (self.small if small else self.shapes)]
        if self.images:
            arrays[0] = np.ascontiguousarray(arrays[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        return arrays


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1], weight, bias)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 32, weight, bias)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=3, groups=x.shape[1])


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def cross_entropy(logits: Tensor) -> Tensor:
    labels = np.arange(len(logits.data)) % logits.shape[1]
    return F.cross_entropy(logits, Tensor(labels, device=logits.device), label_smoothing=0.1)


def attention(q: Tensor, k: Tensor, v: Tensor, *mask: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, *mask)


CASES = [
    Case("layer_norm, ViT CIFAR b512", layer_norm, ((512, 65, 192), (192,), (192,)), ((2, 5, 192), (192,), (192,))),
    Case("layer_norm, ViT-B b128", layer_norm, ((128, 197, 768), (768,), (768,)), ((1, 3, 768), (768,), (768,))),
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
]  # fmt: skip
