"""L6: the hybrid, a Vision Transformer on the features of a ResNet.  Dosovitskiy et al. 2020, arXiv:2010.11929,
section 3.1, "Hybrid architecture", and section 4.1, "Model variants".

The ResNet (He et al. 2015, arXiv:1512.03385) is changed as in Big Transfer (Kolesnikov et al. 2019, arXiv:1912.11370),
to train and transfer with small batches, and R50+ViT-B/16 has no stage 4:

    GroupNorm with 32 groups instead of BatchNorm
    standardised convolutions: each filter gets mean 0 and variance 1 before use (Qiao et al. 2019, arXiv:1903.10520)
    the three blocks of stage 4 are added to stage 3, which then has nine: the feature map is 14 x 14 at 224, not 7 x 7

Each position of the last feature map is a patch: a 1 x 1 convolution maps it to D values. The rest is ViT.

Parameters have the names of timm's port. Convolutions have TensorFlow's "SAME" padding, with which the authors trained:
with stride s the output has ⌈H / s⌉ rows; of an odd number of padded rows, the extra row is at the bottom.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.nn import init
from minigrad.nn.residual import norm_relu
from minigrad.ops.checks import sides
from models.model import Size, check_lists, check_sizes, image_size
from models.registry import register
from models.vit import VisionTransformer, check_size


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """The padding before and after an axis of `size` pixels so that ⌈size / stride⌉ windows fit."""
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class StdConv2d(nn.Conv2d):
    """Convolution with standardised filters, ŵ = (w - μ) / √(σ² + 10⁻⁸), "SAME" padding and no bias.

    As in timm's port; the authors' JAX code divides by σ + 10⁻⁵, which differs by about 10⁻⁴.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        H, W = (same_padding(size, self.kernel_size[0], self.stride) for size in x.shape[2:])
        return F.conv2d(x, F.standardize_weight(self.weight), stride=self.stride, padding=(H, W))


class Stem(nn.Module):
    """The first layers. Stride 4, as in ResNet: a 7 x 7 convolution and 3 x 3 max pooling, each of stride 2. Stride 1
    or 2, for small images: a 3 x 3 convolution without pooling."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        if stride not in (1, 2, 4):
            raise ValueError(f"hybrid: stem_stride must be 4, or 1 or 2 for small images, got {stride}")
        self.pool = stride == 4
        kernel, stride = (7, 2) if self.pool else (3, stride)
        self.conv = StdConv2d(in_chans, out_chans, kernel, stride)
        self.norm = nn.GroupNorm(32, out_chans)

    def forward(self, x: Tensor) -> Tensor:
        x = norm_relu(self.conv(x), self.norm)
        if not self.pool:
            return x
        H, W = (same_padding(size, 3, 2) for size in x.shape[2:])
        return F.max_pool2d(F.pad(x, (*W, *H)), 3, stride=2)  # after a ReLU, zero padding equals -∞ padding


class Downsample(nn.Module):
    """The shortcut of a stage's first block, which changes the channels: a 1 x 1 convolution and GroupNorm."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        self.conv = StdConv2d(in_chans, out_chans, 1, stride)
        self.norm = nn.GroupNorm(32, out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1 x 1 convolution to a quarter of the channels, 3 x 3 with the stride, 1 x 1 back; added to the shortcut."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, first: bool) -> None:
        mid_chans = out_chans // 4
        self.downsample = Downsample(in_chans, out_chans, stride) if first else nn.Identity()
        self.conv1 = StdConv2d(in_chans, mid_chans, 1)
        self.norm1 = nn.GroupNorm(32, mid_chans)
        self.conv2 = StdConv2d(mid_chans, mid_chans, 3, stride)
        self.norm2 = nn.GroupNorm(32, mid_chans)
        self.conv3 = StdConv2d(mid_chans, out_chans, 1)
        self.norm3 = nn.GroupNorm(32, out_chans)

    def forward(self, x: Tensor) -> Tensor:
        y = norm_relu(self.conv1(x), self.norm1)
        y = norm_relu(self.conv2(y), self.norm2)
        return norm_relu(self.conv3(y), self.norm3, shortcut=self.downsample(x))  # relu(norm3(...) + downsample(x))


class Stage(nn.Module):
    """Blocks with the same output size; the first changes the channels and has the stride."""

    def __init__(self, in_chans: int, out_chans: int, depth: int, stride: int) -> None:
        firsts = [True] + [False] * (depth - 1)
        self.blocks = nn.Sequential(
            *(
                Bottleneck(in_chans if first else out_chans, out_chans, stride if first else 1, first)
                for first in firsts[:depth]
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResNet(nn.Module):
    """Images (B, in_chans, H, W) to features (B, channels[-1], ⌈H / s⌉, ⌈W / s⌉), s = stem_stride · 2^(stages - 1)."""

    def __init__(
        self, in_chans: int, layers: Sequence[int], channels: Sequence[int], stem_chs: int, stem_stride: int
    ) -> None:
        check_lists("hybrid", layers=layers, channels=channels)
        check_sizes("hybrid", stem_chs=stem_chs)
        if len(layers) != len(channels):
            raise ValueError(
                f"hybrid: layers and channels must have one entry for each stage, got {layers} and {channels}"
            )
        if any(width % 128 for width in channels) or stem_chs % 32:
            raise ValueError(
                "hybrid: GroupNorm has 32 groups, so stem_chs must be a multiple of 32 and channels multiples of 128 "
                f"(a block has a quarter of its channels inside), got {stem_chs} and {channels}"
            )
        self.stem = Stem(in_chans, stem_chs, stem_stride)
        widths = [stem_chs, *channels]
        self.stages = nn.Sequential(
            *(
                Stage(before, after, depth, stride=2 if s else 1)
                for s, ((before, after), depth) in enumerate(zip(pairwise(widths), layers, strict=True))
            )
        )
        self.num_features = widths[-1]
        self.stride = stem_stride * 2 ** max(len(layers) - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


class HybridEmbed(nn.Module):
    """Images to tokens: the ResNet, then patches of P x P positions of its feature map. P = 1, except in R+ViT-Ti/16,
    whose ResNet is the stem alone."""

    def __init__(self, img_size: Size, patch_size: Size, in_chans: int, embed_dim: int, **resnet: Any) -> None:
        self.patch_size, self.in_chans = patch_size, in_chans
        self.backbone = ResNet(in_chans, **resnet)
        self.stride = sides(patch_size)[0] * self.backbone.stride
        self.set_input_size(img_size)
        self.proj = nn.Conv2d(self.backbone.num_features, embed_dim, sides(patch_size), stride=sides(patch_size))

    def set_input_size(self, img_size: Size) -> None:
        """Set the size of the images that `forward` accepts."""
        (PH, PW), (H, W) = sides(self.patch_size), image_size(img_size)
        map_size = -(-H // self.backbone.stride), -(-W // self.backbone.stride)
        if map_size[0] % PH or map_size[1] % PW:
            raise ValueError(
                f"hybrid: patch_size must divide the ResNet's feature map, got {self.patch_size} and {map_size} for an "
                f"image of {H} x {W}"
            )
        self.img_size, self.grid_size = (H, W), (map_size[0] // PH, map_size[1] // PW)

    def forward(self, x: Tensor) -> Tensor:
        check_size(x, self.in_chans, self.img_size)
        x = self.proj(self.backbone(x))  # (B, C, H, W) -> (B, D, H', W')
        return x.flatten(2).transpose(1, 2)  # -> (B, N, D)


class HybridVisionTransformer(VisionTransformer):
    """A Vision Transformer whose patches are positions of a ResNet's feature map.

    Args:
        layers: blocks in each stage of the ResNet.
        channels: channels of each stage.
        stem_chs: channels of the stem.
        stem_stride: 4, as in a ResNet, or 1 or 2, for small images.
        patch_size: P, in positions of the feature map, not in pixels.
        **vit: the other arguments of VisionTransformer.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 9),
        channels: Sequence[int] = (256, 512, 1024),
        stem_chs: int = 64,
        stem_stride: int = 4,
        patch_size: Size = 1,
        **vit: Any,
    ) -> None:
        self.resnet: dict[str, Any] = {
            "layers": layers, "channels": channels, "stem_chs": stem_chs, "stem_stride": stem_stride,
        }  # fmt: skip
        super().__init__(patch_size=patch_size, **vit)

    def make_patch_embed(self, img_size: Size, patch_size: Size, in_chans: int, embed_dim: int) -> Any:
        return HybridEmbed(img_size, patch_size, in_chans, embed_dim, **self.resnet)

    def init_weights(self) -> None:
        """As VisionTransformer's; in the ResNet, convolutions LeCun normal, and each block's last norm weight 0."""
        super().init_weights()
        for module in self.patch_embed.backbone.modules():
            if isinstance(module, StdConv2d):
                init.lecun_normal_(module.weight)
            if isinstance(module, Bottleneck):
                init.zeros_(module.norm3.weight)

    def sections(self) -> list[list[str]]:
        (embedding, *blocks), backbone = super().sections(), "patch_embed.backbone"
        stages = self.patch_embed.backbone.stages
        bottlenecks = [
            [f"{backbone}.stages.{s}.blocks.{b}"] for s, stage in enumerate(stages) for b in range(len(stage.blocks))
        ]
        blocks = [[*embedding, *block] if i == 0 else block for i, block in enumerate(blocks)]
        return [[f"{backbone}.stem"], *bottlenecks, *blocks]

    def feature_map(self, x: Tensor) -> Tensor:
        """Outputs of ResNet blocks are feature maps (B, C, H, W) already."""
        return x if x.ndim == 4 else super().feature_map(x)


# R50+ViT-B/16 is the paper's (section 4.1), the others are from Steiner et al. 2021, arXiv:2106.10270. In timm's names,
# s16 and s32 are the stride of the ResNet (of vit_tiny_r_s16_p8 the stride is 4).
_WIDTHS = (256, 512, 1024, 2048)
_HYBRIDS: dict[str, dict[str, Any]] = {
    "vit_tiny_r_s16_p8": {"layers": (), "channels": (), "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small_r26_s32": {"layers": (2, 2, 2, 2), "channels": _WIDTHS, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base_r50_s16": {"layers": (3, 4, 9), "channels": _WIDTHS[:3], "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large_r50_s32": {"layers": (3, 4, 6, 3), "channels": _WIDTHS, "embed_dim": 1024, "depth": 24, "num_heads": 16},
}

for _name, _config in _HYBRIDS.items():
    for _img_size in (224, 384):
        register(f"{_name}_{_img_size}", HybridVisionTransformer, img_size=_img_size, **_config)
register(
    "vit_base_r50_s16_224_in21k", HybridVisionTransformer,
    num_classes=21843, representation_size=768, **_HYBRIDS["vit_base_r50_s16"],
)  # fmt: skip

# For CIFAR-10, images of 32 x 32: a stem of stride 1, so feature maps of 32, 16 and 8 positions a side, and 64 tokens.
# The micro model, for short runs on a CPU, has maps of 16 and 8 positions.
_SMALL: dict[str, Any] = {"channels": (128, 256, 512), "stem_chs": 32, "stem_stride": 1}
_SMALLEST: dict[str, Any] = {"channels": (128, 128, 128), "stem_chs": 32, "stem_stride": 1, "mlp_ratio": 2.0}
_CIFAR: dict[str, dict[str, Any]] = {
    "hybrid_pico_cifar": {"layers": (1, 1, 1), **_SMALLEST, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "hybrid_micro_cifar": {
        "layers": (3, 3), "channels": (128, 256), "stem_chs": 32, "stem_stride": 2, "embed_dim": 128, "depth": 1,
        "num_heads": 4, "mlp_ratio": 2.0, "global_pool": "avg",
    },
    "hybrid_nano_cifar": {"layers": (1, 1, 1), **_SMALL, "embed_dim": 96, "depth": 4, "num_heads": 3},
    "hybrid_cifar": {"layers": (2, 2, 2), **_SMALL, "embed_dim": 192, "depth": 6, "num_heads": 3},
    "hybrid_wide_cifar": {"layers": (2, 2, 2), "stem_stride": 1, "embed_dim": 192, "depth": 6, "num_heads": 3},
    "hybrid_r50_cifar": {"layers": (3, 4, 9), "stem_stride": 1, "embed_dim": 192, "depth": 12, "num_heads": 3},
}  # fmt: skip

for _name, _config in _CIFAR.items():
    register(_name, HybridVisionTransformer, img_size=32, num_classes=10, **_config)
