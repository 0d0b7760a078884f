"""Weights in the layouts of others: what is loaded, what is refused, and what the refusal says."""

import re

import numpy as np
import pytest

import models
from minigrad import Tensor, serialize
from models.compare import formula
from models.swin import resample_relative_position_bias_table
from models.vit import resample_pos_embed
from models.weights.layouts import places, to_canonical
from tests.models import foreign
from tests.models.foreign import FILES, assert_has_formula_weights, file_of, refusal, values, written
from tests.models.small import small

# Layouts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FILES)
def test_every_layout(layout):
    model, entries = file_of(layout)
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


@pytest.mark.parametrize("layout", FILES)
def test_renaming_is_linear(layout):
    """So gradients can take the same way as weights."""
    model, entries = file_of(layout)
    once, twice = to_canonical(entries, model), to_canonical({name: 2 * x for name, x in entries.items()}, model)
    assert once.keys() == dict(model.named_parameters()).keys()
    for name, x in once.items():
        np.testing.assert_array_equal(2 * x, twice[name])


def test_big_vision():
    """Its class token has no position: the same as a position of zeros."""
    model = small("vit", representation_size=20).to(dtype=np.float64)
    models.load_weights(model, foreign.big_vision(small("vit", representation_size=20)))
    assert_has_formula_weights(model, except_for=["pos_embed"])
    expected = formula.weight("pos_embed", *model.pos_embed.shape)
    expected[:, 0] = 0
    np.testing.assert_array_equal(model.pos_embed.numpy(), expected)


def test_a_merging_is_placed_by_whose_names_the_others_are():
    model, entries = file_of("timm's Swin")
    assert places(entries, model)["layers.1.downsample.norm.weight"].name == "layers.0.downsample.norm.weight"
    official = dict(model.named_parameters())
    assert places(official, model)["layers.1.downsample.norm.weight"].name == "layers.1.downsample.norm.weight"


def test_linear_layers_stored_as_1x1_convolutions():
    model, entries = file_of("timm's ConvNeXt")
    entries |= {name: x[..., None, None] for name, x in entries.items() if "mlp" in name and x.ndim == 2}
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


def test_layer_scale_with_axes_of_size_1():
    model, entries = file_of("torchvision's ConvNeXt")
    entries |= {name: x[:, None, None] for name, x in entries.items() if name.endswith("layer_scale")}
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


def test_what_a_model_computes_itself_is_passed_over():
    model, entries = file_of("Microsoft")
    entries["layers.0.blocks.1.attn_mask"] = np.zeros((4, 16, 16))
    entries["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((16, 16), np.int64)
    entries["layers.0.bn.num_batches_tracked"] = np.array(0)
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda entries: {"model": entries},
        lambda entries: {"state_dict": {"model": entries}, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda entries: {"model": {name: 0 * x for name, x in entries.items()}, "model_ema": entries},
        lambda entries: {"state_dict_ema": entries, "state_dict": {}, "model_ema": None},
        lambda entries: {f"module.{name}": x for name, x in entries.items()},
        lambda entries: {"model": {f"_orig_mod.module.{name}": x for name, x in entries.items()}},
        lambda entries: {name: Tensor(x) for name, x in entries.items()},
    ],
)
def test_wrappers(wrap):
    model, entries = file_of("HF 5 Swin")
    models.load_weights(model, wrap(entries))
    assert_has_formula_weights(model)


# What does not fit --------------------------------------------------------------------------------------------------


def test_the_table():
    model, entries = file_of("timm's Swin")
    del entries["patch_embed.norm.bias"]
    entries["head.fc.weight"] = entries["head.fc.weight"].T
    entries["layers.0.gate"] = np.zeros(5)
    assert refusal(model, entries).splitlines()[:5] == [
        "these weights (in the names of timm's Swin) do not fit this SwinTransformer, and none was loaded:",
        "              in the file     in the model           shape in the file  shape in the model",
        "  misshapen   head.fc.weight  head.weight            (32, 7)            (7, 32)",
        "  unexpected  layers.0.gate   -                      (5,)               -",
        "  missing     -               patch_embed.norm.bias  -                  (8,)",
    ]


@pytest.mark.parametrize("shape", [(), (168,), (7, 24), (24, 7, 1)])
def test_axes_that_would_be_mixed_up(shape):
    """A kernel of JAX's is transposed, so for (7, 24) here it must be (24, 7) there."""
    model, entries = small("vit"), foreign.jax(small("vit"))
    entries["head/kernel"] = np.resize(entries["head/kernel"], shape)
    assert re.search(
        rf"misshapen +head/kernel +head.weight +{re.escape(str(shape))} +\(7, 24\)", refusal(model, entries)
    )


def test_long_tables_are_cut():
    text = refusal(small("vit", depth=3), written(small("vit"), foreign.hugging_face_vit))
    assert text.count("\n  missing ") == 11 and "and 2 more" in text


@pytest.mark.parametrize("layout", ["HF 5 ViT", "HF 4 Swin", "JAX hybrid"])
def test_one_of_q_k_v_is_missing(layout):
    model, entries = file_of(layout)
    del entries[next(name for name in entries if re.search("k(ey|_proj)", name))]
    assert re.search(r"missing +- +\S+\.attn\.qkv\.(weight|bias) \[k\]", refusal(model, entries))
    with pytest.raises(ValueError, match="needs q, k and v, got only q, v"):
        to_canonical(entries, model)


@pytest.mark.parametrize("layout", [name for name in FILES if name != "HF 5 ViTModel"])
def test_another_number_of_classes(layout):
    family, overrides, _ = FILES[layout]
    model, (_, entries) = small(family, **overrides, num_classes=5).to(dtype=np.float64), file_of(layout)
    before = values(model)
    text = refusal(model, entries)
    assert "(7,)" in text and "head=False keeps the model's; create_model(..., num_classes=7) makes one like" in text
    assert "Was the model" not in text and "look like" not in text
    models.load_weights(model, entries, head=False)
    kept = [name for name in before if name.startswith(("head", "pre_logits"))]
    assert_has_formula_weights(model, except_for=kept)
    for name in kept:
        np.testing.assert_array_equal(values(model)[name], before[name])


def test_no_classifier_here_or_there():
    for there, here in [({"num_classes": 0}, {}), ({}, {"num_classes": 0})]:
        model, entries = small("vit", **here), written(small("vit", **there), foreign.torchvision_vit)
        assert "The classifiers differ: head=False keeps the model's" in refusal(model, entries)
        models.load_weights(model.to(dtype=np.float64), entries, head=False)
        assert_has_formula_weights(model, except_for=["head.weight", "head.bias"])


def test_a_pre_logits_layer_here_or_there():
    for there, here, size in [({"representation_size": 20}, {}, 20), ({}, {"representation_size": 20}, None)]:
        model, entries = small("vit", **here), foreign.jax(small("vit", **there))
        text = refusal(model, entries)
        assert f"create_model(..., representation_size={size})" in text and "Was the model" not in text
        models.load_weights(model.to(dtype=np.float64), entries, head=False)
        head = [f"{layer}.{kind}" for layer in ("pre_logits.fc", "head") for kind in ("weight", "bias")]
        assert_has_formula_weights(model, except_for=head)


def test_another_number_of_heads():
    """In most files the heads cannot be seen; in JAX's they are an axis, and 8 of 3 numbers are not 3 of 8."""
    message = refusal(small("vit", num_heads=8), foreign.jax(small("vit", num_heads=3)))
    assert "not 8 heads" in message and "num_heads=" in message and "and 4 more" in message


def test_nothing_to_load():
    assert "no weights to load" in refusal(small("vit"), {})
    assert "head=False passes over" in refusal(small("vit"), {"head.weight": np.zeros((7, 24))}, head=False)


@pytest.mark.parametrize("write", [foreign.jax, foreign.big_vision])
def test_another_size_of_image(write):
    file, model = small("vit"), small("vit", img_size=(48, 32)).to(dtype=np.float64)
    entries = write(file)
    assert "resize=True" in refusal(model, entries)
    models.load_weights(model, entries, resize=True)
    if write is foreign.big_vision:
        file.pos_embed.data[:, 0] = 0
    expected = resample_pos_embed(file.pos_embed, (4, 4), (6, 4))
    np.testing.assert_array_equal(model.pos_embed.numpy(), expected.numpy())
    assert_has_formula_weights(model, except_for=["pos_embed"])


def test_another_grid_of_as_many_patches():
    """The file's is square. Without resize=True its positions are taken as they come."""
    file, model = small("vit"), small("vit", img_size=(16, 64)).to(dtype=np.float64)
    entries = foreign.jax(file)
    models.load_weights(model, entries)
    np.testing.assert_array_equal(model.pos_embed.numpy(), file.pos_embed.numpy())
    models.load_weights(model, entries, resize=True)
    expected = resample_pos_embed(file.pos_embed, (4, 4), (2, 8))
    np.testing.assert_array_equal(model.pos_embed.numpy(), expected.numpy())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_checkpoint_of_ours_says_its_grid_and_windows(tmp_path, suffix):
    """A grid of 4 x 16 has as many positions as one of 8 x 8; only the metadata tells them apart."""
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    for name, here, there in (
        ("vit_nano_cifar", {}, {"img_size": [16, 64]}),
        ("vit_nano_cifar", {}, {"patch_size": [8, 2]}),
        ("swin_nano_cifar", {"window_size": 4}, {"window_size": [2, 5]}),
        ("swin_nano_cifar", {"window_size": [5, 2]}, {"window_size": [2, 5]}),
    ):
        arguments = {"name": name, **there}
        file, model = formula.fill(models.create_model(**arguments)), models.create_model(name, **here)
        if "patch_size" in there:
            file.patch_embed.proj = models.create_model(name).patch_embed.proj  # only the grid differs
        serialize.save(tmp_path / f"w{suffix}", file.state_dict(), {"model": arguments})
        loaded = models.load_weights(model.to(dtype=np.float64), tmp_path / f"w{suffix}", resize=True)
        for key in loaded.resized:
            was, now = dict(file.named_parameters())[key], dict(model.named_parameters())[key]
            expected = (
                resample_pos_embed(was, file.patch_embed.grid_size, (8, 8)) if key == "pos_embed" else
                resample_relative_position_bias_table(was, here["window_size"], (2, 5))
            )  # fmt: skip
            np.testing.assert_array_equal(now.numpy(), expected.numpy())
        assert sorted(loaded.resized) == sorted(
            n for n, _ in model.named_parameters() if n.endswith(("pos_embed", "bias_table"))
        )


def test_another_window():
    file, model = small("swin"), small("swin", window_size=7).to(dtype=np.float64)
    entries = written(file, foreign.hugging_face_swin)
    assert "resize=True" in refusal(model, entries)
    models.load_weights(model, entries, resize=True)
    name = "layers.1.blocks.1.attn.relative_position_bias_table"
    expected = resample_relative_position_bias_table(dict(file.named_parameters())[name], 7)
    np.testing.assert_array_equal(dict(model.named_parameters())[name].numpy(), expected.numpy())
    assert_has_formula_weights(model, except_for=[n for n, _ in model.named_parameters() if n.endswith("table")])


def test_resizing_half_precision():
    model, entries = small("vit", img_size=64), foreign.jax(small("vit"))
    models.load_weights(model, {name: x.astype(np.float16) for name, x in entries.items()}, resize=True)
    expected = Tensor(entries["Transformer/posembed_input/pos_embedding"].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(model.pos_embed.numpy(), resample_pos_embed(expected, (4, 4), (8, 8)).numpy())


def test_positions_that_cannot_be_resized():
    model, entries = small("vit"), foreign.jax(small("vit", img_size=(48, 32)))
    assert "from a square grid or window only" in refusal(model, entries, resize=True)
    assert "resize=True" not in refusal(small("vit", embed_dim=48), foreign.jax(small("vit")), resize=True)


def test_the_wrong_model():
    """Whose they are is told from names and shapes."""
    entries = written(models.create_model("vit_nano_cifar"), foreign.hugging_face_vit)
    look = "They look like those of create_model('{}'), without other arguments."
    assert look.format("vit_nano_cifar") in refusal(models.create_model("vit_micro_cifar"), entries)
    entries = written(models.create_model("swin_nano_cifar"), foreign.torchvision_swin)
    assert look.format("swin_nano_cifar") in refusal(small("convnext"), entries)
    entries = foreign.jax(models.create_model("vit_nano_cifar", num_classes=3))
    assert look.format("vit_nano_cifar") in refusal(small("swin"), entries)


def test_no_model_is_named_where_none_is_alike():
    """Three quarters of them would fit, or no more than fit already."""
    of_three_blocks = written(models.create_model("vit_nano_cifar", depth=3), foreign.ours)
    incomplete = written(models.create_model("vit_nano_cifar"), foreign.ours)
    del incomplete["norm.bias"]
    for name, entries in [("vit_micro_cifar", of_three_blocks), ("vit_nano_cifar", incomplete)]:
        text = refusal(models.create_model(name), entries)
        assert "Was the model created with the same arguments" in text and "look like" not in text


def test_names_that_nobody_knows():
    text = refusal(small("vit"), {"encoder.embed.w": np.zeros(3), "epoch": 4})
    assert "none of these 2 names (encoder.embed.w, epoch) is known here" in text
    assert all(name in text for name in ("minigrad", "timm", "torchvision", "Hugging Face", "Google"))
    assert "no weights to load" in refusal(small("vit"), {})


def test_quantised_weights():
    model, entries = file_of("Facebook")
    entries["norm.weight"] = np.ones(16, np.int8)
    text = refusal(model, entries)
    assert "int8  norm.weight" in text and "quantised" in text


def test_two_entries_for_one_parameter():
    model, entries = file_of("timm's Swin")
    assert "unexpected  head.weight" in refusal(model, entries | {"head.weight": entries["head.fc.weight"]})
