"""L6: ConvNeXt.  Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, "A ConvNet for the 2020s", arXiv:2201.03545.

A ResNet-50, modernised step by step until it matches the accuracy of a Swin Transformer of the same size, with
convolutions alone. `models/roadmap.py` has the steps, this file the result (section 2.6 and figure 4):

    stem                  4 x 4 convolution of stride 4 (patches, as in ViT) → LayerNorm
    four stages           of blocks on C, 2C, 4C and 8C channels, with depths such as (3, 3, 9, 3)
    between two stages    LayerNorm → 2 x 2 convolution of stride 2
    a block               depthwise 7 x 7 → LayerNorm → C to 4C → GELU → 4C to C → layer scale, added to its input

The depthwise convolution mixes pixels within each channel; the two linear layers mix channels at each pixel. A
transformer block separates the two in the same way: attention mixes tokens, the MLP mixes channels.

Parameters have the names of the authors' code, https://github.com/facebookresearch/ConvNeXt. Axes: B images; C channels
of H x W pixels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.backend.fast_paths import with_fast_paths
from minigrad.nn import init
from minigrad.nn.residual import residual_add
from models.model import (
    ImageModel,
    Size,
    check_images,
    check_lists,
    check_rates,
    check_ratio,
    check_sizes,
    drop_path_rates,
    image_size,
    linear_head,
)
from models.registry import register


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of images (B, C, H, W)."""

    @with_fast_paths
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)
        return x.permute(0, 3, 1, 2)  # -> (B, C, H, W)


class Block(nn.Module):
    """y = x + γ ⊙ MLP(LN(dwconv(x))). The layer scale γ, one factor for each channel, starts near zero (Touvron et al.
    2021, arXiv:2103.17239): a block starts close to the identity, so that deep networks train."""

    def __init__(
        self, dim: int, kernel_size: int, mlp_ratio: float, drop_path: float, layer_scale: float | None
    ) -> None:
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, int(mlp_ratio * dim))  # a 1 x 1 ("pointwise") convolution, channels-last
        self.pwconv2 = nn.Linear(int(mlp_ratio * dim), dim)
        self.gamma = None if layer_scale is None else nn.Parameter(np.full(dim, layer_scale, np.float32))
        self.drop_path = nn.DropPath(drop_path)

    @with_fast_paths
    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        y = self.mlp(self.norm(y))
        y = residual_add(x.permute(0, 2, 3, 1), y, self.drop_path, self.gamma)  # x + drop_path(γ ⊙ y)
        return y.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)

    def mlp(self, x: Tensor) -> Tensor:
        """C to 4C, GELU, 4C to C, at each pixel."""
        return self.pwconv2(F.gelu(self.pwconv1(x)))


class ConvNeXt(ImageModel):
    """ConvNeXt.

    Args:
        img_size: default size of the images; other sizes work too.
        in_chans: channels of the images.
        num_classes: outputs of the head; 0: no head, the model returns the normalised channel means.
        depths: blocks in each stage.
        dims: channels in each stage.
        stem_size: stride of the first convolution, and its kernel size; 4, or 2 for small images.
        stem_kernel_size: larger than stem_size, for patches that overlap, with zero padding; None: stem_size.
        kernel_size: kernel size of the depthwise convolutions; must be odd.
        mlp_ratio: hidden channels of a block, divided by its channels.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first block.
        layer_scale_init_value: initial value of γ; None: no γ.
        head_init_scale: factor on the initial weights of the head; the authors fine-tune with 0.001.
    """

    block: ClassVar[type[Block]] = Block

    def __init__(
        self,
        img_size: Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        stem_size: int = 4,
        stem_kernel_size: int | None = None,
        kernel_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        head_init_scale: float = 1.0,
    ) -> None:
        stem_kernel_size = stem_size if stem_kernel_size is None else stem_kernel_size
        check_sizes(
            "ConvNeXt",
            in_chans=in_chans,
            stem_size=stem_size,
            stem_kernel_size=stem_kernel_size,
            kernel_size=kernel_size,
        )
        check_sizes("ConvNeXt", minimum=0, num_classes=num_classes)
        check_lists("ConvNeXt", depths=depths, dims=dims)
        if not dims or len(depths) != len(dims):
            raise ValueError(f"ConvNeXt: depths and dims must have one entry for each stage, got {depths} and {dims}")
        if kernel_size % 2 == 0:
            raise ValueError(f"ConvNeXt: kernel_size must be odd, so that a block keeps H and W; got {kernel_size}")
        if stem_kernel_size < stem_size:
            raise ValueError(
                f"ConvNeXt: stem_kernel_size must be at least stem_size, so that every pixel is in a patch; got "
                f"{stem_kernel_size} and {stem_size}"
            )
        check_rates("ConvNeXt", drop_path_rate=drop_path_rate)
        check_ratio("ConvNeXt", mlp_ratio, *dims)
        self.img_size, self.in_chans, self.num_classes = image_size(img_size), in_chans, num_classes
        self.num_features, self.stem_stride, self.depths = dims[-1], stem_size, tuple(depths)
        self.min_size = stem_size * 2 ** (len(dims) - 1)
        self.head_init_scale = head_init_scale

        # Padding on each side: with H divisible by stem_size, the map has H / stem_size rows.
        padding = (stem_kernel_size - stem_size + 1) // 2
        conv = nn.Conv2d(in_chans, dims[0], stem_kernel_size, stride=stem_size, padding=padding)
        self.downsample_layers = nn.ModuleList([nn.Sequential(conv, LayerNorm2d(dims[0], eps=1e-6))])
        for before, after in pairwise(dims):
            conv = nn.Conv2d(before, after, kernel_size=2, stride=2)
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(before, eps=1e-6), conv))

        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    *(
                        self.block(dim, kernel_size, mlp_ratio, next(rates), layer_scale_init_value)
                        for _ in range(depth)
                    )
                )
                for dim, depth in zip(dims, depths, strict=True)
            ]
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.init_weights()
        self.head = self.make_head(num_classes)

    def init_weights(self) -> None:
        """Initialize convolutions and linear layers: weights truncated normal with std 0.02, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)

    def make_head(self, num_classes: int) -> nn.Module:
        return linear_head(self.num_features, num_classes, std=0.02 * self.head_init_scale)

    def sections(self) -> list[list[str]]:
        sections = [["downsample_layers.0"]]
        for s, depth in enumerate(self.depths):
            blocks = [[f"stages.{s}.{b}"] for b in range(depth)]
            if s and blocks:
                blocks[0].insert(0, f"downsample_layers.{s}")
            sections += blocks
        return sections

    def feature_map(self, x: Tensor) -> Tensor:
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to features (B, C, H / 32, W / 32), with `stem_size` 4."""
        check_images("ConvNeXt", x, self.in_chans, self.min_size)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features (B, C, H, W) to logits (B, num_classes): the mean over all pixels, LayerNorm, and the head."""
        x = self.norm(x.mean((2, 3)))
        return x if pre_logits else self.head(x)


# The sizes T to XL are the paper's (section 3), the smaller ones timm's.
SIZES: dict[str, dict[str, Any]] = {
    "atto": {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)},
    "femto": {"depths": (2, 2, 6, 2), "dims": (48, 96, 192, 384)},
    "pico": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512)},
    "nano": {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640)},
    "tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    "xlarge": {"depths": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048)},
}

for _size, _config in SIZES.items():
    register(f"convnext_{_size}", ConvNeXt, **_config)
    if _size in ("tiny", "small", "base", "large", "xlarge"):
        register(f"convnext_{_size}_in22k", ConvNeXt, num_classes=21841, **_config)

# For CIFAR-10, images of 32 x 32: with a 2 x 2 stem, the feature maps have 16, 8, 4 and 2 pixels a side. The micro
# model, for short runs on a CPU, has maps of 16, 8 and 4 pixels, and patches that overlap. γ starts at 1: from 1e-6, as
# in deep networks, short runs are less accurate (train/README.md).
CIFAR: dict[str, dict[str, Any]] = {
    "convnext_yocto_cifar": {"depths": (2, 2, 4, 2), "dims": (8, 16, 32, 64)},
    "convnext_micro_cifar": {
        "depths": (2, 2, 2), "dims": (48, 96, 192), "stem_kernel_size": 3, "kernel_size": 3, "mlp_ratio": 2.0,
    },
    "convnext_atto_cifar": SIZES["atto"],
    "convnext_femto_cifar": SIZES["femto"],
    "convnext_mid_cifar": SIZES["pico"],
}  # fmt: skip

for _name, _config in CIFAR.items():
    register(_name, ConvNeXt, img_size=32, stem_size=2, num_classes=10, layer_scale_init_value=1.0, **_config)
