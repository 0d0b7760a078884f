"""L6: the Vision Transformer.  Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv:2010.11929.

The file follows section 3.1 of the paper, from the image to the class:

    z₀   = [x_class; x¹E; ...; xᴺE] + E_pos          patches to tokens             (1)
    z'_l = MSA(LN(z_{l-1})) + z_{l-1}                attention between tokens      (2)
    z_l  = MLP(LN(z'_l)) + z'_l                      a network on each token       (3)
    y    = LN(z_L⁰)                                  the class token, read out     (4)

Parameters have the names of timm's port, so that its checkpoints load as they are. Axes: B images of C H W, cut into
N patches; L = N + 1 tokens; D numbers a token.
"""

from typing import Any

import numpy as np

import minigrad
from minigrad import functional as F
from minigrad import nn
from minigrad.nn import init
from minigrad.tensor import Tensor
from models.registry import register


class PatchEmbed(nn.Module):
    """Cut the image into P x P patches, and map each to D numbers: a convolution whose stride is its kernel."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        if img_size < patch_size or img_size % patch_size:
            raise ValueError(
                f"ViT: patch_size must divide img_size, got {patch_size} and {img_size}; "
                f"the next size that fits is {-(-img_size // patch_size) * patch_size}"
            )
        self.img_size, self.in_chans = img_size, in_chans
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (self.in_chans, self.img_size, self.img_size):
            raise ValueError(
                f"ViT: this model takes images of shape (B, {self.in_chans}, {self.img_size}, {self.img_size}), "
                f"got {x.shape}: resize them, or create the model with img_size=..."
            )
        x = self.proj(x)  # (B, C, H, W) -> (B, D, H/P, W/P)
        return x.flatten(2).transpose(1, 2)  # -> (B, N, D), the patches row by row


class Attention(nn.Module):
    """Multi-head self-attention (appendix A): every token looks at every token, in `num_heads` subspaces.

    [q, k, v] = z U_qkv,    A = softmax(q kᵀ / √D_h),    SA(z) = A v,    MSA(z) = [SA₁(z); ...; SA_h(z)] U_msa
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        if dim % num_heads:
            raise ValueError(f"ViT: num_heads must divide embed_dim, got {num_heads} and {dim}")
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        qkv = self.qkv(x).reshape(B, L, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, L, 3, heads, D_h) -> 3 x (B, heads, L, D_h)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        x = x.transpose(1, 2).reshape(B, L, D)  # (B, heads, L, D_h) -> (B, L, D)
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on each token by itself."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Equations (2) and (3): attention, then MLP, each on normalised input and added to the stream."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = nn.DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PreLogits(nn.Module):
    """tanh(y W + b), between the encoder and the head: the paper has it in pre-training (section 3.2)."""

    def __init__(self, dim: int, representation_size: int) -> None:
        self.fc = nn.Linear(dim, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


class VisionTransformer(nn.Module):
    """ViT.

    Args:
        img_size: height and width of the images.
        patch_size: P; it must divide `img_size`.
        in_chans: channels of the images.
        num_classes: outputs of the head; 0: no head, the model returns the representation.
        embed_dim: D, the width of a token.
        depth: number of blocks.
        num_heads: heads of attention; it must divide `embed_dim`.
        mlp_ratio: hidden width of the MLP over `embed_dim`.
        qkv_bias: whether queries, keys and values have a bias.
        representation_size: width of the pre-logits layer; None: there is none.
        drop_rate: dropout after the position embedding and after every dense layer but qkv.
        attn_drop_rate: dropout on the attention probabilities.
        drop_path_rate: stochastic depth of the last block; it rises to that linearly from 0 at the first.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        representation_size: int | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        self.num_classes = num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(np.zeros((1, 1, embed_dim), np.float32))
        self.pos_embed = nn.Parameter(np.empty((1, self.patch_embed.num_patches + 1, embed_dim), np.float32))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            [
                Block(embed_dim, num_heads, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate, drop_path)
                for drop_path in np.linspace(0, drop_path_rate, depth).tolist()
            ]
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.pre_logits = PreLogits(embed_dim, representation_size) if representation_size else nn.Identity()
        self.head = nn.Linear(representation_size or embed_dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """As the authors' code: https://github.com/google-research/vision_transformer, models_vit.py.

        Patches: LeCun normal. Attention: Xavier uniform for each of q, k, v by itself. MLP: Xavier uniform, biases
        N(0, 10⁻⁶). Position embedding N(0, 0.02); class token, head and other biases 0.
        """
        init.lecun_normal_(self.patch_embed.proj.weight)
        init.zeros_(self.patch_embed.proj.bias)
        init.normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            for third in np.split(block.attn.qkv.weight.data, 3):  # views: q, k, v
                init.xavier_uniform_(Tensor(third))
            init.xavier_uniform_(block.attn.proj.weight)
            init.zeros_(block.attn.qkv.bias, block.attn.proj.bias)
            for layer in (block.mlp.fc1, block.mlp.fc2):
                init.xavier_uniform_(layer.weight)
                init.normal_(layer.bias, std=1e-6)
        if isinstance(self.pre_logits, PreLogits):
            init.lecun_normal_(self.pre_logits.fc.weight)
            init.zeros_(self.pre_logits.fc.bias)
        if isinstance(self.head, nn.Linear):
            init.zeros_(self.head.weight, self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone, besides biases and norms."""
        return {"pos_embed", "cls_token"}

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to normalised tokens (B, L, D), the class token first: equations (1) to (3)."""
        x = self.patch_embed(x)
        cls_token = self.cls_token.expand(x.shape[0], -1, -1)  # (1, 1, D) -> (B, 1, D)
        x = minigrad.cat([cls_token, x], dim=1)  # -> (B, L, D), L = N + 1
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D) to logits (B, num_classes): equation (4) and the head."""
        return self.head(self.pre_logits(x[:, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# The sizes of table 1 of the paper, and Ti and S of Steiner et al. 2021, arXiv:2106.10270.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
_PATCHES = {"tiny": (16,), "small": (16, 32), "base": (16, 32), "large": (16, 32), "huge": (14,)}

for _size, _patch in [(size, patch) for size, patches in _PATCHES.items() for patch in patches]:
    _config = _SIZES[_size] | {"patch_size": _patch}
    for _img_size in (224, 384 if _patch != 14 else 392):  # 384 is no multiple of 14
        register(f"vit_{_size}_patch{_patch}_{_img_size}", VisionTransformer, img_size=_img_size, **_config)
    _pretraining = {"num_classes": 21843, "representation_size": _config["embed_dim"]}
    register(f"vit_{_size}_patch{_patch}_224_in21k", VisionTransformer, img_size=224, **_config, **_pretraining)

# For images of 32 x 32 in ten classes: 4 x 4 patches, so 64 of them.
_CIFAR: dict[str, dict[str, Any]] = {
    "vit_nano_cifar": {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0},
    "vit_micro_cifar": {"embed_dim": 96, "depth": 6, "num_heads": 3},
    "vit_tiny_cifar": {"embed_dim": 192, "depth": 9, "num_heads": 3},
    "vit_tiny_cifar_slvit": {"embed_dim": 192, "depth": 9, "num_heads": 12, "mlp_ratio": 2.0},  # arXiv:2112.13492
    "vit_ti12_cifar": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small_cifar": {"embed_dim": 384, "depth": 7, "num_heads": 6},
}

for _name, _config in _CIFAR.items():
    register(_name, VisionTransformer, img_size=32, patch_size=4, num_classes=10, **_config)
