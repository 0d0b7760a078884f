"""ViT: gradients, and what its arguments do."""

import numpy as np
import pytest

import minigrad
import minigrad.optim
import models
from minigrad import Tensor
from minigrad import functional as F
from models.compare import formula
from models.vit import VisionTransformer


def small(**overrides) -> VisionTransformer:
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
    return VisionTransformer(**(config | overrides))


def test_gradients_agree_with_finite_differences():
    model = formula.fill(small(representation_size=20))
    x, h = formula.stream("x.vit", 2, 3, 32, 32), 1e-6
    probe = formula.stream("loss", 2, 7)

    def loss(images) -> Tensor:
        return (model(Tensor(images)) * Tensor(probe)).sum()

    loss(x).backward()
    for name, parameter in model.named_parameters():
        direction, value = formula.stream("probe." + name, *parameter.shape), parameter.data.copy()
        with minigrad.no_grad():
            parameter.data[...] = value + h * direction
            above = loss(x).item()
            parameter.data[...] = value - h * direction
            below = loss(x).item()
        parameter.data[...] = value
        analytic = float((parameter.grad.data * direction).sum())
        assert analytic == pytest.approx((above - below) / (2 * h), rel=1e-6, abs=1e-7), name


def test_facts_about_the_gradient():
    """Position 0's embedding and the class token are added, so they share a gradient; a key's bias shifts all scores of
    a query alike, which softmax does not see."""
    model = formula.fill(small())
    model(Tensor(formula.stream("x", 2, 3, 32, 32))).sum().backward()
    np.testing.assert_allclose(model.cls_token.grad.numpy(), model.pos_embed.grad.numpy()[:, :1], rtol=1e-13)
    for block in model.blocks:
        q, k, v = np.split(block.attn.qkv.bias.grad.numpy(), 3)
        assert abs(k).max() < 1e-12 * max(abs(q).max(), abs(v).max())


def test_the_head_can_be_left_out():
    model = small(num_classes=0)
    x = Tensor(np.ones((2, 3, 32, 32), np.float32))
    assert model(x).shape == (2, 24) and model.forward_features(x).shape == (2, 17, 24)
    assert small(num_classes=0, representation_size=20)(x).shape == (2, 20)


def test_dropout_and_stochastic_depth_act_in_training_only():
    minigrad.manual_seed(0)
    model = formula.fill(small(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5))
    assert [block.drop_path.p for block in model.blocks] == [0.0, 0.5]
    x = Tensor(formula.stream("x", 2, 3, 32, 32))
    assert not np.array_equal(model(x).numpy(), model(x).numpy())
    np.testing.assert_array_equal(model.eval()(x).numpy(), formula.fill(small()).eval()(x).numpy())


def test_it_learns_one_batch_by_heart():
    minigrad.manual_seed(0)
    model = models.create_model("vit_nano_cifar", depth=1)
    optimizer = minigrad.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = minigrad.randn(8, 3, 32, 32), Tensor(np.arange(8))
    for _ in range(40):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05 and (model(x).argmax(1) == y).numpy().all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"patch_size": 7}, "next size that fits is 35"), ({"num_heads": 5}, "num_heads must divide")],
)
def test_sizes_that_do_not_divide_are_explained(overrides, message):
    with pytest.raises(ValueError, match=message):
        small(**overrides)


def test_images_of_another_size_are_explained():
    with pytest.raises(ValueError, match=r"takes images of shape \(B, 3, 32, 32\), got \(1, 3, 40, 40\)"):
        small()(Tensor(np.zeros((1, 3, 40, 40), np.float32)))


def test_names_that_are_not_there_are_explained():
    with pytest.raises(ValueError, match="did you mean vit_nano_cifar"):
        models.create_model("vit_nano_cifr")
    with pytest.raises(TypeError, match="no argument dept; it has img_size"):
        models.create_model("vit_nano_cifar", dept=3)
