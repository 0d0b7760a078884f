"""L6: the Vision Transformer.  Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv:2010.11929.

The file follows section 3.1 of the paper, from image to logits:

    z₀   = [x_class; x¹E; ...; xᴺE] + E_pos          patches to tokens             (1)
    z'_l = MSA(LN(z_{l-1})) + z_{l-1}                attention between tokens      (2)
    z_l  = MLP(LN(z'_l)) + z'_l                      an MLP on each token          (3)
    y    = LN(z_L⁰)                                  output: the class token       (4)

Parameters have the names of timm's port, so timm's checkpoints load without renaming. Axes: B images (C, H, W), cut
into N patches; L = N + 1 tokens of D values each.
"""

from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

import minigrad
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.backend.fast_paths import fast_path_of, with_fast_paths
from minigrad.nn import init
from minigrad.nn.hooks import has_hooks
from minigrad.nn.residual import residual_add, residual_add_norm
from minigrad.ops.checks import sides
from models.model import (
    ImageModel,
    Size,
    check_images,
    check_rates,
    check_ratio,
    check_sizes,
    drop_path_rates,
    image_size,
    pair_size,
)
from models.registry import register


class PatchEmbed(nn.Module):
    """Cut images into patches of P x P (or PH x PW) pixels and map each patch linearly to D values: a convolution
    whose stride equals its kernel size."""

    def __init__(self, img_size: Size, patch_size: Size, in_chans: int, embed_dim: int) -> None:
        self.patch_size, self.in_chans, self.stride = patch_size, in_chans, sides(patch_size)[0]
        self.set_input_size(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, sides(patch_size), stride=sides(patch_size))

    def set_input_size(self, img_size: Size) -> None:
        """Set the size of the images that `forward` accepts."""
        (PH, PW), (H, W) = sides(self.patch_size), image_size(img_size)
        if H % PH or W % PW:
            raise ValueError(
                f"ViT: patch_size must divide img_size, got {self.patch_size} and {H} x {W}; "
                f"the next size that fits is {-(-H // PH) * PH} x {-(-W // PW) * PW}"
            )
        self.img_size, self.grid_size = (H, W), (H // PH, W // PW)

    def forward(self, x: Tensor) -> Tensor:
        check_size(x, self.in_chans, self.img_size)
        x = self.proj(x)  # (B, C, H, W) -> (B, D, H/PH, W/PW)
        return x.flatten(2).transpose(1, 2)  # -> (B, N, D), the patches row by row


def check_size(x: Tensor, in_chans: int, img_size: tuple[int, int]) -> None:
    """Raise an error unless the images have the size of the position embedding."""
    check_images("ViT", x, in_chans)
    if x.shape[2:] != img_size:
        raise ValueError(
            f"ViT: this model needs images of shape (B, {in_chans}, {img_size[0]}, {img_size[1]}), got {x.shape}: "
            "resize them, create the model with img_size=..., or call model.set_input_size(...)"
        )


def check_pool(global_pool: str) -> None:
    """Raise an error unless the head can read this pooling."""
    if global_pool not in ("token", "avg", ""):
        raise ValueError(f'ViT: global_pool must be "token", "avg" or "", got {global_pool!r}')


class Attention(nn.Module):
    """Multi-head self-attention (appendix A): every token attends to every token, in h heads of width D_h.

    [q, k, v] = z U_qkv,    A = softmax(q kᵀ / √D_h),    SA(z) = A v,    MSA(z) = [SA₁(z); ...; SA_h(z)] U_msa
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        if dim % num_heads:
            raise ValueError(f"ViT: num_heads must divide embed_dim, got {num_heads} and {dim}")
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, each (B, heads, L, D_h). The rows of qkv.weight are q of all heads, then k, then v."""
        B, L, D = x.shape
        qkv = self.qkv(x).reshape(B, L, 3, self.num_heads, D // self.num_heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, L, 3, heads, D_h) -> 3 x (B, heads, L, D_h)

    def first_heads(self, x: Tensor, tokens: int) -> tuple[Tensor, ...]:
        """As `heads`, but q of the first `tokens` tokens alone: (B, heads, tokens, D_h)."""
        B, L, D = x.shape
        qkv = self.qkv(x).reshape(B, L, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv[:, :tokens, 0], qkv[:, :, 1], qkv[:, :, 2]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, ·, heads, D_h) -> (B, heads, ·, D_h)

    def forward(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """MSA(x) of all tokens of x (B, L, D), or of the first `tokens` tokens alone: they attend to all tokens."""
        q, k, v = self.heads(x) if tokens is None else self.first_heads(x, tokens)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        y = y.transpose(1, 2).flatten(2)  # (B, heads, L, D_h) -> (B, L, heads, D_h) -> (B, L, D)
        return self.proj_drop(self.proj(y))

    def probabilities(self, x: Tensor) -> Tensor:
        """The attention probabilities A, which `forward` does not return: (B, heads, L, L)."""
        q, k, _ = self.heads(x)
        return F.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, applied to each token separately."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Equations (2) and (3): attention and MLP, each after a LayerNorm and with a residual connection.

    x = x + drop_path(attn(norm1(x)))
    x = x + drop_path(mlp(norm2(x)))
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        drop_path: float,
        mlp_layer: Callable[..., nn.Module] = Mlp,
    ) -> None:
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp_layer(dim, int(dim * mlp_ratio), drop)
        self.drop_path = nn.DropPath(drop_path)

    @with_fast_paths
    def forward(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """z_l of all tokens, or of the first `tokens` tokens alone."""
        if tokens is None:
            y = self.attn(self.norm1(x))
        else:
            x, y = x[:, :tokens].contiguous(), self.attn(self.norm1(x), tokens)
        x, y = residual_add_norm(x, y, self.drop_path, self.norm2)  # z'_l, LN(z'_l)
        return residual_add(x, self.mlp(y), self.drop_path)  # z_l

    def attention_map(self, x: Tensor) -> Tensor:
        """The attention probabilities of this block for its input x: (B, heads, L, L), a row for each query."""
        return self.attn.probabilities(self.norm1(x))


class PreLogits(nn.Module):
    """tanh(y W + b), the hidden layer of the paper's pre-training head (sections 3.1 and D.3)."""

    def __init__(self, dim: int, representation_size: int) -> None:
        self.fc = nn.Linear(dim, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


class VisionTransformer(ImageModel):
    """ViT.

    Args:
        img_size: (height, width) of the images, or one integer for both.
        patch_size: P, or (height, width); must divide `img_size`.
        in_chans: channels of the images.
        num_classes: outputs of the head; 0: no head, the model returns features.
        embed_dim: D, the dimension of a token.
        depth: number of blocks.
        num_heads: attention heads; must divide `embed_dim`.
        mlp_ratio: hidden dimension of the MLP, divided by `embed_dim`.
        qkv_bias: add a bias to queries, keys and values.
        representation_size: dimension of the pre-logits layer; None: no pre-logits layer.
        global_pool: the input of the head: "token", the class token, as in the paper; "avg", the mean of the patch
            tokens, with the last LayerNorm after the mean, not before; "", every token: logits (B, L, num_classes).
        drop_rate: dropout after the position embedding and after every linear layer of a block except qkv.
        attn_drop_rate: dropout on the attention probabilities.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first block.

    Attributes:
        num_prefix_tokens: the tokens before the patch tokens, here the class token alone.
        num_prefix_positions: of these, the tokens with a position embedding.
        per_token: modules for `forward_of_head_tokens`: they compute each token separately, or are the block and its
            attention, which have the argument `tokens`.
    """

    num_prefix_tokens = 1
    num_prefix_positions = 1
    per_token: ClassVar[tuple[type[nn.Module], ...]] = (
        Block, Attention, Mlp, nn.LayerNorm, nn.Linear, nn.Dropout, nn.DropPath,
    )  # fmt: skip

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        representation_size: int | None = None,
        global_pool: Literal["token", "avg", ""] = "token",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        patch_size = pair_size(patch_size, "patch_size", "ViT")
        check_sizes("ViT", in_chans=in_chans, embed_dim=embed_dim, num_heads=num_heads)
        check_sizes("ViT", minimum=0, depth=depth, num_classes=num_classes)
        check_rates("ViT", drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        check_ratio("ViT", mlp_ratio, embed_dim)
        if representation_size is not None:
            check_sizes("ViT", representation_size=representation_size)
        check_pool(global_pool)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = representation_size or embed_dim
        self.patch_embed = self.make_patch_embed(img_size, patch_size, in_chans, embed_dim)
        self.img_size = self.patch_embed.img_size
        positions = self.num_prefix_positions + prod(self.patch_embed.grid_size)
        self.cls_token = nn.Parameter(np.zeros((1, 1, embed_dim), np.float32))
        self.pos_embed = nn.Parameter(np.empty((1, positions, embed_dim), np.float32))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            [
                self.make_block(embed_dim, num_heads, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate, drop_path)
                for drop_path in drop_path_rates(drop_path_rate, depth)
            ]
        )
        averaging = global_pool == "avg"
        self.norm = nn.Identity() if averaging else nn.LayerNorm(embed_dim, eps=1e-6)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if averaging else nn.Identity()
        self.pre_logits = PreLogits(embed_dim, representation_size) if representation_size else nn.Identity()
        self.head = self.make_head(num_classes)
        self.init_weights()

    def make_patch_embed(self, img_size: Size, patch_size: Size, in_chans: int, embed_dim: int) -> Any:
        """The module that maps images to N tokens."""
        return PatchEmbed(img_size, patch_size, in_chans, embed_dim)

    def make_block(self, *arguments: Any) -> nn.Module:
        """One of the blocks, from the arguments of `Block`."""
        return Block(*arguments)

    def init_weights(self) -> None:
        """Initialize as the authors' code: https://github.com/google-research/vision_transformer, models_vit.py.

        Patch embedding: LeCun normal. Attention: Xavier uniform, for q, k and v separately. MLP: Xavier uniform, biases
        normal with std 10⁻⁶. Position embedding: normal with std 0.02. Class token, head and other biases: 0.
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

    def make_head(self, num_classes: int) -> nn.Module:
        """A head initialized to 0: all classes start with the same probability."""
        if not num_classes:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes)
        init.zeros_(head.weight, head.bias)
        return head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the pre-training head by one linear layer, as the paper does to fine-tune (section 3.2).

        As in timm, a change of `global_pool` leaves the last LayerNorm where it is.
        """
        check_sizes("ViT", minimum=0, num_classes=num_classes)  # before anything is replaced
        if global_pool is not None:
            check_pool(global_pool)
            self.global_pool = global_pool
        self.pre_logits, self.num_features = nn.Identity(), self.pos_embed.shape[-1]
        super().reset_classifier(num_classes)

    def set_input_size(self, img_size: Size) -> None:
        """Accept images of another size: interpolate the position embedding to the new grid (section 3.2).

        Create the optimizer afterwards: an existing optimizer holds the old position embedding.
        """
        old = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size)
        self.img_size, new = self.patch_embed.img_size, self.patch_embed.grid_size
        if new != old:
            pos_embed = resample_pos_embed(
                self.pos_embed.detach(), old, new, num_prefix_positions=self.num_prefix_positions
            )
            self.pos_embed = nn.Parameter(pos_embed.data, self.pos_embed.requires_grad)

    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings, which are offsets, not weight matrices."""
        return {"pos_embed", "cls_token"}

    def sections(self) -> list[list[str]]:
        stem = ["patch_embed", "cls_token", "pos_embed"]
        return [stem, *([f"blocks.{i}"] for i in range(len(self.blocks)))]

    def feature_map(self, x: Tensor) -> Tensor:
        """The patch tokens of x (B, L, D) as a feature map (B, D, H', W')."""
        B, _, D = x.shape
        x = x[:, self.num_prefix_tokens :]  # -> (B, N, D)
        return x.transpose(1, 2).reshape(B, D, *self.patch_embed.grid_size)  # (B, N, D) -> (B, D, H', W')

    def prefix_tokens(self) -> list[Tensor]:
        """The learned tokens before the patch tokens, each (1, n, D)."""
        return [self.cls_token]

    def add_prefix(self, x: Tensor) -> Tensor:
        """The prefix tokens, and after them the patch tokens x: (B, N, D) -> (B, L, D)."""
        tokens = [token.expand(x.shape[0], -1, -1) for token in self.prefix_tokens()]  # (1, n, D) -> (B, n, D)
        return minigrad.cat([*tokens, x], dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Patches xE (B, N, D) to z₀ (B, L, D): equation (1)."""
        return self.add_prefix(x) + self.pos_embed

    @with_fast_paths
    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def normalized(self, output: Tensor) -> Tensor:
        """The LayerNorm of (4), of tokens."""
        return self.norm(output) if output.ndim == 3 else output

    def feature_indices(self) -> list[int]:
        """All transformer blocks."""
        return [i for i, name in enumerate(self.blocks_by_name()) if name.startswith("blocks.")]

    def feature_reductions(self) -> list[int]:
        return [self.patch_embed.stride] * len(self.feature_indices())

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, L, D), the class token first: equations (1) to (3), and the LayerNorm of
        (4) unless `global_pool` is "avg"."""
        return self.norm(self.encode(x))

    def encode(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """Images to z_L of all tokens, or of the first `tokens` tokens alone: equations (1) to (3)."""
        x = self.pos_drop(self.embed(self.patch_embed(x)))
        for i, block in enumerate(self.blocks, 1):
            x = block(x) if tokens is None or i < len(self.blocks) else block(x, tokens)
        return x

    def head_tokens(self) -> int | None:
        """The number of first tokens that `forward_head` reads, or None for all tokens.

        A subclass with another `forward_head` reads all tokens, unless it defines `head_tokens`, too.
        """
        forwards = type(self).forward_features, type(self).forward_head
        known = forwards == (VisionTransformer.forward_features, VisionTransformer.forward_head)
        return 1 if known and self.global_pool == "token" else None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, L, D) to logits (B, num_classes): equation (4) and the head."""
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(1)
        x = self.pre_logits(self.fc_norm(x))
        return x if pre_logits else self.head(x)


def _only_head_reads(model: VisionTransformer, x: Tensor) -> bool:
    """True if nothing but the head can read the other tokens: the modules of the last block and the norm are those of
    this file, without hooks, checkpointing, or dropout of single elements, whose masks would have other shapes."""
    if not (model.blocks and model.head_tokens()) or {"forward_features", "forward_head"} & vars(model).keys():
        return False
    for module in (*model.blocks[-1].modules(), *model.norm.modules()):
        if type(module) not in model.per_token or has_hooks(module) or "forward" in vars(module):
            return False
        dropped = module.attn_drop if isinstance(module, Attention) else isinstance(module, nn.Dropout) and module.p
        if module.checkpointing or (dropped and module.training):
            return False
    return True


@fast_path_of(VisionTransformer.forward, supports=_only_head_reads)
def forward_of_head_tokens(model: VisionTransformer, x: Tensor) -> Tensor:
    """The head reads only the class token, so the last block needs only the query of this token, and computes only its
    attention and its MLP: of 12 D² multiplications for each other token, 9 D² are left out."""
    return model.forward_head(model.norm(model.encode(x, model.head_tokens())))


def resample_pos_embed(
    pos_embed: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    antialias: bool = True,
    num_prefix_positions: int = 1,
) -> Tensor:
    """Interpolate position embeddings (1, n + h·w, D) to another grid, bicubic. The first n, of the prefix tokens such
    as the class token, stay.

    With `antialias` as in timm; without, as in Hugging Face's transformers.
    """
    n = num_prefix_positions
    if pos_embed.shape[1] != n + old[0] * old[1]:
        raise ValueError(f"a {old[0]} x {old[1]} grid has {n + old[0] * old[1]} positions, got {pos_embed.shape}")
    if old == new:
        return pos_embed
    D = pos_embed.shape[-1]
    grid = pos_embed[:, n:].reshape(1, *old, D).permute(0, 3, 1, 2)  # (1, h·w, D) -> (1, D, h, w)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=antialias)
    grid = grid.flatten(2).transpose(1, 2)  # (1, D, h', w') -> (1, h'·w', D)
    return minigrad.cat([pos_embed[:, :n], grid], dim=1)


# Sizes B, L and H are from table 1 of the paper, Ti and S from Steiner et al. 2021, arXiv:2106.10270.
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
    for _img_size in (224, 384 if _patch != 14 else 392):  # 384 is not a multiple of 14
        register(f"vit_{_size}_patch{_patch}_{_img_size}", VisionTransformer, img_size=_img_size, **_config)
    _pretraining = {"num_classes": 21843, "representation_size": _config["embed_dim"]}
    register(f"vit_{_size}_patch{_patch}_224_in21k", VisionTransformer, img_size=224, **_config, **_pretraining)

# DINO (Caron et al. 2021, arXiv:2104.14294) trains ViTs without labels, S and B with patches of 16 x 16 or 8 x 8. Its
# weights have no head: they are for num_classes=0. As in timm, S/8 has no head: DINO's are its only weights.
for _size, _num_classes in (("small", 0), ("base", 1000)):
    _config = _SIZES[_size] | {"patch_size": 8, "num_classes": _num_classes}
    register(f"vit_{_size}_patch8_224", VisionTransformer, img_size=224, **_config)

# For CIFAR-10, images of 32 x 32: patches of 4 x 4, so N = 64.
_CIFAR: dict[str, dict[str, Any]] = {
    "vit_nano_cifar": {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0},
    "vit_micro_cifar": {"embed_dim": 96, "depth": 6, "num_heads": 3, "mlp_ratio": 2.0},
    "vit_tiny_cifar": {"embed_dim": 192, "depth": 9, "num_heads": 3},
    "vit_tiny_cifar_slvit": {"embed_dim": 192, "depth": 9, "num_heads": 12, "mlp_ratio": 2.0},  # arXiv:2112.13492
    "vit_ti12_cifar": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small_cifar": {"embed_dim": 384, "depth": 7, "num_heads": 6},
}

for _name, _config in _CIFAR.items():
    register(_name, VisionTransformer, img_size=32, patch_size=4, num_classes=10, **_config)
