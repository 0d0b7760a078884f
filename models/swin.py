"""L6: the Swin Transformer.  Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo 2021, "Swin Transformer: Hierarchical Vision
Transformer using Shifted Windows", arXiv:2103.14030.

The file follows section 3, from the image to the class. Attention between all hw tokens of an image costs (hw)², so
here a token looks only at the M x M window it is in, and from one block to the next the windows move by half their
size, so that what was a border lies inside:

    ẑ_l   = W-MSA(LN(z_{l-1})) + z_{l-1}           attention within windows
    z_l   = MLP(LN(ẑ_l)) + ẑ_l
    ẑ_l+1 = SW-MSA(LN(z_l)) + z_l                  attention within shifted windows           (3)
    z_l+1 = MLP(LN(ẑ_l+1)) + ẑ_l+1

Between stages, patch merging halves the map and doubles the channels, as in a convolutional network.

Parameters have the names of the authors' code, https://github.com/microsoft/Swin-Transformer, whose checkpoints load as
they are. Axes: B images; a map of H x W tokens, each of C numbers; windows of N = M·M tokens.

Any size of image works. Where the windows do not cover the map exactly it is padded, below and to the right, with
zeros, as in torchvision's port; the padding takes part in attention. (Other ports differ there: timm shifts before it
pads, the authors' code refuses. On sizes that fit, all agree.)
"""

from collections.abc import Sequence
from functools import cache
from math import isqrt, prod
from typing import Any

import numpy as np

import minigrad
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.backend import array_module
from minigrad.nn import init
from minigrad.nn.residual import residual_add, residual_add_norm
from minigrad.ops.checks import sides
from minigrad.ops.window_attention import shift_mask, window_places
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
    pair_size,
)
from models.registry import register
from models.vit import Mlp


class PatchEmbed(nn.Module):
    """Cut the image into patches of P x P pixels, or of another height than width, and map each to C numbers (section
    3.1); the authors' code normalises these."""

    def __init__(self, patch_size: Size, in_chans: int, embed_dim: int) -> None:
        self.patch_size, self.in_chans = patch_size, in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, sides(patch_size), stride=sides(patch_size))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        check_images("Swin", x, self.in_chans)
        (PH, PW), (H, W) = sides(self.patch_size), x.shape[2:]
        x = self.proj(pad_below_right(x, -H % PH, -W % PW, axes_after=0))  # (B, in_chans, H, W) -> (B, C, H/PH, W/PW)
        return self.norm(x.permute(0, 2, 3, 1))  # -> (B, H/PH, W/PW, C)


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens into one: their 4C numbers side by side, and mapped to 2C (section 3.1); the authors' code
    normalises between."""

    def __init__(self, dim: int) -> None:
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        x = pad_below_right(x, H % 2, W % 2)
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # the row changes fastest
        x = minigrad.cat(quarters, dim=-1)  # 4 x (B, H/2, W/2, C) -> (B, H/2, W/2, 4C)
        return self.reduction(self.norm(x))


class WindowAttention(nn.Module):
    """W-MSA, and with a shift SW-MSA: multi-head self-attention within windows (section 3.2).

    Attention(Q, K, V) = softmax(Q Kᵀ / √d + B) V                                                                  (4)

    B is a learned number for each head and each offset between two tokens of a window, kept in a table of
    (2M - 1)² rows, or (2MH - 1)(2MW - 1) for windows of MH x MW. The map is shifted by rolling it: what leaves at the
    top comes back at the bottom, beside tokens it has nothing to do with, and a mask of -100 keeps those apart (figure
    4). All this is an op of its own, in minigrad/ops/window_attention.py.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Size,
        shifted: bool,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        if dim % num_heads:
            raise ValueError(f"Swin: num_heads must divide the channels of its stage, got {num_heads} and {dim}")
        self.num_heads, self.window_size, self.shifted = num_heads, window_size, shifted
        offsets = prod(_offsets(window_size))
        self.relative_position_bias_table = nn.Parameter(np.empty((offsets, num_heads), np.float32))
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        _, shift = self.layout(H, W)
        drop = self.attn_drop if self.training else 0.0
        y = F.window_attention(self.packed(x), self.bias(), self.num_heads, self.window_size, shift, drop)
        return self.proj_drop(self.proj(y)[:, :H, :W])

    def layout(self, H: int, W: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the padded map, and its shift: ⌊M / 2⌋, but none along an axis that one window covers."""
        MH, MW = sides(self.window_size)
        Hp, Wp = H + -H % MH, W + -W % MW
        return (Hp, Wp), (MH // 2 if self.shifted and Hp > MH else 0, MW // 2 if self.shifted and Wp > MW else 0)

    def packed(self, x: Tensor) -> Tensor:
        """q, k and v of every token of the padded map: (B, H, W, C) -> (B, Hp, Wp, 3C)."""
        _, H, W, _ = x.shape
        (Hp, Wp), _ = self.layout(H, W)
        return self.qkv(pad_below_right(x, Hp - H, Wp - W))

    def bias(self) -> Tensor:
        """B, for each two tokens of a window: (heads, N, N)."""
        M, table = self.window_size, self.relative_position_bias_table
        index = relative_position_index(M, table.device)
        return table.index_select(0, index).reshape(N := prod(sides(M)), N, self.num_heads).permute(2, 0, 1)

    def probabilities(self, x: Tensor) -> Tensor:
        """softmax(Q Kᵀ / √d + B), which the forward does not keep, put back into the image: (B, heads, H·W, H·W).

        Row i is what token i looks at: zero outside its window. Attention to the padding is left out.
        """
        B, H, W, C = x.shape
        (Hp, Wp), shift = self.layout(H, W)
        places = window_places(Hp, Wp, self.window_size, shift, x.device)  # (windows, N)
        windows, N = places.shape
        # (B, Hp, Wp, 3C) -> (B, windows·N, 3C) -> (B, windows, N, 3, heads, d) -> 3 x (B, windows, heads, N, d)
        qkv = self.packed(x).reshape(B, Hp * Wp, 3 * C).index_select(1, Tensor(places.reshape(-1)))
        qkv = qkv.reshape(B, windows, N, 3, self.num_heads, C // self.num_heads)
        q, k, _ = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + self.bias()
        if any(shift):
            scores = scores + Tensor(shift_mask(Hp, Wp, self.window_size, shift, x.device))
        windowed = F.softmax(scores, dim=-1).data
        stitched = array_module(windowed).zeros((B, self.num_heads, Hp * Wp, Hp * Wp), windowed.dtype)
        # (B, windows, heads, N, N) -> (B, heads, windows, N, N), each number to its query's row and its key's column
        stitched[:, :, places[:, :, None], places[:, None, :]] = windowed.swapaxes(1, 2)
        stitched = stitched.reshape(B, self.num_heads, Hp, Wp, Hp, Wp)[:, :, :H, :W, :H, :W]
        return Tensor(stitched.reshape(B, self.num_heads, H * W, H * W))


def pad_below_right(x: Tensor, bottom: int, right: int, axes_after: int = 1) -> Tensor:
    """Zeros below and to the right of a map; after H and W come `axes_after` axes that stay as they are."""
    if not (bottom or right):
        return x
    return F.pad(x, (0, 0) * axes_after + (0, right, 0, bottom))


@cache  # for good: a graph may read it
def relative_position_index(M: Size, device: str = "cpu") -> Tensor:
    """For query i and key j of a window, the row of the table that their offset has: (N·N,), i the slower axis.

    row = (h_i - h_j + MH - 1) · (2MW - 1) + (w_i - w_j + MW - 1),   h = i // MW,  w = i mod MW
    """
    MH, MW = sides(M)
    h, w = np.divmod(np.arange(MH * MW), MW)
    rows = (h[:, None] - h + MH - 1) * (2 * MW - 1) + (w[:, None] - w + MW - 1)
    return Tensor(rows.reshape(-1), device=device)


class SwinTransformerBlock(nn.Module):
    """Two lines of equation (3): attention within windows, then MLP, each on normalised input and added."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Size,
        shifted: bool,
        mlp_ratio: float,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shifted, qkv_bias, attn_drop, drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = nn.DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x, y = residual_add_norm(x, self.attn(self.norm1(x)), self.drop_path, self.norm2)  # ẑ_l and LN(ẑ_l)
        return residual_add(x, self.mlp(y), self.drop_path)  # z_l

    def attention_map(self, x: Tensor) -> Tensor:
        """How much each token of this block's input looks at each other one: (B, heads, H·W, H·W)."""
        return self.attn.probabilities(self.norm1(x))


class BasicLayer(nn.Module):
    """A stage: blocks without and with shift in turn, then patch merging (none after the last stage)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class SwinTransformer(ImageModel):
    """Swin.

    Args:
        img_size: the size of image it is meant for; any other works too.
        patch_size: P, or (height, width).
        in_chans: channels of the images.
        num_classes: outputs of the head; 0: no head, the model returns the mean token.
        embed_dim: C in the first stage; it doubles from stage to stage.
        depths: blocks in each stage.
        num_heads: heads of attention in each stage.
        window_size: M, or (height, width).
        mlp_ratio: hidden width of the MLP over the channels.
        qkv_bias: whether queries, keys and values have a bias.
        drop_rate: dropout after the patch embedding and after every dense layer but qkv.
        attn_drop_rate: dropout on the attention probabilities.
        drop_path_rate: stochastic depth of the last block; it rises to that linearly from 0 at the first.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Size = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        patch_size, window_size = (
            pair_size(size, name, "Swin") for name, size in (("patch_size", patch_size), ("window_size", window_size))
        )
        check_sizes("Swin", in_chans=in_chans, embed_dim=embed_dim)
        check_lists("Swin", depths=depths, num_heads=num_heads)
        check_sizes("Swin", least=0, num_classes=num_classes)
        check_rates("Swin", drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        check_ratio("Swin", mlp_ratio, embed_dim)
        if not depths or len(depths) != len(num_heads):
            raise ValueError(f"Swin: depths and num_heads need one number for each stage, got {depths} and {num_heads}")
        self.img_size, self.in_chans, self.num_classes = image_size(img_size), in_chans, num_classes
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList()
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim, last = embed_dim * 2**stage, stage == len(depths) - 1
            blocks = [
                SwinTransformerBlock(
                    dim, heads, window_size, i % 2 == 1, mlp_ratio, qkv_bias,
                    drop_rate, attn_drop_rate, next(rates),
                )
                for i in range(depth)
            ]  # fmt: skip
            self.layers.append(BasicLayer(blocks, nn.Identity() if last else PatchMerging(dim)))
        self.norm = nn.LayerNorm(self.num_features)
        self.init_weights()
        self.head = self.make_head(num_classes)

    def init_weights(self) -> None:
        """As the authors' code: linear weights and bias tables N(0, 0.02), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)
            if isinstance(module, WindowAttention):
                init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def make_head(self, num_classes: int) -> nn.Module:
        if not num_classes:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes)
        init.trunc_normal_(head.weight, std=0.02)
        init.zeros_(head.bias)
        return head

    def set_window_size(self, window_size: Size) -> None:
        """Use windows of another size from now on, as for larger images: the bias tables are resized.

        Make the optimiser afterwards: it would go on with the old ones.
        """
        window_size = pair_size(window_size, "window_size", "Swin")
        for block in self.blocks_by_name().values():
            attn: Any = block.attn  # type: ignore[attr-defined]
            if window_size != attn.window_size:
                table = attn.relative_position_bias_table
                resized = resample_relative_position_bias_table(table.detach(), window_size, attn.window_size)
                attn.relative_position_bias_table = nn.Parameter(resized.data, table.requires_grad)
                attn.window_size = window_size

    def no_weight_decay(self) -> set[str]:
        """The bias tables: they are offsets, though their shapes are those of matrices."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def sections(self) -> list[list[str]]:
        sections = [["patch_embed"]]
        for s, stage in enumerate(self.layers):
            blocks = [[f"layers.{s}.blocks.{b}"] for b in range(len(stage.blocks))]
            if s and blocks:
                blocks[0].insert(0, f"layers.{s - 1}.downsample")
            sections += blocks
        return sections

    def feature_map(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to normalised tokens (B, H', W', C')."""
        x = self.pos_drop(self.patch_embed(x))
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, H, W, C) to logits (B, num_classes): their mean, then the head."""
        x = x.mean((1, 2))
        return x if pre_logits else self.head(x)


def resample_relative_position_bias_table(table: Tensor, window_size: Size, old: Size | None = None) -> Tensor:
    """A bias table ((2M - 1)², heads) for another window, by bicubic interpolation over the offsets, as the authors
    do it when they fine-tune at a higher resolution. `old` is the window that it was made for; None: a square one."""
    rows, new = table.shape[0], _offsets(window_size)
    before = (isqrt(rows), isqrt(rows)) if old is None else _offsets(old)
    if prod(before) != rows:
        raise ValueError(f"a bias table has (2M - 1)² rows, for square windows; got shape {table.shape}")
    if before == new:
        return table
    grid = table.reshape(1, *before, -1).permute(0, 3, 1, 2)  # ((2M-1)², heads) -> (1, heads, 2M-1, 2M-1)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(prod(new), -1)


def _offsets(window_size: Size) -> tuple[int, int]:
    """How many differences there are between two rows of a window, and between two columns."""
    MH, MW = sides(window_size)
    return 2 * MH - 1, 2 * MW - 1


# Section 3.3, with L's heads from the authors' code. The larger window goes with images of 384.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}

for _size, _config in _SIZES.items():
    for _img_size, _window in ((224, 7), (384, 12)) if _size in ("base", "large") else ((224, 7),):
        _name = f"swin_{_size}_patch4_window{_window}_{_img_size}"
        _config = _config | {"img_size": _img_size, "window_size": _window}
        register(_name, SwinTransformer, **_config)
        register(f"{_name}_in22k", SwinTransformer, num_classes=21841, **_config)

# For images of 32 x 32 in ten classes: 2 x 2 patches, so maps of 16, 8 and 4 tokens a side, in windows of 4.
_CIFAR: dict[str, dict[str, Any]] = {
    "swin_nano_cifar": {"embed_dim": 32, "depths": (2, 2, 2), "num_heads": (2, 4, 8)},
    "swin_mini_cifar": {"embed_dim": 48, "depths": (2, 2, 4), "num_heads": (3, 6, 12)},
    "swin_tiny_cifar": {"embed_dim": 96, "depths": (2, 6, 4), "num_heads": (3, 6, 12), "mlp_ratio": 2.0},
}

for _name, _config in _CIFAR.items():
    register(_name, SwinTransformer, img_size=32, patch_size=2, window_size=4, num_classes=10, **_config)
