"""L6: the roadmap from ResNet-50 to ConvNeXt.  Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545.

Section 2 of the paper changes a ResNet (He et al. 2015, arXiv:1512.03385), one design decision at a time, until the
network matches the accuracy of a Swin Transformer of the same size. `Design` has a field for each decision, `STEPS`
applies the decisions in the paper's order, and `RoadmapNet` is the network after any step.

Parameters have the names of torchvision's ResNet in all steps: `bn1` stays `bn1` when the norm is a LayerNorm. Details
that the paper leaves open are as in the authors' code, https://github.com/anonymous20222022/convnext. Axes: B images;
C channels of H x W pixels.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from minigrad import Tensor, nn
from minigrad import functional as F
from models.convnext import LayerNorm2d
from models.model import (
    ImageModel,
    Size,
    check_images,
    check_lists,
    check_rates,
    check_sizes,
    drop_path_rates,
    image_size,
)
from models.registry import register


@dataclass(frozen=True)
class Design:
    """The design decisions, in the order of the roadmap, and the layers that depend on them. Defaults: ResNet-50."""

    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks in each of the four stages
    patchify: bool = False  # the stem is a convolution of patches; else a 7 x 7 convolution and max pooling
    depthwise: bool = False  # the k x k convolution is depthwise; else dense
    width: int = 64  # C in the first stage, doubled in each following stage
    inverted: bool = False  # inverted bottleneck, C → 4C → C; else bottleneck, 4C → C → 4C
    moved_up: bool = False  # the k x k convolution is the first of a block; else between the two 1 x 1
    kernel_size: int = 3  # k
    gelu: bool = False  # the activation is GELU; else ReLU
    fewer_activations: bool = False  # one activation in a block, between the last two convolutions; else three
    fewer_norms: bool = False  # one norm in a block, after the first convolution; else one after each
    layer_norm: bool = False  # the norm is LayerNorm over channels; else BatchNorm
    final_norm: bool = False  # a LayerNorm between global average pooling and classifier
    separate_downsampling: bool = False  # a convolution between two stages; else the stride of the first block
    downsampling_norm: bool = False  # a norm after each downsampling: a variant in the authors' code, not a step

    def __post_init__(self) -> None:
        check_lists("roadmap", minimum=0, depths=self.depths)
        check_sizes("roadmap", width=self.width, kernel_size=self.kernel_size)
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"roadmap: depths must have four entries, each at least 1, got {self.depths}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"roadmap: kernel_size must be odd, so that a block keeps H and W; got {self.kernel_size}")

    def pointwise(self, in_chans: int, out_chans: int) -> nn.Conv2d:
        """A 1 x 1 convolution of a block; without bias before BatchNorm, which would subtract the bias."""
        return nn.Conv2d(in_chans, out_chans, 1, bias=self.layer_norm)

    def spatial(self, channels: int, stride: int) -> nn.Conv2d:
        """The k x k convolution of a block, which mixes pixels."""
        k, groups = self.kernel_size, channels if self.depthwise else 1
        return nn.Conv2d(channels, channels, k, stride, padding=k // 2, groups=groups, bias=self.layer_norm)

    def norm(self, channels: int) -> nn.Module:
        """The norm layer of a block or of the stem: LayerNorm over channels, or BatchNorm."""
        return LayerNorm2d(channels, eps=1e-6) if self.layer_norm else nn.BatchNorm2d(channels)

    def activation(self) -> nn.Module:
        """The activation layer of a block: GELU or ReLU."""
        return nn.GELU() if self.gelu else nn.ReLU()

    def downsampling(self, channels: int) -> nn.Module:
        """The layers between two stages: C to 2C channels, half of H and W."""
        if not self.separate_downsampling:
            return nn.Identity()
        conv = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        return nn.Sequential(conv, self.norm(2 * channels)) if self.downsampling_norm else nn.Sequential(conv)


@dataclass(frozen=True)
class Step:
    """A change of the design, and the accuracy after the change."""

    name: str
    change: dict[str, Any]
    top1: float | None  # % on ImageNet at 224: table 10 of the paper, the mean of three runs; None: not in the paper
    spread: float | None  # standard deviation of the three runs
    kept: bool = True  # the next step starts from this step; else from the step before


STEPS = (
    # 2.1 Training. The network of He et al. had 76.13 %. The training recipe of transformers (300 epochs of AdamW, with
    # mixup, CutMix, RandAugment, random erasing, stochastic depth, label smoothing) gains more than any later step.
    Step("resnet50", {}, 78.82, 0.07),
    # 2.2 Macro design. Depths in the ratio of Swin-T, 1 : 1 : 3 : 1, so most of the cost is on 14 x 14 feature maps.
    Step("stage_ratio", {"depths": (3, 3, 9, 3)}, 79.36, 0.07),
    # The stem of ViT and Swin, one convolution with non-overlapping windows, is as good as 7 x 7 and max pooling.
    Step("patchify", {"patchify": True}, 79.51, 0.18),
    # 2.3 ResNeXt-ify. As in a transformer, one layer mixes pixels and another mixes channels. The cost almost halves,
    # and accuracy drops ...
    Step("depthwise", {"depthwise": True}, 78.28, 0.08),
    # ... and rises above the previous steps when the saved cost is spent on the width of Swin-T.
    Step("width", {"width": 96}, 80.50, 0.02),
    # 2.4 Inverted bottleneck. Wide in the middle, like a transformer's MLP. The cost drops: the 1 x 1 convolutions on
    # the shortcuts that downsample have fewer channels.
    Step("inverted", {"inverted": True}, 80.64, 0.03),
    # 2.5 Large kernels. The depthwise convolution comes first, as attention comes before the MLP. With C channels, not
    # 4C, accuracy drops, but large kernels cost little.
    Step("moved_up", {"moved_up": True}, 79.92, 0.08),
    # Swin's windows are 7 x 7 or larger. Accuracy rises with the kernel size up to 7, and no further.
    Step("kernel_5", {"kernel_size": 5}, 80.35, 0.08),
    Step("kernel_7", {"kernel_size": 7}, 80.57, 0.14),
    Step("kernel_9", {"kernel_size": 9}, 80.57, 0.06, kept=False),
    Step("kernel_11", {"kernel_size": 11}, 80.47, 0.11, kept=False),
    # 2.6 Micro design. The activation of transformers: no difference within the standard deviation.
    Step("gelu", {"gelu": True}, 80.62, 0.14),
    # One activation, between the two 1 x 1, as in a transformer's block, which has one inside its MLP: +0.7.
    Step("fewer_activations", {"fewer_activations": True}, 81.27, 0.06),
    # One norm, before the two 1 x 1; a transformer's block has two. The accuracy exceeds Swin-T's, 81.3 %.
    Step("fewer_norms", {"fewer_norms": True}, 81.41, 0.09),
    # In the original ResNet, LayerNorm in place of BatchNorm loses accuracy, as the paper says; in this network it
    # does not.
    Step("layer_norm", {"layer_norm": True}, 81.47, 0.09),
    # A step in the authors' code; in the paper, part of the next step.
    Step("final_norm", {"final_norm": True}, None, None),
    # As in Swin. Training diverged until the authors added a LayerNorm wherever the feature map changes size. With
    # LayerNorm after the stem and before each downsampling, and layer scale, the network is `models/convnext.py`.
    Step("separate_downsampling", {"separate_downsampling": True}, 81.97, 0.06),
)


def designs() -> Iterator[tuple[str, Design]]:
    """The name of each step, and the design after the step."""
    kept = Design()
    for step in STEPS:
        design = replace(kept, **step.change)
        yield step.name, design
        kept = design if step.kept else kept


class Block(nn.Module):
    """Three convolutions with a residual connection, from `in_chans` through `hidden` to `dim` channels:

        at first      1 x 1  in_chans → hidden      k x k  hidden → hidden        1 x 1  hidden → dim
        moved up      k x k  in_chans → in_chans    1 x 1  in_chans → hidden      1 x 1  hidden → dim

    The k x k convolution has the stride. If the shape changes, the shortcut is a 1 x 1 convolution and a norm.
    """

    def __init__(self, design: Design, in_chans: int, dim: int, hidden: int, stride: int, drop_path: float) -> None:
        if design.moved_up:
            self.conv1, self.bn1 = design.spatial(in_chans, stride), design.norm(in_chans)
            self.conv2 = design.pointwise(in_chans, hidden)
        else:
            self.conv1, self.bn1 = design.pointwise(in_chans, hidden), design.norm(hidden)
            self.conv2 = design.spatial(hidden, stride)
        self.bn2 = nn.Identity() if design.fewer_norms else design.norm(hidden)
        self.conv3 = design.pointwise(hidden, dim)
        self.bn3 = nn.Identity() if design.fewer_norms else design.norm(dim)
        self.act1 = nn.Identity() if design.fewer_activations else design.activation()
        self.act2 = design.activation()
        self.act3 = nn.Identity() if design.fewer_activations else design.activation()
        self.drop_path = nn.DropPath(drop_path)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_chans != dim:
            self.downsample = nn.Sequential(nn.Conv2d(in_chans, dim, 1, stride, bias=False), design.norm(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.act3(self.downsample(x) + self.drop_path(y))


class RoadmapNet(ImageModel):
    """The network after any step of the roadmap; `RoadmapNet()` is ResNet-50.

    As in the authors' code, all layers but the classifier keep their default initialization.

    Args:
        img_size: default size of the images; other sizes work too.
        in_chans: channels of the images.
        num_classes: outputs of the head; 0: no head, the model returns the channel means.
        stem_stride: total stride of the stem; 4, or 2 for small images.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first block.
        **decisions: fields of `Design`; the defaults are ResNet-50's.
    """

    def __init__(
        self,
        img_size: Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        stem_stride: int = 4,
        drop_path_rate: float = 0.0,
        **decisions: Any,
    ) -> None:
        check_sizes("roadmap", in_chans=in_chans, stem_stride=stem_stride)
        check_sizes("roadmap", minimum=0, num_classes=num_classes)
        check_rates("roadmap", drop_path_rate=drop_path_rate)
        if stem_stride < 2 or stem_stride % 2:
            raise ValueError(
                f"roadmap: stem_stride must be even, as the pooling of ResNet's stem has stride 2, got {stem_stride}"
            )
        self.design = design = Design(**decisions)
        self.img_size, self.in_chans, self.num_classes = image_size(img_size), in_chans, num_classes
        self.stem_stride = stem_stride
        self.min_size = 8 * stem_stride if design.separate_downsampling else stem_stride

        if design.patchify:
            self.conv1 = nn.Conv2d(in_chans, design.width, stem_stride, stride=stem_stride)
        else:
            self.conv1 = nn.Conv2d(in_chans, design.width, 7, stride=stem_stride // 2, padding=3, bias=False)
            self.bn1 = design.norm(design.width)

        stages, downsamplings = [], []
        C, rates = design.width, iter(drop_path_rates(drop_path_rate, sum(design.depths)))  # C: the present channels
        for s, depth in enumerate(design.depths):
            width, stride = design.width * 2**s, 2 if s else 1
            dim, hidden = (width, 4 * width) if design.inverted else (4 * width, width)
            if s:
                downsamplings.append(design.downsampling(C))
            if s and design.separate_downsampling:
                C, stride = 2 * C, 1
            blocks = []
            for _ in range(depth):
                blocks.append(Block(design, C, dim, hidden, stride, next(rates)))
                C, stride = dim, 1
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.ds1, self.ds2, self.ds3 = downsamplings

        self.num_features = C
        self.norm = nn.LayerNorm(C, eps=1e-6) if design.final_norm else nn.Identity()
        self.head = self.make_head(num_classes)

    @property
    def head(self) -> nn.Module:
        """The classifier, named `fc` in ResNet."""
        return self.fc

    @head.setter
    def head(self, layer: nn.Module) -> None:
        self.fc = layer

    def sections(self) -> list[list[str]]:
        sections = [["conv1", "bn1"]]
        for s, depth in enumerate(self.design.depths, start=1):
            blocks = [[f"layer{s}.{b}"] for b in range(depth)]
            blocks[0].insert(0, f"ds{s - 1}")
            sections += blocks
        return sections

    def feature_map(self, x: Tensor) -> Tensor:
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to features (B, C, H / 32, W / 32), with `stem_stride` 4."""
        check_images("roadmap", x, self.in_chans, self.min_size)
        x = self.conv1(x)
        if not self.design.patchify:
            x = F.max_pool2d(F.relu(self.bn1(x)), 3, stride=2, padding=1)
        x = self.layer1(x)
        x = self.layer2(self.ds1(x))
        x = self.layer3(self.ds2(x))
        return self.layer4(self.ds3(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features (B, C, H, W) to logits (B, num_classes)."""
        x = self.norm(x.mean((2, 3)))
        return x if pre_logits else self.head(x)


# For CIFAR-10, images of 32 x 32: a third of the blocks and a quarter of the channels. With a stem of stride 2, the
# feature maps have 16, 8, 4 and 2 pixels a side; with stride 4, most blocks would see 2 x 2 pixels, too few for large
# kernels.
for _number, (_name, _design) in enumerate(designs()):
    _small = replace(_design, depths=tuple(depth // 3 for depth in _design.depths), width=_design.width // 4)
    register(f"roadmap_{_number:02}_{_name}", RoadmapNet, **asdict(_design))
    register(
        f"roadmap_{_number:02}_{_name}_cifar", RoadmapNet,
        img_size=32, num_classes=10, stem_stride=2, **asdict(_small),
    )  # fmt: skip
