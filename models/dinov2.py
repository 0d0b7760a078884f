"""L6: DINOv2, Vision Transformers trained without labels.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", arXiv:2304.07193. The network is a ViT
with patches of 14 x 14 and layer scale, trained on images of 518 x 518 at the end. The largest has a gated MLP (section
5): with SiLU(a) = a · sigmoid(a),

    MLP(x) = (SiLU(x W_a) ⊙ x W_b) W₂                       SwiGLU

Darcet et al. 2023, "Vision Transformers Need Registers", arXiv:2309.16588: large networks store global information in a
few patch tokens of the background, whose norms are far above those of the others and which dominate the attention maps.
With R registers, learned tokens whose outputs are not used, the network stores it there:

    z₀  = [x_class; r¹; ...; r^R; x¹E + E_pos¹; ...; xᴺE + E_posᴺ]

The models have no head: the output is the class token after the last LayerNorm; `forward_features` returns all tokens.
Parameters have timm's names. Axes as in `vit.py`.
"""

from typing import Any

import numpy as np

from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.nn import init
from models.deit import Block, DeiT3
from models.model import check_sizes
from models.registry import register
from models.vit import Mlp


class SwiGLUPacked(nn.Module):
    """The gated MLP. W_a and W_b are packed into one matrix, fc1 with `hidden` rows: half for each.

    Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
    """

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        if hidden % 2:
            raise ValueError(f"DINOv2: SwiGLUPacked halves embed_dim · mlp_ratio, which must be even, got {hidden}")
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden // 2, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)  # (B, L, hidden) -> 2 x (B, L, hidden / 2)
        return self.drop(self.fc2(self.drop(F.silu(a) * b)))


class DINOv2(DeiT3):
    """DINOv2.

    Args:
        reg_tokens: R, the number of registers.
        init_values: initial value of the layer scale.
        no_embed_class: only patch tokens have a position embedding, as in the models with registers.
        mlp_layer: the class of the MLP, `Mlp` or `SwiGLUPacked`.
        **vit: the other arguments of VisionTransformer.
    """

    per_token = (*DeiT3.per_token, SwiGLUPacked)

    def __init__(
        self,
        reg_tokens: int = 0,
        init_values: float = 1e-5,
        no_embed_class: bool = False,
        mlp_layer: type[nn.Module] = Mlp,
        **vit: Any,
    ) -> None:
        check_sizes("DINOv2", minimum=0, reg_tokens=reg_tokens)
        self.num_prefix_tokens, self.mlp_layer = 1 + reg_tokens, mlp_layer
        super().__init__(init_values, no_embed_class, **vit)
        self.reg_token = None
        if reg_tokens:
            self.reg_token = nn.Parameter(np.empty((1, reg_tokens, self.cls_token.shape[-1]), np.float32))
            init.normal_(self.reg_token, std=1e-6)

    def make_block(self, *arguments: Any) -> nn.Module:
        return Block(*arguments, init_values=self.init_values, mlp_layer=self.mlp_layer)

    def prefix_tokens(self) -> list[Tensor]:
        return [self.cls_token] if self.reg_token is None else [self.cls_token, self.reg_token]

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"reg_token"}

    def sections(self) -> list[list[str]]:
        stem, *blocks = super().sections()
        return [[*stem, "reg_token"], *blocks]


# The sizes S to L are those of ViT. The giant's mlp_ratio, timm's number for 16/3, gives fc1 8192 rows: 2 · 4096, with
# 4096 = ⅔ · 4 · 1536, so that the gated MLP has as many parameters as an MLP with ratio 4.
_SIZES: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "giant": {"embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 2 * 2.66667, "mlp_layer": SwiGLUPacked},
}
_DINOV2: dict[str, Any] = {"img_size": 518, "patch_size": 14, "num_classes": 0}

for _size, _config in _SIZES.items():
    register(f"vit_{_size}_patch14_dinov2", DINOv2, **_DINOV2, **_config)
for _size, _config in _SIZES.items():
    register(f"vit_{_size}_patch14_reg4_dinov2", DINOv2, **_DINOV2, **_config, reg_tokens=4, no_embed_class=True)
