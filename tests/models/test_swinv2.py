"""Swin V2: cosine attention, continuous position bias and window sizes, against their definitions."""

from math import ceil, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from models import create_model, swinv2
from models.compare import formula
from tests.models.small import small


def attention(dim=8, heads=2, window=2, shifted=False):
    return formula.fill(swinv2.WindowAttention(dim, heads, window, shifted, True, 0.0, 0.0))


def test_attention_of_one_window_equals_its_definition():
    """One head, one query and one key at a time. One scale is above the limit of log 100."""
    attn, z = attention(), formula.stream("z", 1, 2, 2, 8)
    attn.logit_scale.data[...] = np.array([1.5, 6.0]).reshape(2, 1, 1)
    W, tokens = attn.qkv.weight.numpy(), z.reshape(4, 8)
    q, k, v = tokens @ W[:8].T + attn.q_bias.numpy(), tokens @ W[8:16].T, tokens @ W[16:].T + attn.v_bias.numpy()
    first, second = attn.cpb_mlp[0], attn.cpb_mlp[2]
    y = np.zeros((4, 8))
    for head, scale in enumerate([np.exp(1.5), 100.0]):
        own = slice(4 * head, 4 * head + 4)
        for i in range(4):
            scores = np.zeros(4)
            for j in range(4):
                cosine = q[i, own] @ k[j, own] / np.linalg.norm(q[i, own]) / np.linalg.norm(k[j, own])
                offset = np.array([i // 2 - j // 2, i % 2 - j % 2])
                offset = np.sign(offset) * np.log2(1 + 8 * abs(offset)) / 3
                hidden = np.maximum(first.weight.numpy() @ offset + first.bias.numpy(), 0)
                scores[j] = scale * cosine + 16 / (1 + np.exp(-(second.weight.numpy() @ hidden)[head]))
            p = np.exp(scores - scores.max())
            y[i, own] = p @ v[:, own] / p.sum()
    expected = y @ attn.proj.weight.numpy().T + attn.proj.bias.numpy()
    np.testing.assert_allclose(attn(Tensor(z)).numpy().reshape(4, 8), expected, rtol=1e-11, atol=1e-13)


def test_the_scale_has_no_gradient_above_its_limit():
    attn = attention()
    attn.logit_scale.data[...] = np.array([log(99.0), log(101.0)]).reshape(2, 1, 1)
    (attn(Tensor(formula.stream("z", 1, 4, 4, 8))) * Tensor(formula.stream("w", 1, 4, 4, 8))).sum().backward()
    assert attn.logit_scale.grad.numpy()[0] != 0 and attn.logit_scale.grad.numpy()[1] == 0


def test_scores_do_not_depend_on_the_size_of_queries_and_keys():
    attn, z = attention(), Tensor(formula.stream("z", 1, 4, 4, 8))
    before = attn.probabilities(z).numpy()
    attn.qkv.weight.data[:16] *= 7
    attn.q_bias.data *= 7
    np.testing.assert_allclose(attn.probabilities(z).numpy(), before, rtol=1e-10)


def test_tokens_of_zeros_give_finite_gradients():
    """Without bias, q and k of padding are 0 and have no direction: their cosines are 0."""
    attn = swinv2.WindowAttention(8, 2, 4, False, False, 0.0, 0.0)
    x = Tensor(np.zeros((1, 3, 5, 8), np.float32), requires_grad=True)
    attn(x).sum().backward()
    assert np.isfinite(x.grad.numpy()).all() and np.isfinite(attn.qkv.weight.grad.numpy()).all()


def test_log_spaced_offsets():
    table = swinv2.log_spaced_offsets(3, 3).numpy().reshape(5, 5, 2)
    end, middle = np.log2(9) / 3, np.log2(5) / 3
    np.testing.assert_allclose(table[:, 0, 0], [-end, -middle, 0, middle, end], rtol=1e-6)  # of the rows
    np.testing.assert_allclose(table[0, :, 1], [-end, -middle, 0, middle, end], rtol=1e-6)
    np.testing.assert_array_equal(table[:, :1, 0], table[:, 4:, 0])
    larger = swinv2.log_spaced_offsets((5, 2), 3, np.float64).numpy().reshape(9, 3, 2)
    np.testing.assert_allclose(larger[::2, 0, 0], [-np.log2(17) / 3, -end, 0, end, np.log2(17) / 3], rtol=1e-12)
    np.testing.assert_allclose(larger[0, :, 1], [-middle, 0, middle], rtol=1e-12)
    assert not swinv2.log_spaced_offsets(1, 1).numpy().any()


def test_a_window_is_at_most_the_map():
    attn = attention(window=4, shifted=True)
    assert [attn.window(*size) for size in ((8, 8), (3, 3), (2, 9), (5, 1))] == [4, 3, (2, 4), (4, 1)]
    assert attn.layout(8, 8) == ((8, 8), (2, 2))
    assert attn.layout(3, 9) == ((3, 12), (0, 2))
    assert attn.layout(3, 3) == ((3, 3), (0, 0))


@given(st.integers(1, 44), st.integers(1, 44), st.integers(1, 6))
def test_any_image_size(H, W, M):
    model = small("swinv2", window_size=M)
    with minigrad.no_grad():
        features = model.forward_features(minigrad.randn(1, 3, H, W))
    assert features.shape == (1, ceil(ceil(H / 4) / 2), ceil(ceil(W / 4) / 2), 16)
    assert np.isfinite(features.numpy()).all()


def test_initial_blocks_are_the_identity():
    """The norms of the blocks have weight 0."""
    minigrad.manual_seed(0)
    model = small("swinv2", embed_dim=32)
    x = minigrad.randn(1, 8, 8, 32)
    np.testing.assert_array_equal(model.layers[0].blocks[1](x).numpy(), x.numpy())
    for name, p in model.named_parameters():
        if name.startswith("patch_embed"):
            continue  # PyTorch's default
        if name.endswith("bias"):
            assert not p.numpy().any(), name
        elif name.endswith("logit_scale"):
            np.testing.assert_allclose(p.numpy(), log(10), rtol=1e-6)
        elif "norm" not in name:
            assert p.numpy().std() == pytest.approx(0.02, rel=0.2), name


def test_set_window_size_changes_no_parameter():
    model, x = formula.fill(small("swinv2")), Tensor(formula.stream("x", 1, 3, 48, 48))
    before = model.state_dict()
    model.set_window_size((6, 12))
    for name, parameter in model.state_dict().items():
        assert parameter.data is before[name].data
    expected = formula.fill(small("swinv2", window_size=(6, 12)))(x).numpy()
    np.testing.assert_array_equal(model(x).numpy(), expected)


def test_pretrained_window_sizes_scale_the_offsets():
    """With the window size of the pre-training, a larger window has the same bias at the same offset."""
    small_window = formula.fill(small("swinv2")).layers[0].blocks[0].attn
    large = formula.fill(small("swinv2", window_size=8, pretrained_window_sizes=(4, 4))).layers[0].blocks[0].attn
    inner = large.bias_table(8).numpy().reshape(15, 15, 2)[4:11, 4:11]
    np.testing.assert_allclose(inner, small_window.bias_table(4).numpy().reshape(7, 7, 2), rtol=1e-12)
    base = create_model("swinv2_base_window12to16_192to256", embed_dim=16, num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))
    assert [stage.blocks[0].attn.pretrained_window_size for stage in base.layers] == [12, 12, 12, 6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": (3, 4)}, "num_heads must divide"),
        ({"pretrained_window_sizes": (4,)}, "one entry for each of the 2 stages"),
        ({"pretrained_window_sizes": 4}, "pretrained_window_sizes must be a sequence"),
        ({"pretrained_window_sizes": (4, -1)}, "each at least 0"),
    ],
)
def test_invalid_arguments_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        small("swinv2", **overrides)


def test_attention_maps_on_every_device(device):
    x, maps = formula.stream("x", 2, 3, 36, 44), []
    for place in ("cpu", device):
        model = formula.fill(small("swinv2")).eval().to(device=place)
        maps.append([attention.numpy() for attention in model.attention_maps(Tensor(x, device=place))])
    for here, there in zip(*maps, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-10, atol=1e-13)
