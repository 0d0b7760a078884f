"""L6: ConvNeXt V2.  Woo, Debnath, Hu, Chen, Liu, Kweon, Xie 2023, "ConvNeXt V2: Co-designing and Scaling ConvNets with
Masked Autoencoders", arXiv:2301.00808.

Pre-training on masked images improves a ConvNeXt little: in the MLPs, which have four times as many channels as the
block, many channels are dead or alike (figure 3). So the paper adds global response normalisation (GRN) after the GELU,
and removes the layer scale, which GRN makes unnecessary (section 3.3):

    G_c = ‖x_c‖                       the response of channel c: its norm over the H x W pixels of the image
    N_c = G_c / ⟨G⟩                   relative to the mean over the channels
    y   = x + γ ⊙ N ⊙ x + β           initially γ = β = 0, so y = x

All else is ConvNeXt's: `models/convnext.py`. The op: `minigrad/ops/response_norm.py`.

Parameters have the names of the authors' code, https://github.com/facebookresearch/ConvNeXt-V2, where γ and β of GRN
have the shape (1, 1, 1, C).
"""

from typing import Any, ClassVar

import numpy as np

from minigrad import Tensor, nn
from minigrad import functional as F
from models import convnext
from models.convnext import ConvNeXt
from models.registry import register


class GRN(nn.Module):
    """y = x + γ ⊙ N ⊙ x + β, for x (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        self.gamma = nn.Parameter(np.zeros(dim, np.float32))
        self.beta = nn.Parameter(np.zeros(dim, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.global_response_norm(x, self.gamma, self.beta, eps=1e-6)


class Block(convnext.Block):
    """y = x + MLP(LN(dwconv(x))), with GRN in the MLP."""

    def __init__(
        self, dim: int, kernel_size: int, mlp_ratio: float, drop_path: float, layer_scale: float | None
    ) -> None:
        self.grn = GRN(int(mlp_ratio * dim))  # first, so that the last parameter is that of the last layer, pwconv2
        super().__init__(dim, kernel_size, mlp_ratio, drop_path, layer_scale)

    def mlp(self, x: Tensor) -> Tensor:
        """C to 4C, GELU, GRN, 4C to C."""
        return self.pwconv2(self.grn(F.gelu(self.pwconv1(x))))


class ConvNeXtV2(ConvNeXt):
    """ConvNeXt V2.

    Args:
        layer_scale_init_value: as in ConvNeXt; None: no layer scale, as in the paper.
        **convnext: the other arguments of ConvNeXt.
    """

    block: ClassVar = Block

    def __init__(self, layer_scale_init_value: float | None = None, **convnext: Any) -> None:
        super().__init__(layer_scale_init_value=layer_scale_init_value, **convnext)


# The paper's sizes; S is timm's.
_SIZES: dict[str, dict[str, Any]] = {
    name: convnext.SIZES[name] for name in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
} | {"huge": {"depths": (3, 3, 27, 3), "dims": (352, 704, 1408, 2816)}}

for _size, _config in _SIZES.items():
    register(f"convnextv2_{_size}", ConvNeXtV2, **_config)

# For CIFAR-10, images of 32 x 32, as in `models/convnext.py`.
register("convnextv2_atto_cifar", ConvNeXtV2, img_size=32, stem_size=2, num_classes=10, **_SIZES["atto"])
