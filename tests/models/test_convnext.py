"""ConvNeXt: its sizes and arguments."""

import numpy as np
import pytest

import minigrad
from models.convnext import LayerNorm2d
from tests.models.small import small


def test_odd_sizes_are_rounded_down():
    features = small("convnext").forward_features(minigrad.randn(1, 3, 38, 21))
    assert features.shape == (1, 16, 2, 1)  # 38 -> 9 -> 4 -> 2 and 21 -> 5 -> 2 -> 1


def test_layer_norm_2d_normalises_the_channels_of_each_pixel():
    norm = LayerNorm2d(6, eps=1e-6)
    y = norm(minigrad.randn(2, 6, 3, 4)).numpy()
    np.testing.assert_allclose(y.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(1), 1, rtol=1e-3)


def test_a_new_block_is_close_to_the_identity():
    block, x = small("convnext").stages[0][0], minigrad.randn(1, 8, 8, 8)
    assert 0 < abs(block(x).numpy() - x.numpy()).max() < 1e-5


def test_initial_weights():
    minigrad.manual_seed(0)
    for name, p in small("convnext", dims=(16, 24, 32)).named_parameters():
        if name.endswith("bias"):
            assert not p.numpy().any(), name
        elif name.endswith("gamma"):
            np.testing.assert_array_equal(p.numpy(), np.float32(1e-6))
        elif p.ndim > 1:
            assert p.numpy().std() == pytest.approx(0.02, rel=0.2), name


def test_blocks_without_layer_scale():
    model = small("convnext", layer_scale_init_value=None)
    assert not any(name.endswith("gamma") for name, _ in model.named_parameters())
    ones = small("convnext", layer_scale_init_value=1.0)
    ones.load_state_dict(model.state_dict(), strict=False)
    x = minigrad.randn(1, 3, 32, 32)
    np.testing.assert_array_equal(model(x).numpy(), ones(x).numpy())


@pytest.mark.parametrize("stem_kernel_size", [None, 2, 3, 4, 5])
def test_overlapping_patches_keep_the_size_of_the_map(stem_kernel_size):
    model = small("convnext", stem_size=2, stem_kernel_size=stem_kernel_size)
    assert model.forward_features(minigrad.randn(1, 3, 32, 24)).shape == (1, 16, 4, 3)


def test_head_init_scale_scales_the_head():
    minigrad.manual_seed(0)
    weight = small("convnext", head_init_scale=0.001).head.weight.numpy()
    assert weight.std() == pytest.approx(2e-5, rel=0.2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kernel_size": 4}, "must be odd"),
        ({"dims": (8, 16)}, "one entry for each stage"),
        ({"stem_kernel_size": 3}, "stem_kernel_size must be at least stem_size, .* got 3 and 4"),
    ],
)
def test_invalid_arguments_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        small("convnext", **overrides)


def test_too_small_images_raise():
    with pytest.raises(ValueError, match=r"at least 16 x 16 .* got \(1, 3, 15, 40\)"):
        small("convnext")(minigrad.randn(1, 3, 15, 40))
