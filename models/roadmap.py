"""L6: the road from ResNet-50 to ConvNeXt.  Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545.

The file follows section 2 of the paper, which changes a ResNet (He et al. 2015, arXiv:1512.03385) one decision at a
time into a network that keeps up with Swin: `Design` has a field for each decision, `STEPS` takes them in the paper's
order, and `Block` and `RoadmapNet` can be built at every step.

Parameters have the names of torchvision's ResNet, all the way: `bn1` stays `bn1` when it is a LayerNorm. What ResNet
lacks (`ds1`, `norm`) is named as in the authors' code: https://github.com/anonymous20222022/convnext, of which the
steps follow every detail. Axes: B images of C H W; C is `width` in the first stage and doubles from stage to stage.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.nn import init
from models.convnext import LayerNorm2d
from models.model import ImageModel, drop_path_rates, image_size
from models.registry import register


@dataclass(frozen=True)
class Design:
    """The decisions on the road, in its order. The defaults make ResNet-50."""

    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks in each of the four stages
    patchify: bool = False  # the stem cuts the image into patches; False: a 7 × 7 convolution and a pooling
    depthwise: bool = False  # the k × k convolution has a filter for each channel; False: dense
    width: int = 64  # C in the first stage
    inverted: bool = False  # a block is wide inside, C -> 4C -> C; False: wide at its ends, 4C -> C -> 4C
    moved_up: bool = False  # the k × k convolution comes first in a block; False: between the two 1 × 1
    kernel_size: int = 3  # k
    gelu: bool = False  # the activation of the blocks; False: ReLU
    fewer_activations: bool = False  # one in a block, before the last 1 × 1; False: also after the others, and the sum
    fewer_norms: bool = False  # one in a block, after the first convolution; False: after each
    layer_norm: bool = False  # over the channels of each pixel; False: BatchNorm
    final_norm: bool = False  # a LayerNorm between the pooling and the classifier
    separate_downsampling: bool = False  # a convolution between stages; False: a stride in a stage's first block
    downsampling_norm: bool = False  # a norm after each of these convolutions: in the authors' code, on no step

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths: there are four stages, each of at least one block; got {self.depths}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: must be odd, to be centred on a pixel; got {self.kernel_size}")

    def norm(self, channels: int) -> nn.Module:
        """The normalisation of this design."""
        return LayerNorm2d(channels, eps=1e-6) if self.layer_norm else nn.BatchNorm2d(channels)

    def activation(self) -> nn.Module:
        """The activation of this design."""
        return nn.GELU() if self.gelu else nn.ReLU()


@dataclass(frozen=True)
class Step:
    """A change of the design, and what table 10 of the paper reports: the top-1 accuracy on ImageNet at 224, the mean
    of three runs, and their standard deviation. None: the paper does not say."""

    name: str
    change: dict[str, Any] = field(default_factory=dict)
    top1: float | None = None
    deviation: float | None = None
    kept: bool = True  # whether the road goes on from here; False: it goes on from the step before


STEPS = (
    # 2.1 Training. The network is as it was, with 76.13 %. Trained as transformers are (300 epochs of AdamW; mixup,
    # CutMix, RandAugment, erasing, stochastic depth, label smoothing) it gains 2.7 points: no step to come gains more.
    Step("resnet50", {}, 78.82, 0.07),
    # 2.2 Macro design. Swin-T spends its blocks in the ratio 1 : 1 : 3 : 1, most of them on 14 × 14 maps.
    Step("stage_ratio", {"depths": (3, 3, 9, 3)}, 79.36, 0.07),
    # A stem of one convolution whose windows do not overlap, as in ViT and Swin, does as well as 7 × 7 and pooling.
    Step("patchify", {"patchify": True}, 79.51, 0.18),
    # 2.3 ResNeXt-ify. As in attention, one operation now mixes pixels and another one channels. That halves the cost,
    # and loses 1.2 points ...
    Step("depthwise", {"depthwise": True}, 78.28, 0.08),
    # ... which are won back twice over when what was saved is spent on Swin-T's width.
    Step("width", {"width": 96}, 80.50, 0.02),
    # 2.4 Inverted bottleneck. Wide inside, as the MLP of a transformer is. It even costs less: the shortcuts that
    # change the resolution are narrow now.
    Step("inverted", {"inverted": True}, 80.64, 0.03),
    # 2.5 Large kernels. The k × k convolution comes first, as attention comes before the MLP, and there are only C
    # channels for it. A step back, to make large kernels cheap.
    Step("moved_up", {"moved_up": True}, 79.92, 0.08),
    # Swin's windows are at least 7 × 7. For a kernel too, 7 is where the gain ends; 9 and 11 were tried.
    Step("kernel_5", {"kernel_size": 5}, 80.35, 0.08),
    Step("kernel_7", {"kernel_size": 7}, 80.57, 0.14),
    Step("kernel_9", {"kernel_size": 9}, 80.57, 0.06, kept=False),
    Step("kernel_11", {"kernel_size": 11}, 80.47, 0.11, kept=False),
    # 2.6 Micro design. The activation of transformers: it makes no difference here.
    Step("gelu", {"gelu": True}, 80.62, 0.14),
    # A transformer's block has one activation, inside its MLP. So has this one now, between the two 1 × 1: +0.7.
    Step("fewer_activations", {"fewer_activations": True}, 81.27, 0.06),
    # One norm, before the 1 × 1 convolutions: fewer than a transformer's block has. Swin-T, with 81.3 %, is passed.
    Step("fewer_norms", {"fewer_norms": True}, 81.41, 0.09),
    # In a ResNet as it was, LayerNorm in place of BatchNorm costs accuracy; in this one it does not.
    Step("layer_norm", {"layer_norm": True}, 81.47, 0.09),
    # The paper counts this norm to the next step; its code has it as a step.
    Step("final_norm", {"final_norm": True}),
    # Swin halves the resolution between stages, and not in a block. In the paper this step also has a LayerNorm wherever
    # the resolution changes, without which training diverged: with these and layer scale, it is `models.convnext`.
    Step("separate_downsampling", {"separate_downsampling": True}, 81.97, 0.06),
)


def designs() -> Iterator[tuple[str, Design]]:
    """Each step's name, and the design when it has been taken."""
    so_far = Design()
    for step in STEPS:
        design = replace(so_far, **step.change)
        yield step.name, design
        if step.kept:
            so_far = design


class Block(nn.Module):
    """Three convolutions around which the input is carried past, and added.

    in_chans -> dim channels, and `hidden` between them:

        bottleneck    1 × 1 (in_chans -> hidden)    k × k (hidden)                1 × 1 (hidden -> dim)
        moved up      k × k (in_chans)              1 × 1 (in_chans -> hidden)    1 × 1 (hidden -> dim)
    """

    def __init__(self, design: Design, in_chans: int, dim: int, hidden: int, stride: int, drop_path: float) -> None:
        bias = design.layer_norm  # a BatchNorm would take it away again
        one, k = 1, design.kernel_size

        def spatial(channels: int) -> nn.Conv2d:
            groups = channels if design.depthwise else 1
            return nn.Conv2d(channels, channels, k, stride=stride, padding=k // 2, groups=groups, bias=bias)

        if design.moved_up:
            self.conv1 = spatial(in_chans)
            self.bn1 = design.norm(in_chans)
            self.conv2 = nn.Conv2d(in_chans, hidden, one, bias=bias)
        else:
            self.conv1 = nn.Conv2d(in_chans, hidden, one, bias=bias)
            self.bn1 = design.norm(hidden)
            self.conv2 = spatial(hidden)
        self.bn2 = nn.Identity() if design.fewer_norms else design.norm(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, one, bias=bias)
        self.bn3 = nn.Identity() if design.fewer_norms else design.norm(dim)
