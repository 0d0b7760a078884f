"""L5: multi-head attention with separate queries, keys and values, as in the first Transformer."""

from typing import Any

import numpy as np

from minigrad import functional as F
from minigrad._tensor import Tensor
from minigrad.backend import array_module
from minigrad.backend.dtypes import is_floating
from minigrad.nn import init
from minigrad.nn.layers import Linear
from minigrad.nn.module import Module, Parameter
from minigrad.ops import checks


class MultiheadAttention(Module):
    """Concat(head₁, .., head_H) W_Oᵀ + b_O, headₕ = softmax(qₕ kₕᵀ / √D + mask) vₕ.  Vaswani et al. 2017,
    arXiv:1706.03762.

    q, k and v are linear in query, key and value, with E values for each token; headₕ has D = E / H of these. The rows
    of `in_proj_weight` (3E, E) are W_Q, W_K and W_V; if kdim or vdim differs from E, the three are parameters
    `q_proj_weight`, `k_proj_weight` and `v_proj_weight` instead. `add_bias_kv` and `add_zero_attn` are not supported.

    Args:
        embed_dim, num_heads: E and H.
        dropout: the probability of dropping an attention weight in training.
        kdim, vdim: the number of features of key and value; by default E.
        batch_first: query, key, value and output are (N, L, E) instead of PyTorch's default (L, N, E).
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        E, H = checks.integers((embed_dim, num_heads), "embed_dim and num_heads", "MultiheadAttention")
        if E < 1 or H < 1 or E % H:
            raise ValueError(f"MultiheadAttention: num_heads must divide embed_dim, got {H} heads for {E} features")
        if add_bias_kv or add_zero_attn:
            raise ValueError("MultiheadAttention: add_bias_kv and add_zero_attn are not supported")
        self.embed_dim, self.num_heads, self.head_dim = E, H, E // H
        self.dropout, self.batch_first = checks.probability(dropout, "MultiheadAttention"), batch_first
        self.kdim, self.vdim = E if kdim is None else kdim, E if vdim is None else vdim
        packed = self.kdim == self.vdim == E
        shapes = {"in_proj_weight": (3 * E, E)} if packed else {
            "q_proj_weight": (E, E), "k_proj_weight": (E, self.kdim), "v_proj_weight": (E, self.vdim),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_parameter(name, Parameter(np.empty(shape, np.float32), dtype=dtype, device=device))
            init.xavier_uniform_(getattr(self, name))
        if not packed:
            self.register_parameter("in_proj_weight", None)
        own = Parameter(np.zeros(3 * E, np.float32), dtype=dtype, device=device) if bias else None
        self.register_parameter("in_proj_bias", own)
        self.out_proj = Linear(E, E, bias, device, dtype)
        init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output (N, L, E), and the attention weights (N, L, S), or None.

        Args:
            query, key, value: (N, L, E), (N, S, kdim) and (N, S, vdim); without batch_first (L, N, E), ...; or one
                sample, without the axis N.
            key_padding_mask: (N, S): boolean, True at keys to ignore, or floating-point, added to the scores.
            need_weights: return the weights, after dropout; False is faster.
            attn_mask: (L, S) or (N · H, L, S): boolean, True where a query must not attend to a key (the opposite of
                `F.scaled_dot_product_attention`), or floating-point, added to the scores.
            average_attn_weights: return the mean of the weights over the heads; False: all weights, (N, H, L, S).
            is_causal: states that `attn_mask`, which must be given, is causal; no effect on the result.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention: is_causal=True needs attn_mask, the causal mask")
        batched = query.ndim == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            shared = (key is query, value is query)
            query = query.transpose(0, 1)
            key, value = (query if same else x.transpose(0, 1) for same, x in zip(shared, (key, value), strict=True))
        q, k, v = self._heads(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.mT
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, -1), p)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, p)
        y = self.out_proj(y.transpose(1, 2).flatten(2))  # (N, H, L, D) -> (N, L, H, D) -> (N, L, E)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return y[0], None if weights is None else weights[0]
        return y if self.batch_first else y.transpose(0, 1), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """q (N, H, L, D), k and v (N, H, S, D)."""
        if self.in_proj_weight is not None and query is key is value:
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = (
                self.in_proj_weight.chunk(3)
                if self.in_proj_weight is not None
                else tuple(getattr(self, f"{name}_proj_weight") for name in "qkv")
            )
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            inputs = zip((query, key, value), weights, biases, strict=True)
            projected = tuple(F.linear(x, weight, bias) for x, weight, bias in inputs)
        return tuple(x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in projected)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """The sum of both masks, broadcastable to the scores (N, H, L, S); None without masks."""
        (N, H, L, _), S = q.shape, k.shape[2]
        masks = []
        if attn_mask is not None:
            if attn_mask.shape not in ((L, S), (N * H, L, S)):
                raise ValueError(f"attn_mask must be {(L, S)} or {(N * H, L, S)}, got {attn_mask.shape}")
            mask = _added(attn_mask, "attn_mask", q.dtype)
            masks.append(mask if mask.ndim == 2 else mask.reshape(N, H, L, S))
        if padding is not None:
            if padding.shape != (N, S):
                raise ValueError(f"key_padding_mask must be {(N, S)}, got {padding.shape}")
            masks.append(_added(padding, "key_padding_mask", q.dtype)[:, None, None])
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _added(mask: Tensor, name: str, dtype: np.dtype) -> Tensor:
    """A mask to add to the scores: -∞ where a boolean mask is True."""
    if mask.dtype == np.bool_:
        return Tensor(array_module(mask.data).where(mask.data, -np.inf, 0).astype(dtype))
    if not is_floating(mask.dtype):
        raise TypeError(f"{name} must be boolean or floating-point, got {mask.dtype}")
    return mask
