"""The steps from ResNet-50 to ConvNeXt: the first against torchvision's ResNet, each against a PyTorch version."""

import numpy as np
import pytest

from minigrad import Tensor
from models.compare import formula, libraries
from models.roadmap import STEPS, RoadmapNet
from tests.compare import relative_error
from tests.models.test_roadmap import small
from tests.reference.conftest import skip_without

torch = pytest.importorskip("torch")

STEP_NAMES = [step.name for step in STEPS]


def assert_equal_networks(ours: RoadmapNet, theirs, x: np.ndarray) -> None:
    """Equal logits, gradients and running statistics, in training and then in evaluation.

    Both networks have their parameters and buffers in the same order.
    """
    weights = formula.stream("loss", len(x), ours.num_classes)
    parameters, their_parameters = list(ours.named_parameters()), list(theirs.parameters())
    buffers = list(ours.named_buffers())
    their_buffers = [value for name, value in theirs.named_buffers() if not name.endswith("num_batches_tracked")]
    for training in (True, False):
        ours.train(training).zero_grad()
        theirs.train(training).zero_grad()
        pixels, torch_pixels = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        logits, expected = ours(pixels), theirs(torch_pixels)
        (logits * Tensor(weights)).sum().backward()
        (expected * torch.tensor(weights)).sum().backward()
        assert relative_error(logits.numpy(), expected.detach().numpy()) < 1e-11
        assert relative_error(pixels.grad.numpy(), torch_pixels.grad.numpy()) < 1e-10
        for (name, parameter), reference in zip(parameters, their_parameters, strict=True):
            assert relative_error(parameter.grad.numpy(), reference.grad.numpy()) < 1e-10, name
        for (name, buffer), reference in zip(buffers, their_buffers, strict=True):
            assert relative_error(buffer.numpy(), reference.numpy()) < 1e-12, name


# torchvision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_first_step_equals_torchvision_resnet(size):
    skip_without("torchvision")
    resnet = libraries.load("torchvision").models.resnet
    theirs = resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], num_classes=7).double()
    ours = formula.fill(RoadmapNet(num_classes=7, depths=(1, 2, 1, 1)))
    weights = {name: torch.tensor(value.numpy()) for name, value in ours.state_dict().items()}
    theirs.load_state_dict(weights)
    assert_equal_networks(ours, theirs, formula.stream("images", 2, 3, *size))


# The steps in PyTorch -------------------------------------------------------------------------------------------------


class ChannelNorm(torch.nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class TorchBlock(torch.nn.Module):
    """The block of a step, layer by layer."""

    def __init__(self, step: str, c: int, d: int, h: int, stride: int) -> None:
        super().__init__()

        def reached(name: str) -> bool:
            return STEP_NAMES.index(step) >= STEP_NAMES.index(name)

        def conv(i: int, o: int, k: int = 1, stride: int = 1, groups: int = 1):
            return torch.nn.Conv2d(i, o, k, stride, (k - 1) // 2, groups=groups, bias=reached("layer_norm"))

        def norm(channels: int):
            return ChannelNorm(channels, eps=1e-6) if reached("layer_norm") else torch.nn.BatchNorm2d(channels)

        relu, gelu, identity = torch.nn.ReLU(), torch.nn.GELU(), torch.nn.Identity()
        k = {"kernel_5": 5, "kernel_9": 9, "kernel_11": 11}.get(step, 7 if reached("kernel_7") else 3)
        self.last = identity if reached("fewer_activations") else gelu if reached("gelu") else relu
        if reached("fewer_norms"):
            body = [conv(c, c, k, stride, c), norm(c), conv(c, h), gelu, conv(h, d)]
        elif reached("fewer_activations"):
            body = [conv(c, c, k, stride, c), norm(c), conv(c, h), norm(h), gelu, conv(h, d), norm(d)]
        elif reached("moved_up"):
            act = self.last
            body = [conv(c, c, k, stride, c), norm(c), act, conv(c, h), norm(h), act, conv(h, d), norm(d)]
        else:
            groups = h if reached("depthwise") else 1
            body = [conv(c, h), norm(h), relu, conv(h, h, 3, stride, groups), norm(h), relu, conv(h, d), norm(d)]
        self.body = torch.nn.Sequential(*body)
        self.shortcut = identity
        if stride == 2 or (c != d):
            self.shortcut = torch.nn.Sequential(torch.nn.Conv2d(c, d, 1, stride, bias=False), norm(d))

    def forward(self, x):
        return self.last(self.shortcut(x) + self.body(x))


class TorchRoadmap(torch.nn.Module):
    """The network of a step, with a stem of stride 2, a third of the blocks and a sixteenth of the channels."""

    def __init__(self, step: str, num_classes: int) -> None:
        super().__init__()
        step_index = STEP_NAMES.index(step)
        width = 6 if step_index >= 4 else 4
        if step_index >= 2:
            self.stem = torch.nn.Conv2d(3, width, 2, 2)
        else:
            self.stem = torch.nn.Sequential(
                torch.nn.Conv2d(3, width, 7, 1, 3, bias=False),
                torch.nn.BatchNorm2d(width),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(3, 2, 1),
            )
        outer, inner = (1, 4) if step_index >= 5 else (4, 1)
        widths = [width * outer * 2**s for s in range(4)]
        self.stages, last = torch.nn.ModuleList(), width
        for s, (d, depth) in enumerate(zip(widths, (1, 1, 2, 1) if step_index == 0 else (1, 1, 3, 1), strict=True)):
            separate = step_index == len(STEP_NAMES) - 1
            blocks = [
                TorchBlock(step, d if separate else last, d, width * inner * 2**s, 2 if s and not separate else 1)
            ]
            blocks += [TorchBlock(step, d, d, width * inner * 2**s, 1) for _ in range(depth - 1)]
            self.stages.append(torch.nn.Sequential(*blocks))
            last = d
        self.between = torch.nn.ModuleList(
            torch.nn.Conv2d(d, 2 * d, 2, 2) if step_index == len(STEP_NAMES) - 1 else torch.nn.Identity()
            for d in widths[:3]
        )
        self.norm = torch.nn.LayerNorm(last, eps=1e-6) if step_index >= len(STEP_NAMES) - 2 else torch.nn.Identity()
        self.fc = torch.nn.Linear(last, num_classes)

    def forward(self, x):
        x = self.stages[0](self.stem(x))
        for between, stage in zip(self.between, self.stages[1:], strict=True):
            x = stage(between(x))
        return self.fc(self.norm(x.mean((2, 3))))


@pytest.mark.parametrize("step", STEP_NAMES)
def test_each_step_equals_pytorch(step):
    ours = formula.fill(small(step))
    theirs = TorchRoadmap(step, ours.num_classes).double()
    for reference, (_, parameter) in zip(theirs.parameters(), ours.named_parameters(), strict=True):
        assert tuple(reference.shape) == parameter.shape
        with torch.no_grad():
            reference.copy_(torch.tensor(parameter.numpy()))
    assert_equal_networks(ours, theirs, formula.stream("images", 2, 3, 32, 32))
    assert_equal_networks(ours, theirs, formula.stream("images", 3, 3, 38, 21))
