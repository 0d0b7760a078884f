"""L6: Swin Transformer V2.  Liu, Hu, Lin, Yao, Xie, Wei, Ning, Cao, Zhang, Dong, Wei, Guo 2021, "Swin Transformer V2:
Scaling Up Capacity and Resolution", arXiv:2111.09883.

Windows, shifts and stages are Swin's: `models/swin.py`. Section 3 changes three things, for training of larger models
and for fine-tuning with larger windows:

    residual post-norm         In Swin, the outputs of all branches add up: in a large model, activations of deep blocks
                               are up to 10⁴ times as large as those of early blocks (figure 2). Here a LayerNorm
                               follows each branch, so that all blocks add values of one magnitude:

        ẑ_l = LN(W-MSA(z_{l-1})) + z_{l-1}
        z_l = LN(MLP(ẑ_l)) + ẑ_l

    cosine attention           A few pairs of tokens with large q and k dominate the attention. Here the scores depend
                               on the angle of q and k alone, with a learned scale 1/τ, at most 100, for each head:

        Sim(q_i, k_j) = cos(q_i, k_j) / τ + B_ij                                                                 (2)

    log-spaced continuous      A table of biases has no entry for the offsets of a larger window. Here an MLP G
    position bias              computes the bias from the offset (Δx, Δy), whose logarithm changes little when the
                               window grows:

        B(Δx, Δy) = 16 · sigmoid(G(Δ̂x, Δ̂y)),       Δ̂x = sign(Δx) · log₂(1 + 8 |Δx| / (M - 1)) / 3              (3), (4)

The factors 8, 1/3 and 16 are from the authors' code, https://github.com/microsoft/Swin-Transformer, whose parameter
names this file uses: checkpoints load without renaming, into models with other window sizes too. M is the window size
of the pre-training.

Any image size works. On a map smaller than the window, the window is the map, as in timm (in torchvision, the map is
padded). A map that the window size does not divide is padded as in `models/swin.py`, before the shift (in timm, after).
Otherwise, all agree.
"""

from collections.abc import Sequence
from functools import cache
from math import log
from typing import Any, ClassVar

import numpy as np

import minigrad
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.backend.fast_paths import with_fast_paths
from minigrad.nn import init
from minigrad.nn.residual import residual_add
from minigrad.ops.checks import sides
from models import swin
from models.model import Size, check_lists, pair_size
from models.registry import register
from models.swin import SwinTransformer, merged, pad_below_right
from models.vit import Mlp

HIDDEN = 512  # channels between the two layers of G


class PatchMerging(nn.Module):
    """Swin's patch merging, with the LayerNorm after the linear layer."""

    def __init__(self, dim: int) -> None:
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(merged(x)))  # (B, H, W, C) -> (B, H/2, W/2, 2C)


class WindowAttention(swin.WindowAttention):
    """W-MSA, or SW-MSA if `shifted`, with cosine attention and continuous position bias (sections 3.3 and 3.4).

    Attention(Q, K, V) = softmax(Q̂ K̂ᵀ / τ + B) V,    Q̂ and K̂: Q and K with rows of norm 1

    The op is Swin's, minigrad/ops/window_attention.py: for Q' = Q̂ √d / τ, its scores Q' K̂ᵀ / √d are the cosines / τ.
    1/τ is exp(min(logit_scale, log 100)). Q and V have a bias, K has none.
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
        self.pretrained_window_size = 0  # M of the offsets; 0: the window size
        self.logit_scale = nn.Parameter(np.full((num_heads, 1, 1), log(10), np.float32))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_heads, bias=False))
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(np.zeros(dim, np.float32)) if qkv_bias else None
        self.v_bias = nn.Parameter(np.zeros(dim, np.float32)) if qkv_bias else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def window(self, H: int, W: int) -> Size:
        """The window size on a map of H x W tokens: `window_size`, but at most the size of the map."""
        MH, MW = sides(self.window_size)
        return pair_size((min(MH, H), min(MW, W)), "window_size", "Swin")

    def packed(self, x: Tensor) -> Tensor:
        """Q', K̂ and V of every token of the padded map: (B, H, W, C) -> (B, Hp, Wp, 3C)."""
        B, H, W, C = x.shape
        (Hp, Wp), _ = self.layout(H, W)
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = F.pad(self.q_bias, (0, 2 * C)) + F.pad(self.v_bias, (2 * C, 0))  # of q, k and v: (q_bias, 0, v_bias)
        d = C // self.num_heads
        qkv = F.linear(pad_below_right(x, Hp - H, Wp - W), self.qkv.weight, bias)
        q, k, v = qkv.reshape(B, Hp, Wp, 3, self.num_heads, d).unbind(3)  # 3 x (B, Hp, Wp, heads, d)
        scale = self.logit_scale.clamp(max=log(100)).exp().reshape(self.num_heads, 1)  # 1/τ
        q, k = F.normalize(q, dim=-1) * (scale * d**0.5), F.normalize(k, dim=-1)
        return minigrad.stack([q, k, v], dim=3).reshape(B, Hp, Wp, 3 * C)

    def bias_table(self, M: Size) -> Tensor:
        """B for each offset between two tokens of a window of M: ((2M - 1)², heads)."""
        weight = self.cpb_mlp[0].weight
        offsets = log_spaced_offsets(M, self.pretrained_window_size or M, weight.dtype, weight.device)
        return 16 * self.cpb_mlp(offsets).sigmoid()


@cache  # never freed: a CUDA graph may read the array
def log_spaced_offsets(M: Size, pretrained: Size, dtype: Any = np.float32, device: str = "cpu") -> Tensor:
    """(Δ̂h, Δ̂w) for all offsets between query and key in a window, equation (4): ((2M - 1)², 2), h the slower axis.

    For a window of the size of the pre-training, Δ̂ is from -log₂(9) / 3 to log₂(9) / 3; for a larger window, a little
    more.
    """
    axes = [
        np.sign(offsets) * np.log2(1 + 8 * abs(offsets) / max(side - 1, 1)) / 3
        for side, offsets in zip(sides(pretrained), (np.arange(1 - side, side) for side in sides(M)), strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)  # (2MH - 1, 2MW - 1, 2)
    return Tensor(grid.reshape(-1, 2), dtype=dtype, device=device)


class SwinTransformerBlock(nn.Module):
    """Attention and MLP, each followed by a LayerNorm and with a residual connection.

    x = x + drop_path(norm1(attn(x)))
    x = x + drop_path(norm2(mlp(x)))
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
        self.attn = WindowAttention(dim, num_heads, window_size, shifted, qkv_bias, attn_drop, drop)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.norm2 = nn.LayerNorm(dim)
        self.drop_path = nn.DropPath(drop_path)

    @with_fast_paths
    def forward(self, x: Tensor) -> Tensor:
        x = residual_add(x, self.norm1(self.attn(x)), self.drop_path)  # ẑ_l
        return residual_add(x, self.norm2(self.mlp(x)), self.drop_path)  # z_l

    def attention_map(self, x: Tensor) -> Tensor:
        """The attention probabilities of this block for its input x: (B, heads, H·W, H·W), a row for each query."""
        return self.attn.probabilities(x)


class SwinTransformerV2(SwinTransformer):
    """Swin V2.

    Args:
        pretrained_window_sizes: for each stage, the window size of the pre-training, which scales the offsets of the
            position bias; 0: the window size of this model.
        **swin: the other arguments of SwinTransformer.
    """

    block: ClassVar = SwinTransformerBlock
    merging: ClassVar = PatchMerging

    def __init__(self, pretrained_window_sizes: Sequence[int] = (0, 0, 0, 0), **swin: Any) -> None:
        check_lists("Swin", minimum=0, pretrained_window_sizes=pretrained_window_sizes)
        super().__init__(**swin)
        if len(pretrained_window_sizes) < len(self.layers):
            raise ValueError(
                f"Swin: pretrained_window_sizes must have one entry for each of the {len(self.layers)} stages, got "
                f"{pretrained_window_sizes}"
            )
        for stage, size in zip(self.layers, pretrained_window_sizes, strict=False):
            for block in stage.blocks:
                block.attn.pretrained_window_size = size

    def init_weights(self) -> None:
        """Initialize as the authors' code: linear weights truncated normal with std 0.02, biases and the norms of the
        blocks 0, so that a block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)
            if isinstance(module, SwinTransformerBlock):
                init.zeros_(module.norm1.weight, module.norm2.weight)

    def set_window_size(self, window_size: Size) -> None:
        """Change the window size, for example for larger images. No parameter changes.

        Without `pretrained_window_sizes`, the offsets of the position bias are scaled to the new window.
        """
        window_size = pair_size(window_size, "window_size", "Swin")
        for block in self.blocks_by_name().values():
            attn: Any = block.attn  # type: ignore[attr-defined]
            attn.window_size = window_size

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters of the position bias and of the scale of the cosines, as in the authors' code."""
        return {name for name, _ in self.named_parameters() if "cpb_mlp" in name or "logit_scale" in name}


# The models of the authors' code under timm's names. "12to16_192to256": pre-trained with windows of 12, images of 192.
for _size in ("tiny", "small", "base"):
    for _window in (8, 16):
        _name = f"swinv2_{_size}_window{_window}_256"
        register(_name, SwinTransformerV2, img_size=256, window_size=_window, **swin.SIZES[_size])
for _size in ("base", "large"):
    _config: dict[str, Any] = swin.SIZES[_size]
    _name = f"swinv2_{_size}_window12_192"
    register(_name, SwinTransformerV2, img_size=192, window_size=12, num_classes=21841, **_config)  # ImageNet-22k
    _config = _config | {"pretrained_window_sizes": (12, 12, 12, 6)}
    for _window, _img_size in ((16, 256), (24, 384)):
        _name = f"swinv2_{_size}_window12to{_window}_192to{_img_size}"
        register(_name, SwinTransformerV2, img_size=_img_size, window_size=_window, **_config)

# For CIFAR-10, images of 32 x 32, as in `models/swin.py`.
for _size in ("nano", "tiny"):
    _config = swin.CIFAR[f"swin_{_size}_cifar"]
    register(
        f"swinv2_{_size}_cifar", SwinTransformerV2,
        img_size=32, patch_size=2, window_size=4, num_classes=10, **_config,
    )  # fmt: skip
