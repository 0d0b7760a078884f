"""L6: DeiT and DeiT III, Vision Transformers trained on ImageNet-1k alone.

DeiT: Touvron et al. 2020, "Training data-efficient image transformers & distillation through attention",
arXiv:2012.12877. The network is ViT; the contribution is a training without larger datasets. To learn from a teacher, a
distillation token follows the class token, and each of the two has a head (section 4 and figure 2):

    z₀  = [x_class; x_dist; x¹E; ...; xᴺE] + E_pos          patches to tokens
    y   = ½ (head(LN(z_L⁰)) + head_dist(LN(z_L¹)))          output: the mean of both heads

The target of head is the label; the target of head_dist is the class that the teacher predicts.

DeiT III: Touvron, Cord, Jégou 2022, "DeiT III: Revenge of the ViT", arXiv:2204.07118. A simpler training without a
teacher, and two changes of the network: layer scale λ, and a class token without a position embedding:

    z₀   = [x_class; x¹E + E_pos¹; ...; xᴺE + E_posᴺ]
    z'_l = λ₁ ⊙ MSA(LN(z_{l-1})) + z_{l-1}
    z_l  = λ₂ ⊙ MLP(LN(z'_l)) + z'_l

Parameters have timm's names. Axes as in `vit.py`.
"""

from typing import Any

import numpy as np

from minigrad import Tensor, nn
from minigrad.backend.fast_paths import with_fast_paths
from minigrad.nn import init
from minigrad.nn.residual import residual_add
from models import vit
from models.model import linear_head
from models.registry import register
from models.vit import VisionTransformer


class DeiT(VisionTransformer):
    """The network of ViT, initialized as in timm."""

    def init_weights(self) -> None:
        """Initialize as timm and, except for the class token, the authors' code: https://github.com/facebookresearch/deit.

        Weights of linear layers and position embedding: truncated normal with std 0.02. Biases: 0. Class token: normal
        with std 10⁻⁶ (the authors': 0.02). The patch embedding keeps the initialization of `nn.Conv2d`.
        """
        init.trunc_normal_(self.pos_embed, std=0.02)
        init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)

    def make_head(self, num_classes: int) -> nn.Module:
        return linear_head(self.num_features, num_classes)


# With a teacher -------------------------------------------------------------------------------------------------------


class VisionTransformerDistilled(DeiT):
    """DeiT with a distillation token (section 4).

    In evaluation mode, and in training mode unless `distilled_training` is set, the output is the mean of the logits of
    both heads.

    Args:
        **vit: the arguments of VisionTransformer; `global_pool` must be "token", without `representation_size`.

    Attributes:
        distilled_training: in training mode, return the logits of both heads, (head, head_dist), each (B, num_classes).
    """

    num_prefix_tokens = 2
    num_prefix_positions = 2

    def __init__(self, **vit: Any) -> None:
        super().__init__(**vit)
        if self.global_pool != "token" or not isinstance(self.pre_logits, nn.Identity):
            raise ValueError(
                "DeiT: the heads read the class token and the distillation token: global_pool must be 'token', and "
                f"representation_size None, got {self.global_pool!r} and {self.num_features}"
            )
        self.dist_token = nn.Parameter(np.empty(self.cls_token.shape, np.float32))
        init.trunc_normal_(self.dist_token, std=0.02)
        self.head_dist = self.make_head(self.num_classes)
        self.distilled_training = False

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether the model returns the logits of both heads in training mode."""
        self.distilled_training = enable

    def heads(self) -> list[nn.Module]:
        return [self.head, self.head_dist]

    def prefix_tokens(self) -> list[Tensor]:
        return [self.cls_token, self.dist_token]

    def head_tokens(self) -> int:
        return 2

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Tokens (B, L, D) to the mean of both heads' logits, (B, num_classes); to a pair of logits in training with
        `distilled_training`. With `pre_logits`, to the mean of both tokens, (B, D)."""
        x, x_dist = x[:, 0], x[:, 1]
        if not pre_logits:
            x, x_dist = self.head(x), self.head_dist(x_dist)
            if self.distilled_training and self.training:
                return x, x_dist
        return (x + x_dist) / 2

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace both heads. They read the two tokens: `global_pool` can only be "token"."""
        if global_pool not in (None, "token"):
            raise ValueError(f"DeiT: the heads read two tokens: global_pool must be 'token', got {global_pool!r}")
        super().reset_classifier(num_classes)
        self.head_dist = self.make_head(num_classes).to(dtype=self.dist_token.dtype, device=self.dist_token.device)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"dist_token"}

    def sections(self) -> list[list[str]]:
        stem, *blocks = super().sections()
        return [[*stem, "dist_token"], *blocks]


# DeiT III -------------------------------------------------------------------------------------------------------------


class LayerScale(nn.Module):
    """The layer scale λ of a branch, one factor for each channel (Touvron et al. 2021, arXiv:2103.17239). λ starts near
    zero: a block starts close to the identity, so that deep networks train.

    The module only holds the parameter, named `gamma` as in timm; the residual connection of the block applies it.
    """

    def __init__(self, dim: int, init_values: float) -> None:
        self.gamma = nn.Parameter(np.full(dim, init_values, np.float32))


class Block(vit.Block):
    """A block with layer scale: λ₁ is ls1.gamma, λ₂ is ls2.gamma.

    x = x + drop_path(λ₁ ⊙ attn(norm1(x)))
    x = x + drop_path(λ₂ ⊙ mlp(norm2(x)))
    """

    def __init__(self, dim: int, *arguments: Any, init_values: float, **options: Any) -> None:
        super().__init__(dim, *arguments, **options)
        self.ls1, self.ls2 = LayerScale(dim, init_values), LayerScale(dim, init_values)

    @with_fast_paths
    def forward(self, x: Tensor, tokens: int | None = None) -> Tensor:
        if tokens is None:
            y = self.attn(self.norm1(x))
        else:
            x, y = x[:, :tokens].contiguous(), self.attn(self.norm1(x), tokens)
        x = residual_add(x, y, self.drop_path, self.ls1.gamma)
        return residual_add(x, self.mlp(self.norm2(x)), self.drop_path, self.ls2.gamma)


class DeiT3(DeiT):
    """DeiT III.

    As in timm, `drop_path_rate` rises linearly over the blocks; the authors use the same rate for all blocks.

    Args:
        init_values: initial value of the layer scale λ; the authors' code has 10⁻⁴.
        no_embed_class: only patch tokens have a position embedding; else the prefix tokens, too.
        **vit: the other arguments of VisionTransformer.
    """

    per_token = (*DeiT.per_token, Block, LayerScale)

    def __init__(self, init_values: float = 1e-6, no_embed_class: bool = True, **vit: Any) -> None:
        self.init_values, self.no_embed_class = init_values, no_embed_class
        self.num_prefix_positions = 0 if no_embed_class else self.num_prefix_tokens
        super().__init__(**vit)

    def make_block(self, *arguments: Any) -> nn.Module:
        return Block(*arguments, init_values=self.init_values)

    def embed(self, x: Tensor) -> Tensor:
        return self.add_prefix(x + self.pos_embed) if self.no_embed_class else super().embed(x)


# Sizes and names as in timm. Ti, S and B: table 1 of DeiT; the others: table 1 of DeiT III.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}

for _distilled, _class in (("", DeiT), ("_distilled", VisionTransformerDistilled)):
    for _size, _img_size in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        register(f"deit_{_size}{_distilled}_patch16_{_img_size}", _class, img_size=_img_size, **_SIZES[_size])

for _size, _img_sizes in {
    "small": (224, 384), "medium": (224,), "base": (224, 384), "large": (224, 384), "huge": (224,),
}.items():  # fmt: skip
    for _img_size in _img_sizes:
        _patch = _SIZES[_size].get("patch_size", 16)
        register(f"deit3_{_size}_patch{_patch}_{_img_size}", DeiT3, img_size=_img_size, **_SIZES[_size])
