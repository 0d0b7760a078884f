"""Swin: windows, shift, mask and relative position bias, against their definitions."""

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from models import swin
from models.compare import formula
from tests.models.small import small


def test_relative_position_index_of_two_by_two_windows():
    np.testing.assert_array_equal(
        swin.relative_position_index(2).numpy().reshape(4, 4), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    )


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 7, 8, 12])
def test_relative_position_index_is_the_offset_of_query_and_key(M):
    table = np.arange((2 * M - 1) ** 2).reshape(2 * M - 1, 2 * M - 1)  # an element per offset, 1 - M to M - 1
    expected = [table[h - y + M - 1, w - x + M - 1] for h, w, y, x in np.ndindex(M, M, M, M)]
    np.testing.assert_array_equal(swin.relative_position_index(M).numpy(), expected)


def test_initial_weights():
    minigrad.manual_seed(0)
    for name, p in small("swin", embed_dim=32).named_parameters():
        if name.startswith("patch_embed"):
            continue  # PyTorch's default
        if name.endswith("bias"):
            assert not p.numpy().any(), name
        elif "norm" not in name:
            assert p.numpy().std() == pytest.approx(0.02, rel=0.2), name


def test_no_shift_along_an_axis_that_one_window_covers():
    attn = small("swin").layers[0].blocks[1].attn
    assert attn.layout(8, 8) == ((8, 8), (2, 2))
    assert attn.layout(4, 9) == ((4, 12), (0, 2))
    assert attn.layout(3, 3) == ((4, 4), (0, 0))


@given(st.integers(1, 44), st.integers(1, 44), st.integers(1, 6))
def test_any_image_size(H, W, M):
    model = small("swin", window_size=M)
    with minigrad.no_grad():
        features = model.forward_features(minigrad.randn(1, 3, H, W))
    assert features.shape == (1, ceil(ceil(H / 4) / 2), ceil(ceil(W / 4) / 2), 16)
    assert np.isfinite(features.numpy()).all()


def test_patch_merging_takes_rows_first():
    merging = swin.PatchMerging(1)
    seen = []
    merging.norm.register_forward_hook(lambda m, inputs, y: seen.append(inputs[0]))
    merging(Tensor(np.arange(6.0, dtype=np.float32).reshape(1, 3, 2, 1)))  # padded to 4 rows
    np.testing.assert_array_equal(seen[0].numpy().reshape(2, 4), [[0, 2, 1, 3], [4, 0, 5, 0]])


def test_set_window_size_resizes_the_bias_tables():
    model = formula.fill(small("swin"))
    x = Tensor(formula.stream("x", 1, 3, 48, 48))
    before = model(x).numpy()
    tables = [block.attn.relative_position_bias_table for block in model.blocks_by_name().values()]
    model.set_window_size(4)  # no change: an optimizer may keep the tables
    assert all(
        a.relative_position_bias_table is b
        for a, b in zip([b.attn for b in model.blocks_by_name().values()], tables, strict=True)
    )
    np.testing.assert_array_equal(model(x).numpy(), before)
    tables[0].requires_grad = False
    for block in model.blocks_by_name().values():
        block.attn.relative_position_bias_table.data[...] = 0.25
    model.set_window_size(6)
    assert not model.layers[0].blocks[0].attn.relative_position_bias_table.requires_grad
    table = model.layers[1].blocks[1].attn.relative_position_bias_table
    assert table.shape == (121, 4) and table.requires_grad and table.dtype == np.float64
    np.testing.assert_allclose(table.numpy(), 0.25)
    assert model.layers[0].blocks[1].attn.layout(12, 12) == ((12, 12), (3, 3))
    fresh = formula.fill(small("swin", window_size=6))
    for block in fresh.blocks_by_name().values():
        block.attn.relative_position_bias_table.data[...] = 0.25
    np.testing.assert_allclose(model(x).numpy(), fresh(x).numpy(), rtol=1e-12)


def test_a_resampled_bias_table_keeps_its_axes():
    """A table that increases only along h, the slower axis, increases only along h after resampling."""
    table = Tensor(np.repeat(np.arange(7.0), 7)[:, None])  # windows of 4: 7 x 7 offsets, one head
    grid = swin.resample_relative_position_bias_table(table, 6).numpy().reshape(11, 11)
    np.testing.assert_allclose(grid, np.broadcast_to(grid[:, :1], (11, 11)), atol=1e-12)
    assert (np.diff(grid[:, 0]) > 0).all()


@pytest.mark.parametrize("window", [(4, 2), (2, 4), (3, 5)])
def test_rectangular_windows(window):
    """Attention is zero outside the window of a query."""
    model = formula.fill(small("swin", window_size=window)).eval()
    x = Tensor(formula.stream("x", 1, 3, 48, 40))
    features, maps = model.forward_intermediates(x)
    assert [m.shape for m in maps] == [(1, 8, 12, 10)] * 2 + [(1, 16, 6, 5)] * 2 and features.shape == (1, 6, 5, 16)
    attention = model.attention_maps(x, [0])[0].numpy()
    rows, columns = np.divmod(np.arange(120), 10)
    cell = (rows // window[0]) * 10 + columns // window[1]
    assert not attention[:, :, cell[:, None] != cell].any()
    if not (12 % window[0] or 10 % window[1]):
        np.testing.assert_allclose(attention.sum(-1), 1)


def test_a_pair_of_equal_sides_equals_one_integer():
    pair, number = (small("swin", window_size=size, patch_size=p) for size, p in (((4, 4), [4, 4]), (4, 4)))
    assert pair.layers[0].blocks[0].attn.window_size == 4 and pair.patch_embed.patch_size == 4
    x = Tensor(formula.stream("x", 1, 3, 32, 32))
    np.testing.assert_array_equal(formula.fill(pair)(x).numpy(), formula.fill(number)(x).numpy())


def test_set_window_size_to_rectangular_and_back():
    model = formula.fill(small("swin"))
    name = "layers.1.blocks.1.attn.relative_position_bias_table"
    ramp = np.arange(-3.0, 4)[:, None] + 10 * np.arange(-3.0, 4)  # offset (dy, dx) is at [dy + 3, dx + 3]
    dict(model.named_parameters())[name].data[...] = ramp.reshape(49, 1)
    model.set_window_size((4, 8))
    table = dict(model.named_parameters())[name].numpy()
    assert table.shape == (7 * 15, 4)
    middle = table[:, 0].reshape(7, 15)[:, 4:11]
    np.testing.assert_allclose(np.diff(middle, axis=0), 1, rtol=1e-10)  # along the unchanged axis
    assert (np.diff(middle, axis=1) > 3).all()
    model.set_window_size(4)
    assert dict(model.named_parameters())[name].shape == (49, 4) and model.layers[0].blocks[0].attn.window_size == 4
    assert model(Tensor(formula.stream("x", 1, 3, 32, 32))).shape == (1, 7)


def test_resampling_a_table_of_non_square_windows_raises():
    with pytest.raises(ValueError, match="has \\(2M - 1\\)² rows"):
        swin.resample_relative_position_bias_table(Tensor(np.zeros((10, 2))), 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"num_heads": (3, 4)}, "num_heads must divide"), ({"depths": (2, 2, 2)}, "one entry for each stage")],
)
def test_invalid_arguments_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        small("swin", **overrides)


def test_attention_maps_on_every_device(device):
    x, maps = formula.stream("x", 2, 3, 36, 44), []
    for place in ("cpu", device):
        model = formula.fill(small("swin")).eval().to(device=place)
        maps.append([attention.numpy() for attention in model.attention_maps(Tensor(x, device=place))])
    for here, there in zip(*maps, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-10, atol=1e-13)
