"""DeiT, DeiT III and DINOv2: what differs from ViT, and what does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
import models
from minigrad import Tensor
from minigrad import functional as F
from models.compare import formula
from models.deit import DeiT, DeiT3, VisionTransformerDistilled
from models.dinov2 import DINOv2
from models.vit import Mlp, VisionTransformer
from tests.models.small import images, small

FAMILIES = ["distilled", "deit3", "dinov2"]
CONFIGS = st.fixed_dictionaries(
    {
        "img_size": st.sampled_from([8, (8, 16), (16, 4)]),
        "patch_size": st.sampled_from([4, (4, 2)]),
        "in_chans": st.integers(1, 3),
        "num_classes": st.integers(0, 5),
        "embed_dim": st.sampled_from([4, 8]),
        "depth": st.integers(0, 3),
        "num_heads": st.sampled_from([1, 2, 4]),
        "mlp_ratio": st.sampled_from([1.0, 2.5]),
        "qkv_bias": st.booleans(),
        "global_pool": st.sampled_from(["token", "avg", ""]),
    }
)


def gradients(model, x: Tensor) -> dict[str, np.ndarray]:
    """The logits, and the gradients of a weighted sum of the logits."""
    model.zero_grad()
    logits = model(x)
    (logits * Tensor(formula.stream("loss", *logits.shape))).sum().backward()
    return {"logits": logits.numpy()} | {
        name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None
    }


# What equals ViT ------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(CONFIGS)
def test_without_their_additions_all_networks_are_vit(config):
    """DeiT without a distillation token; DeiT III and DINOv2 with layer scale 1 and without registers."""
    expected, scaled = formula.fill(VisionTransformer(**config)), {"init_values": 1.0, "no_embed_class": False}
    x = Tensor(formula.stream("x", 2, config["in_chans"], *expected.img_size))
    reference = gradients(expected, x)
    for model in (DeiT(**config), DeiT3(**config, **scaled), DINOv2(**config, **scaled)):
        model.to(dtype=np.float64).load_state_dict(expected.state_dict(), strict=False)
        found = gradients(model, x)
        assert set(reference) <= set(found)
        for name, value in reference.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-13, err_msg=name)


def test_distilled_logits_are_those_of_two_vits():
    """Without blocks, tokens do not interact: head is that of a ViT, head_dist that of a ViT with the distillation
    token in place of the class token."""
    model = formula.fill(small("distilled", depth=0))
    vits = [formula.fill(small("vit", depth=0)) for _ in range(2)]
    for vit, token, position, head in zip(
        vits, (model.cls_token, model.dist_token), (0, 1), (model.head, model.head_dist), strict=True
    ):
        vit.cls_token, vit.head = token, head
        vit.pos_embed = minigrad.nn.Parameter(np.delete(model.pos_embed.numpy(), 1 - position, axis=1))
    expected = (vits[0](images()).numpy() + vits[1](images()).numpy()) / 2
    np.testing.assert_allclose(model(images()).numpy(), expected, rtol=1e-13)


# Distillation ---------------------------------------------------------------------------------------------------------


def test_heads_are_separate_in_distilled_training_only():
    model = formula.fill(small("distilled"))
    mean = model(images()).numpy()
    model.set_distilled_training()
    head, head_dist = model(images())
    np.testing.assert_array_equal(((head + head_dist) / 2).numpy(), mean)
    tokens = model.forward_features(images())
    np.testing.assert_array_equal(head.numpy(), model.head(tokens[:, 0]).numpy())
    np.testing.assert_array_equal(head_dist.numpy(), model.head_dist(tokens[:, 1]).numpy())
    np.testing.assert_array_equal(model.eval()(images()).numpy(), mean)
    model.train().set_distilled_training(False)
    np.testing.assert_array_equal(model(images()).numpy(), mean)


def test_a_loss_of_one_head_has_no_gradient_in_the_other():
    model = formula.fill(small("distilled"))
    model.set_distilled_training()
    F.cross_entropy(model(images())[1], Tensor([1, 5])).backward()
    assert model.head.weight.grad is None and abs(model.head_dist.weight.grad.numpy()).max() > 0
    assert abs(model.dist_token.grad.numpy()).max() > 0 and abs(model.cls_token.grad.numpy()).max() > 0


def test_reset_classifier_replaces_both_heads():
    model = formula.fill(small("distilled"))
    before = model(
        images(),
    ).numpy()
    model.reset_classifier(3)
    assert before.shape == (2, 7) and model(images()).shape == (2, 3) and model.head_dist.weight.dtype == np.float64
    model.reset_classifier(0)
    tokens = model.forward_features(images())
    np.testing.assert_array_equal(model(images()).numpy(), tokens[:, :2].mean(1).numpy())


def test_weights_of_two_heads_load_or_stay_together():
    model, file = small("distilled", num_classes=5), formula.fill(small("distilled"))
    entries = {name: tensor.numpy() for name, tensor in file.state_dict().items()}
    with pytest.raises(models.weights.MisfitError, match=r"head=False keeps the model's; .*num_classes=7") as error:
        models.load_weights(model, entries)
    assert {misfit.name_in_model.split(".")[0] for misfit in error.value.misfits} == {"head", "head_dist"}
    before = [head.weight.numpy().copy() for head in (model.head, model.head_dist)]
    loaded = models.load_weights(model, entries, head=None)
    assert not loaded.head and loaded.classes == 7
    for head, weight in zip((model.head, model.head_dist), before, strict=True):
        np.testing.assert_array_equal(head.weight.numpy(), weight)


# Prefix tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_tokens_come_first(family):
    """Each token is its parameter plus its position, if it has one; the patch tokens follow."""
    model = formula.fill(small(family, depth=0))
    model.norm = minigrad.nn.Identity()
    z, n = model.forward_features(images()).numpy(), model.num_prefix_tokens
    patches, positions = model.patch_embed(images()).numpy(), model.pos_embed.numpy()
    prefix = [model.cls_token, *([model.dist_token] if family == "distilled" else [])]
    prefix += [model.reg_token] if family == "dinov2" else []
    prefix = np.concatenate([token.numpy() for token in prefix], 1)
    assert n == prefix.shape[1] == {"distilled": 2, "deit3": 1, "dinov2": 3}[family]
    if family == "distilled":
        prefix, positions = prefix + positions[:, :n], positions[:, n:]
    np.testing.assert_array_equal(z[:, :n], np.broadcast_to(prefix, (2, *prefix.shape[1:])))
    np.testing.assert_array_equal(z[:, n:], patches + positions)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_attention_maps_with_prefix_tokens(family):
    model = formula.fill(small(family))
    n, (features, maps) = model.num_prefix_tokens, model.forward_intermediates(images())
    assert [m.shape for m in maps] == [(2, 24, 4, 4)] * 2 and features.shape == (2, n + 16, 24)
    normed = model.norm(maps[-1].flatten(2).transpose(1, 2)).numpy()
    np.testing.assert_allclose(features.numpy()[:, n:], normed, rtol=1e-11)
    assert [A.shape for A in model.attention_maps(images())] == [(2, 3, n + 16, n + 16)] * 2


@pytest.mark.parametrize("family", ["deit3", "dinov2"])
def test_average_pooling_ignores_prefix_tokens(family):
    model = formula.fill(small(family, global_pool="avg"))
    tokens = model.forward_features(images())[:, model.num_prefix_tokens :]
    np.testing.assert_array_equal(model(images()).numpy(), model.head(model.fc_norm(tokens.mean(1))).numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_set_input_size_keeps_the_positions_of_prefix_tokens(family):
    model = formula.fill(small(family))
    n, before = model.num_prefix_positions, model.pos_embed.numpy()
    model.set_input_size((48, 24))
    assert model.pos_embed.shape == (1, n + 6 * 3, 24) and n == {"distilled": 2}.get(family, 0)
    np.testing.assert_array_equal(model.pos_embed.numpy()[:, :n], before[:, :n])
    assert model(Tensor(formula.stream("x", 1, 3, 48, 24))).shape == (1, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_in_the_stem_and_have_no_weight_decay(family):
    model = small(family)
    tokens = {name for name, _ in model.named_parameters() if name.endswith(("_token", "pos_embed"))}
    assert model.no_weight_decay() == tokens and {model.layer_ids()[name] for name in tokens} == {0}


# Initial values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scale"),
    [("deit3_small_patch16_224", 1e-6), ("vit_small_patch14_dinov2", 1e-5), ("vit_giant_patch14_reg4_dinov2", 1e-5)],
)
def test_initial_values(name, scale):
    minigrad.manual_seed(0)
    small_size = {"img_size": 28, "patch_size": 14, "embed_dim": 96, "num_heads": 3, "depth": 2, "num_classes": 10}
    model = models.create_model(name, **small_size)
    for block in model.blocks:
        for layer in (block.ls1, block.ls2):
            np.testing.assert_array_equal(layer.gamma.numpy(), np.full(96, scale, np.float32))
    for layer in (model.head, block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        assert layer.weight.numpy().std() == pytest.approx(0.02, rel=0.1) and not layer.bias.numpy().any()
    assert model.pos_embed.numpy().std() == pytest.approx(0.02, rel=0.2)
    tokens = [model.cls_token] + ([model.reg_token] if "reg4" in name else [])
    assert all(token.numpy().std() == pytest.approx(1e-6, rel=0.3) for token in tokens)


def test_both_distilled_heads_and_the_token_are_initialized():
    minigrad.manual_seed(0)
    model = small("distilled", embed_dim=96)
    for x in (model.head.weight, model.head_dist.weight, model.dist_token):
        assert x.numpy().std() == pytest.approx(0.02, rel=0.2)
    assert not np.array_equal(model.head.weight.numpy(), model.head_dist.weight.numpy())


# Names ----------------------------------------------------------------------------------------------------------------


def test_models_have_timms_names():
    deit = {f"deit_{size}{kind}_patch16_224" for size in ("tiny", "small", "base") for kind in ("", "_distilled")}
    deit |= {"deit_base_patch16_384", "deit_base_distilled_patch16_384"}
    assert set(models.list_models("deit_*")) == deit
    assert set(models.list_models("deit3_*")) == {
        "deit3_small_patch16_224", "deit3_small_patch16_384", "deit3_medium_patch16_224", "deit3_base_patch16_224",
        "deit3_base_patch16_384", "deit3_large_patch16_224", "deit3_large_patch16_384", "deit3_huge_patch14_224",
    }  # fmt: skip
    sizes = ("small", "base", "large", "giant")
    assert set(models.list_models("*dinov2")) == {f"vit_{s}_patch14{r}_dinov2" for s in sizes for r in ("", "_reg4")}


def test_the_gated_mlp_has_the_hidden_dimension_of_the_giant():
    with minigrad.nn.init.meta_init():
        model = models.create_model("vit_giant_patch14_dinov2", depth=1)
    assert model.blocks[0].mlp.fc1.weight.shape == (8192, 1536) and model.blocks[0].mlp.fc2.weight.shape == (1536, 4096)
    assert model.img_size == (518, 518) and model.pos_embed.shape == (1, 37 * 37 + 1, 1536) and model.num_classes == 0


def test_arguments_of_timm_are_accepted():
    config = {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 3}
    model = models.create_model("vit_small_patch14_reg4_dinov2", **config, reg_tokens=2, init_values=0.5, mlp_layer=Mlp)
    assert model.num_prefix_tokens == 3 and model.blocks[0].ls1.gamma.numpy()[0] == 0.5
    assert (
        models.create_model(
            "deit3_base_patch16_224", **config | {"patch_size": 14}, no_embed_class=False
        ).pos_embed.shape[1]
        == 5
    )
    assert isinstance(models.create_model("deit_tiny_distilled_patch16_224", img_size=16), VisionTransformerDistilled)
