"""The hybrid: "SAME" padding, standardised convolutions, and the shapes of the ResNet."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from models import hybrid
from models.compare import formula
from tests.models.small import small


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (224, 7, 2, 2, 3), (112, 3, 2, 0, 1), (56, 3, 1, 1, 1), (56, 1, 2, 0, 0),
        (63, 3, 2, 1, 1), (25, 7, 2, 3, 3), (2, 7, 2, 2, 3),
    ],
)  # fmt: skip
def test_same_padding_gives_size_over_stride_rounded_up(size, kernel, stride, before, after):
    assert hybrid.same_padding(size, kernel, stride) == (before, after)
    assert (before + size + after - kernel) // stride + 1 == -(-size // stride)


def test_std_conv_ignores_scale_and_offset_of_its_filters():
    conv, x = hybrid.StdConv2d(3, 4, 3, stride=2), minigrad.randn(2, 3, 9, 9)
    before = conv(x).numpy()
    conv.weight.data[...] = 5 * conv.weight.data - 2
    np.testing.assert_allclose(conv(x).numpy(), before, atol=1e-5)


def test_a_new_block_equals_its_shortcut():
    stage = hybrid.HybridVisionTransformer(
        img_size=16, layers=(2,), channels=(128,), stem_chs=32, embed_dim=24, depth=1, num_heads=3
    ).patch_embed.backbone.stages[0]
    x = minigrad.randn(1, 32, 4, 4)
    first, second = stage.blocks
    np.testing.assert_array_equal(first(x).numpy(), np.maximum(first.downsample(x).numpy(), 0))
    y = first(x)
    np.testing.assert_array_equal(second(y).numpy(), y.numpy())


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (8, 8)), ((50, 70), (7, 9)), ((63, 33), (8, 5))])
def test_odd_sizes_are_rounded_up(size, grid):
    model = small("hybrid", img_size=size)
    assert model.patch_embed.grid_size == grid
    assert model.forward_features(minigrad.randn(1, 3, *size)).shape == (1, 1 + grid[0] * grid[1], 24)


@pytest.mark.parametrize(("stem_stride", "side"), [(1, 16), (2, 8), (4, 4)])
def test_stem_stride_divides_the_size(stem_stride, side):
    model = small("hybrid", stem_stride=stem_stride)
    assert model.patch_embed.grid_size == (side, side) and model(minigrad.randn(1, 3, 32, 32)).shape == (1, 7)


def test_patches_of_the_feature_map():
    model = small("hybrid", layers=(), channels=(), patch_size=2)
    assert model.patch_embed.grid_size == (4, 4) and model(minigrad.randn(1, 3, 32, 32)).shape == (1, 7)
    assert list(model.blocks_by_name()) == ["blocks.0", "blocks.1"]


def test_set_input_size_resizes_the_position_embedding():
    model = formula.fill(small("hybrid"))
    model.pos_embed.data[...] = 0.5
    model.set_input_size((40, 64))
    assert model.pos_embed.shape == (1, 1 + 5 * 8, 24)
    np.testing.assert_allclose(model.pos_embed.numpy(), 0.5)
    assert model(Tensor(formula.stream("x", 1, 3, 40, 64))).shape == (1, 7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"channels": (128, 100)}, "multiples of 128"),
        ({"stem_chs": 40}, "multiple of 32"),
        ({"layers": (1,)}, "one entry for each stage"),
        ({"stem_stride": 3}, "must be 4, or 1 or 2 for small images, got 3"),
        ({"patch_size": 3}, "must divide the ResNet's feature map"),
        ({"layers": (1, 0)}, "layers must be a sequence of integers, each at least 1"),
    ],
)
def test_invalid_arguments_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        small("hybrid", **overrides)


def test_without_transformer_blocks():
    model = small("hybrid", depth=0)
    assert model(minigrad.randn(1, 3, 32, 32)).shape == (1, 7) and len(model.blocks_by_name()) == 2


def test_initial_weights():
    minigrad.manual_seed(0)
    stage = small("hybrid").patch_embed.backbone.stages[0].blocks[0]
    for conv in (stage.conv1, stage.conv2, stage.conv3):
        fan_in = conv.weight.numpy()[0].size
        assert conv.weight.numpy().std() == pytest.approx(fan_in**-0.5, rel=0.1)
    assert not stage.norm3.weight.numpy().any()  # a new block equals its shortcut


def test_no_nan_or_inf_in_forward_and_backward():
    model = small("hybrid")
    with minigrad.detect_anomaly():
        model(minigrad.randn(1, 3, 32, 32)).sum().backward()
    assert all(np.isfinite(p.grad.numpy()).all() for p in model.parameters())
