"""ViT: initial weights, gradients, arguments, position embedding."""

import numpy as np
import pytest

import minigrad
import models
from minigrad import Tensor
from models.compare import formula
from models.vit import resample_pos_embed
from tests.models.small import small


def images() -> Tensor:
    return Tensor(formula.stream("x", 2, 3, 32, 32))


def test_rectangular_patches():
    model = formula.fill(small("vit", img_size=(48, 32), patch_size=(16, 8))).eval()
    x = Tensor(formula.stream("x", 2, 3, 48, 32))
    assert model.patch_embed.grid_size == (3, 4) and model(x).shape == (2, 7)
    assert [y.shape for y in model.forward_intermediates(x)[1]] == [(2, 24, 3, 4)] * 2
    assert model.attention_maps(x)[0].shape == (2, 3, 13, 13)
    image = x[:, :, 16:32, 8:16].numpy()  # the patch in row 1, column 1
    weight, bias = model.patch_embed.proj.weight.numpy(), model.patch_embed.proj.bias.numpy()
    expected = (image[:, None] * weight).sum((2, 3, 4)) + bias
    np.testing.assert_allclose(model.patch_embed(x).numpy()[:, 5], expected, rtol=1e-10)
    before = model.pos_embed
    model.set_input_size((64, 24))
    assert model.patch_embed.grid_size == (4, 3)
    np.testing.assert_array_equal(model.pos_embed.numpy(), resample_pos_embed(before, (3, 4), (4, 3)).numpy())
    with pytest.raises(ValueError, match=r"got \(16, 8\) and 40 x 20; the next size that fits is 48 x 24"):
        model.set_input_size((40, 20))


def test_gradients_of_class_token_and_key_bias():
    """The class token and its position embedding are added, so their gradients are equal. The key bias adds a
    constant to all scores of a query. Softmax ignores this constant, so the key bias has gradient 0."""
    model = formula.fill(small("vit"))
    model(images()).sum().backward()
    np.testing.assert_allclose(model.cls_token.grad.numpy(), model.pos_embed.grad.numpy()[:, :1], rtol=1e-13)
    for block in model.blocks:
        q, k, v = np.split(block.attn.qkv.bias.grad.numpy(), 3)
        assert abs(k).max() < 1e-12 * max(abs(q).max(), abs(v).max())


def test_initial_weights():
    minigrad.manual_seed(0)
    model = small("vit", embed_dim=96, depth=1, patch_size=4)
    block, D, H = model.blocks[0], 96, 384
    q, k, v = np.split(block.attn.qkv.weight.numpy(), 3)
    uniform = [(q, D + D), (k, D + D), (v, D + D), (block.attn.proj.weight, D + D)]
    uniform += [(block.mlp.fc1.weight, D + H), (block.mlp.fc2.weight, D + H)]
    for x, fans in uniform:
        assert 0.99 < abs(np.asarray(x)).max() / (6 / fans) ** 0.5 <= 1
    normal = [(model.patch_embed.proj.weight, (3 * 4 * 4) ** -0.5), (model.pos_embed, 0.02)]
    normal += [(block.mlp.fc1.bias, 1e-6), (block.mlp.fc2.bias, 1e-6)]
    for x, std in normal:
        assert x.numpy().std() == pytest.approx(std, rel=0.2)
    for x in (model.cls_token, model.head.weight, model.head.bias, block.attn.qkv.bias, block.attn.proj.bias):
        assert not x.numpy().any()


def test_global_pool_is_the_input_of_the_head():
    """The head gets the class token, the mean of the patch tokens with LayerNorm after the mean, or every token."""
    token, average, all_tokens = (formula.fill(small("vit", global_pool=pool)) for pool in ("token", "avg", ""))
    tokens = token.forward_features(images())
    np.testing.assert_allclose(token(images()).numpy(), token.head(tokens[:, 0]).numpy(), rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(all_tokens(images()).numpy(), token.head(tokens).numpy())
    unnormalised = average.forward_features(images())
    np.testing.assert_array_equal(token.norm(unnormalised).numpy(), tokens.numpy())
    mean = average.fc_norm(unnormalised[:, 1:].mean(1))
    np.testing.assert_array_equal(average(images()).numpy(), average.head(mean).numpy())


def test_reset_classifier_removes_the_pre_logits_layer():
    model = formula.fill(small("vit", representation_size=20))
    assert model.num_features == 20
    assert model.forward_head(model.forward_features(images()), pre_logits=True).shape == (2, 20)
    with pytest.raises(ValueError, match="num_classes must be an integer"):
        model.reset_classifier(-1)
    assert model.num_features == 20 and "pre_logits.fc.weight" in model.state_dict()
    model.reset_classifier(3)
    assert model.num_features == 24 and model.head.weight.shape == (3, 24)
    assert (model(images()).numpy() == 0).all()  # the new head is 0
    assert small("vit", num_classes=0, representation_size=20)(minigrad.randn(2, 3, 32, 32)).shape == (2, 20)


def test_set_input_size_resizes_the_position_embedding():
    model = formula.fill(small("vit"))
    before = model(images()).numpy()
    positions = model.pos_embed
    model.set_input_size(32)  # no change: an optimizer may keep the parameter
    assert model.pos_embed is positions
    np.testing.assert_array_equal(model(images()).numpy(), before)
    cls_position = model.pos_embed.numpy()[:, 0]
    model.set_input_size((48, 24))
    assert model.img_size == (48, 24) and model.pos_embed.shape == (1, 1 + 6 * 3, 24) and model.pos_embed.requires_grad
    np.testing.assert_array_equal(model.pos_embed.numpy()[:, 0], cls_position)
    assert model(Tensor(formula.stream("x", 1, 3, 48, 24))).shape == (1, 7)


def test_resample_pos_embed_antialiases():
    """Antialiasing averages a checkerboard to almost 0; plain interpolation takes every third element."""
    checkerboard = (-1.0) ** np.indices((9, 9)).sum(0)
    pos_embed = Tensor(np.concatenate([[7.0], checkerboard.ravel()]).reshape(1, 82, 1))
    smoothed = resample_pos_embed(pos_embed, (9, 9), (3, 3)).numpy().ravel()
    assert smoothed[0] == 7 and abs(smoothed[1:]).max() < 0.1
    taken = resample_pos_embed(pos_embed, (9, 9), (3, 3), antialias=False).numpy().ravel()
    np.testing.assert_allclose(taken[1:], checkerboard[1::3, 1::3].ravel())


def test_resample_pos_embed_checks_the_old_grid():
    with pytest.raises(ValueError, match="a 3 x 4 grid has 13 positions, got"):
        resample_pos_embed(Tensor(np.zeros((1, 17, 8))), (3, 4), (4, 4))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch_size": 7}, "next size that fits is 35 x 35"),
        ({"img_size": (32, 20)}, "must divide img_size, got 8 and 32 x 20; the next size that fits is 32 x 24"),
        ({"num_heads": 5}, "num_heads must divide"),
        ({"global_pool": "max"}, 'must be "token", "avg" or ""'),
    ],
)
def test_invalid_arguments_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        small("vit", **overrides)


def test_images_of_another_size_raise():
    with pytest.raises(ValueError, match=r"needs images of shape \(B, 3, 32, 32\), got \(1, 3, 40, 40\)"):
        small("vit")(minigrad.randn(1, 3, 40, 40))


def test_unknown_models_and_arguments_raise():
    with pytest.raises(ValueError, match="did you mean vit_nano_cifar"):
        models.create_model("vit_nano_cifr")
    with pytest.raises(ValueError, match="there are no published weights of vit_tiny_cifar"):
        models.create_model("vit_tiny_cifar", pretrained=True)
    with pytest.raises(TypeError, match="no argument dept; it has img_size"):
        models.create_model("vit_nano_cifar", dept=3)
    with pytest.raises(
        TypeError, match=r"no argument layer; it has img_size, .*, layers, channels, stem_chs, stem_stride"
    ):
        models.create_model("hybrid_cifar", layer=3)
