"""L6: the Swin Transformer.  Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo 2021, "Swin Transformer: Hierarchical Vision
Transformer using Shifted Windows", arXiv:2103.14030.

The file follows section 3, from image to logits. Attention between all hw tokens of an image costs (hw)², so here a
token attends only to the tokens of its window of M x M. Every second block shifts the windows by half their size, so
that information crosses their borders:

    ẑ_l   = W-MSA(LN(z_{l-1})) + z_{l-1}           attention within windows
    z_l   = MLP(LN(ẑ_l)) + ẑ_l
    ẑ_l+1 = SW-MSA(LN(z_l)) + z_l                  attention within shifted windows           (3)
    z_l+1 = MLP(LN(ẑ_l+1)) + ẑ_l+1

Between stages, patch merging halves height and width and doubles the channels, as in a convolutional network.

Parameters have the names of the authors' code, https://github.com/microsoft/Swin-Transformer, whose checkpoints load
without renaming. Axes: B images; a feature map of H x W tokens with C channels; windows of N = M·M tokens.

Any image size works. A map that the window size does not divide is padded with zeros at the bottom and right, as in
torchvision's port, and the padding takes part in attention. (On such a map, timm shifts before padding, and the
authors' code raises an error. Without padding, all agree.)
"""

from collections.abc import Sequence
from functools import cache
from math import isqrt, prod
from typing import Any, ClassVar

import numpy as np

import minigrad
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.backend import array_module
from minigrad.backend.fast_paths import with_fast_paths
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
    """Cut images into patches of P x P (or PH x PW) pixels and map each patch linearly to C channels (section 3.1); in
    the authors' code, LayerNorm follows."""

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
    """Merge 2 x 2 tokens into one: concatenate their channels to 4C, and map them linearly to 2C (section 3.1); in the
    authors' code, with LayerNorm between the two."""

    def __init__(self, dim: int) -> None:
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(merged(x)))


def merged(x: Tensor) -> Tensor:
    """The channels of 2 x 2 tokens, concatenated: (B, H, W, C) -> (B, H/2, W/2, 4C)."""
    _, H, W, _ = x.shape
    x = pad_below_right(x, H % 2, W % 2)
    quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # the row changes fastest
    return minigrad.cat(quarters, dim=-1)  # 4 x (B, H/2, W/2, C) -> (B, H/2, W/2, 4C)


class WindowAttention(nn.Module):
    """W-MSA, or SW-MSA if `shifted`: multi-head self-attention within windows (section 3.2).

    Attention(Q, K, V) = softmax(Q Kᵀ / √d + B) V                                                                  (4)

    d is the width of a head. B is a learned bias for each head and each offset between two tokens of a window: a table
    of (2M - 1)² rows, or of (2MH - 1)(2MW - 1) for windows of MH x MW. The shift is a cyclic roll of the map. The mask
    adds -100 between tokens that only the roll has made neighbours (figure 4). Op: minigrad/ops/window_attention.py.
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
        M, (_, shift) = self.window(H, W), self.layout(H, W)
        drop = self.attn_drop if self.training else 0.0
        y = F.window_attention(self.packed(x), self.bias(M), self.num_heads, M, shift, drop)
        y = self.proj(y)
        return self.proj_drop(y if y.shape[1:3] == (H, W) else y[:, :H, :W])

    def window(self, H: int, W: int) -> Size:
        """The window size M on a map of H x W tokens: here always `window_size`."""
        return self.window_size

    def layout(self, H: int, W: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of the padded map, and the shift: ⌊M / 2⌋ if `shifted` and M is below the side, else 0."""
        MH, MW = sides(self.window(H, W))
        Hp, Wp = H + -H % MH, W + -W % MW
        return (Hp, Wp), (MH // 2 if self.shifted and Hp > MH else 0, MW // 2 if self.shifted and Wp > MW else 0)

    def packed(self, x: Tensor) -> Tensor:
        """q, k and v of every token of the padded map: (B, H, W, C) -> (B, Hp, Wp, 3C)."""
        _, H, W, _ = x.shape
        (Hp, Wp), _ = self.layout(H, W)
        return self.qkv(pad_below_right(x, Hp - H, Wp - W))

    def bias_table(self, M: Size) -> Tensor:
        """The bias for each offset between two tokens of a window of M: ((2M - 1)², heads)."""
        return self.relative_position_bias_table

    def bias(self, M: Size) -> Tensor:
        """The relative position bias B, for each pair of tokens of a window: (heads, N, N)."""
        table = self.bias_table(M)
        index = relative_position_index(M, table.device)
        return table.index_select(0, index).reshape(N := prod(sides(M)), N, self.num_heads).permute(2, 0, 1)

    def probabilities(self, x: Tensor) -> Tensor:
        """softmax(Q Kᵀ / √d + B + mask) for all tokens of the map, not returned by `forward`: (B, heads, H·W, H·W).

        Row i belongs to query i and is zero outside its window. Columns of padding are left out.
        """
        B, H, W, C = x.shape
        M, ((Hp, Wp), shift) = self.window(H, W), self.layout(H, W)
        places = window_places(Hp, Wp, M, shift, x.device)  # (windows, N)
        windows, N = places.shape
        # (B, Hp, Wp, 3C) -> (B, windows·N, 3C) -> (B, windows, N, 3, heads, d) -> 3 x (B, windows, heads, N, d)
        qkv = self.packed(x).reshape(B, Hp * Wp, 3 * C).index_select(1, Tensor(places.reshape(-1)))
        qkv = qkv.reshape(B, windows, N, 3, self.num_heads, C // self.num_heads)
        q, k, _ = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + self.bias(M)
        if any(shift):
            scores = scores + Tensor(shift_mask(Hp, Wp, M, shift, x.device))
        windowed = F.softmax(scores, dim=-1).data
        stitched = array_module(windowed).zeros((B, self.num_heads, Hp * Wp, Hp * Wp), windowed.dtype)
        # (B, windows, heads, N, N) -> (B, heads, windows, N, N), then to the row of the query and the column of the key
        stitched[:, :, places[:, :, None], places[:, None, :]] = windowed.swapaxes(1, 2)
        stitched = stitched.reshape(B, self.num_heads, Hp, Wp, Hp, Wp)[:, :, :H, :W, :H, :W]
        return Tensor(stitched.reshape(B, self.num_heads, H * W, H * W))


def pad_below_right(x: Tensor, bottom: int, right: int, axes_after: int = 1) -> Tensor:
    """Pad a map with zeros at the bottom and right; `axes_after` is the number of axes after H and W."""
    if not (bottom or right):
        return x
    return F.pad(x, (0, 0) * axes_after + (0, right, 0, bottom))


@cache  # never freed: a CUDA graph may read the array
def relative_position_index(M: Size, device: str = "cpu") -> Tensor:
    """The row of the bias table for query i and key j of a window: (N·N,), i the slower axis.

    row = (h_i - h_j + MH - 1) · (2MW - 1) + (w_i - w_j + MW - 1),   h = i // MW,  w = i mod MW
    """
    MH, MW = sides(M)
    h, w = np.divmod(np.arange(MH * MW), MW)
    rows = (h[:, None] - h + MH - 1) * (2 * MW - 1) + (w[:, None] - w + MW - 1)
    return Tensor(rows.reshape(-1), device=device)


class SwinTransformerBlock(nn.Module):
    """Two lines of equation (3): attention and MLP, each after a LayerNorm and with a residual connection.

    x = x + drop_path(attn(norm1(x)))
    x = x + drop_path(mlp(norm2(x)))
    """

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

    @with_fast_paths
    def forward(self, x: Tensor) -> Tensor:
        x, y = residual_add_norm(x, self.attn(self.norm1(x)), self.drop_path, self.norm2)  # ẑ_l, LN(ẑ_l)
        return residual_add(x, self.mlp(y), self.drop_path)  # z_l

    def attention_map(self, x: Tensor) -> Tensor:
        """The attention probabilities of this block for its input x: (B, heads, H·W, H·W), a row for each query."""
        return self.attn.probabilities(self.norm1(x))


class BasicLayer(nn.Module):
    """A stage: blocks, alternately without and with shift, then patch merging (none after the last stage)."""

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
        img_size: default size of the images; any other size works too.
        patch_size: P, or (height, width).
        in_chans: channels of the images.
        num_classes: outputs of the head; 0: no head, the model returns the mean of the tokens.
        embed_dim: C in the first stage; doubled in each following stage.
        depths: blocks in each stage.
        num_heads: attention heads in each stage.
        window_size: M, or (height, width).
        mlp_ratio: hidden dimension of the MLP, divided by the channels.
        qkv_bias: add a bias to queries, keys and values.
        drop_rate: dropout after the patch embedding and after every linear layer of a block except qkv.
        attn_drop_rate: dropout on the attention probabilities.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first block.
    """

    block: ClassVar[Any] = SwinTransformerBlock
    merging: ClassVar[Any] = PatchMerging

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
        check_sizes("Swin", minimum=0, num_classes=num_classes)
        check_rates("Swin", drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        check_ratio("Swin", mlp_ratio, embed_dim)
        if not depths or len(depths) != len(num_heads):
            raise ValueError(
                f"Swin: depths and num_heads must have one entry for each stage, got {depths} and {num_heads}"
            )
        self.img_size, self.in_chans, self.num_classes = image_size(img_size), in_chans, num_classes
        self.num_features, self.stem_stride = embed_dim * 2 ** (len(depths) - 1), sides(patch_size)[0]
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList()
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim, last = embed_dim * 2**stage, stage == len(depths) - 1
            blocks = [
                self.block(
                    dim, heads, window_size, i % 2 == 1, mlp_ratio, qkv_bias,
                    drop_rate, attn_drop_rate, next(rates),
                )
                for i in range(depth)
            ]  # fmt: skip
            self.layers.append(BasicLayer(blocks, nn.Identity() if last else self.merging(dim)))
        self.norm = nn.LayerNorm(self.num_features)
        self.init_weights()
        self.head = self.make_head(num_classes)

    def init_weights(self) -> None:
        """Initialize as the authors' code: linear weights and bias tables truncated normal with std 0.02, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)
            if isinstance(module, WindowAttention):
                init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def set_window_size(self, window_size: Size) -> None:
        """Change the window size, for example for larger images: interpolate the bias tables.

        Create the optimizer afterwards: an existing optimizer holds the old tables.
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
        """Names of the relative position bias tables, which are biases, not weight matrices."""
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

    def normalized(self, output: Tensor) -> Tensor:
        """The last LayerNorm, of tokens of the last stage."""
        return self.norm(output) if output.shape[-1] == self.num_features else output

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to normalised tokens (B, H', W', C')."""
        x = self.pos_drop(self.patch_embed(x))
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, H, W, C) to logits (B, num_classes): the mean of the tokens, then the head."""
        x = x.mean((1, 2))
        return x if pre_logits else self.head(x)


def resample_relative_position_bias_table(table: Tensor, window_size: Size, old: Size | None = None) -> Tensor:
    """Interpolate a bias table ((2M - 1)², heads) to another window size, bicubic over the offsets, as the authors do
    to fine-tune at a higher resolution. `old` is the window size of `table`; None: a square window."""
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
    """The number of row offsets and of column offsets between two tokens of a window."""
    MH, MW = sides(window_size)
    return 2 * MH - 1, 2 * MW - 1


# Section 3.3; the heads of L are from the authors' code. Windows of 12 are for images of 384.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}

for _size, _config in SIZES.items():
    for _img_size, _window in ((224, 7), (384, 12)) if _size in ("base", "large") else ((224, 7),):
        _name = f"swin_{_size}_patch4_window{_window}_{_img_size}"
        _config = _config | {"img_size": _img_size, "window_size": _window}
        register(_name, SwinTransformer, **_config)
        register(f"{_name}_in22k", SwinTransformer, num_classes=21841, **_config)

# For CIFAR-10, images of 32 x 32: patches of 2 x 2, so feature maps of 16, 8 and 4 tokens a side; windows of 4.
CIFAR: dict[str, dict[str, Any]] = {
    "swin_pico_cifar": {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4)},
    "swin_nano_cifar": {"embed_dim": 32, "depths": (2, 2, 2), "num_heads": (2, 4, 8)},
    "swin_micro_cifar": {"embed_dim": 32, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "mlp_ratio": 2.0},
    "swin_mini_cifar": {"embed_dim": 48, "depths": (2, 2, 4), "num_heads": (3, 6, 12)},
    "swin_tiny_cifar": {"embed_dim": 96, "depths": (2, 6, 4), "num_heads": (3, 6, 12), "mlp_ratio": 2.0},
}

for _name, _config in CIFAR.items():
    register(_name, SwinTransformer, img_size=32, patch_size=2, window_size=4, num_classes=10, **_config)
