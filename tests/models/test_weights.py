"""Weights under the names of other libraries: loading, mismatches, and the error messages."""

import re

import numpy as np
import pytest

import models
from minigrad import Tensor, nn, serialize
from models.compare import formula
from models.swin import resample_relative_position_bias_table
from models.vit import resample_pos_embed
from models.weights.layouts import places, to_canonical
from tests.models import foreign
from tests.models.foreign import FILES, assert_has_formula_weights, file_of, refusal, values, written
from tests.models.small import small

# Layouts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FILES)
def test_every_layout_loads(layout):
    model, entries = file_of(layout)
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


@pytest.mark.parametrize("layout", FILES)
def test_to_canonical_is_linear(layout):
    """A linear function converts gradients as well as weights."""
    model, entries = file_of(layout)
    once, twice = to_canonical(entries, model), to_canonical({name: 2 * x for name, x in entries.items()}, model)
    assert once.keys() == dict(model.named_parameters()).keys()
    for name, x in once.items():
        np.testing.assert_array_equal(2 * x, twice[name])


def test_classifier_of_hugging_face_dinov2_can_be_left_out():
    """Its classifier reads the class token and the mean of the patch tokens: 2D values, where ours reads D."""
    entries = file_of("HF 5 DINOv2")[1] | {"classifier.weight": np.zeros((7, 48)), "classifier.bias": np.zeros(7)}
    model = file_of("HF 5 DINOv2")[0]
    assert "The classifiers differ: head=False keeps" in refusal(model, entries)
    assert models.load_weights(model, entries, head=False) == (False, 7, [])
    assert_has_formula_weights(model)


def test_big_vision_files_load():
    """The file has no position embedding of the class token, so the model gets zeros for the class token."""
    model = small("vit", representation_size=20).to(dtype=np.float64)
    models.load_weights(model, foreign.big_vision(small("vit", representation_size=20)))
    assert_has_formula_weights(model, except_for=["pos_embed"])
    expected = formula.weight("pos_embed", *model.pos_embed.shape)
    expected[:, 0] = 0
    np.testing.assert_array_equal(model.pos_embed.numpy(), expected)


@pytest.mark.parametrize(
    ("rename", "words", "token", "positions"),
    [
        (foreign.facebook_dinov2, "qkv", "cls_token", "pos_embed"),
        (
            foreign.hugging_face_gated_dinov2,
            "qkv",
            "dinov2.embeddings.cls_token",
            "dinov2.embeddings.position_embeddings",
        ),
        (
            lambda name: foreign.hugging_face_4_gated_dinov2(name).replace("dinov2.", "dinov2_with_registers."),
            ("query", "key", "value"),
            "dinov2_with_registers.embeddings.cls_token",
            "dinov2_with_registers.embeddings.position_embeddings",
        ),
    ],
)
def test_class_position_is_added_to_the_token_with_registers(rename, words, token, positions):
    model, file = (small("dinov2", num_classes=0).to(dtype=np.float64) for _ in range(2))
    entries = written(file, rename, words)
    models.load_weights(model, foreign.with_class_position(entries, token, positions))
    assert_has_formula_weights(model)


def test_checkpoints_of_dinos_training_give_the_teacher():
    """They hold the student and the teacher, each with a projection head; the teacher is the average."""
    model, file = (small("vit", num_classes=0).to(dtype=np.float64) for _ in range(2))
    teacher = {f"backbone.{name}": x for name, x in written(file, foreign.ours).items()}
    teacher |= {"head.mlp.0.weight": np.zeros((8, 24)), "head.last_layer.weight_g": np.zeros((8, 1))}
    student = {f"module.{name}": 0 * x for name, x in teacher.items()}
    checkpoint = {"student": student, "teacher": teacher, "epoch": 99}
    assert "The classifiers differ: head=False" in refusal(model, checkpoint)
    models.load_weights(model, checkpoint, head=False)
    assert_has_formula_weights(model)


def test_missing_half_of_a_gated_mlp_is_reported():
    model, entries = file_of("HF 5 gated DINOv2")
    del entries["dinov2.encoder.layer.0.mlp.up_proj.weight"]
    assert re.search(r"missing +- +blocks\.0\.mlp\.fc1\.weight \[up\] +- +\(64, 24\)", refusal(model, entries))
    with pytest.raises(ValueError, match="needs gate and up, got only gate"):
        to_canonical(entries, model)


def test_downsample_index_depends_on_the_layout():
    model, entries = file_of("timm's Swin")
    assert places(entries, model)["layers.1.downsample.norm.weight"].name == "layers.0.downsample.norm.weight"
    official = dict(model.named_parameters())
    assert places(official, model)["layers.1.downsample.norm.weight"].name == "layers.1.downsample.norm.weight"


def test_linear_weights_stored_as_1x1_convolutions_load():
    model, entries = file_of("timm's ConvNeXt")
    entries |= {name: x[..., None, None] for name, x in entries.items() if "mlp" in name and x.ndim == 2}
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


def test_layer_scale_with_axes_of_size_1_loads():
    model, entries = file_of("torchvision's ConvNeXt")
    entries |= {name: x[:, None, None] for name, x in entries.items() if name.endswith("layer_scale")}
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


def test_computed_buffers_are_ignored():
    model, entries = file_of("Microsoft")
    entries["layers.0.blocks.1.attn_mask"] = np.zeros((4, 16, 16))
    entries["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((16, 16), np.int64)
    entries["layers.0.bn.num_batches_tracked"] = np.array(0)
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


def test_computed_buffers_of_swin_v2_are_ignored():
    model, entries = file_of("torchvision's Swin V2")
    entries["features.1.0.attn.relative_coords_table"] = np.zeros((1, 7, 7, 2))
    entries["features.1.0.attn.relative_position_index"] = np.zeros(256, np.int64)
    models.load_weights(model, entries)
    assert_has_formula_weights(model)


def test_a_stacked_bias_that_does_not_fit_is_refused():
    model, entries = file_of("torchvision's Swin V2")
    name = "features.1.0.attn.qkv.bias"
    for wrong in (np.zeros(27), np.zeros(())):
        text = refusal(model, entries | {name: wrong})
        assert ("features.1.0.attn.q_bias" if wrong.ndim else name) in text


def test_position_bias_of_swin_v2_needs_no_resizing():
    """A file for windows of 4 loads into a model with windows of 8."""
    file, model = small("swinv2"), small("swinv2", window_size=8, img_size=64).to(dtype=np.float64)
    loaded = models.load_weights(model, written(file, foreign.timm_swin))
    assert_has_formula_weights(model)
    assert loaded.resized == [] and model(Tensor(formula.stream("x", 1, 3, 64, 64))).shape == (1, 7)


def test_buffers_that_the_model_has_are_loaded():
    """BatchNorm2d(momentum=None) averages over all batches, so the number of batches is loaded."""
    model, entries = file_of("Facebook")
    model.bn = nn.BatchNorm2d(2, momentum=None)
    entries |= {f"bn.{name}": tensor.numpy().copy() for name, tensor in model.bn.state_dict().items()}
    entries["bn.num_batches_tracked"] = np.array(5)
    models.load_weights(model, entries)
    assert int(model.bn.num_batches_tracked.numpy()) == 5


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
def test_nested_and_prefixed_state_dicts_load(wrap):
    model, entries = file_of("HF 5 Swin")
    models.load_weights(model, wrap(entries))
    assert_has_formula_weights(model)


# Mismatches --------------------------------------------------------------------------------------------------


def test_table_of_mismatches():
    model, entries = file_of("timm's Swin")
    del entries["patch_embed.norm.bias"]
    entries["head.fc.weight"] = entries["head.fc.weight"].T
    entries["layers.0.gate"] = np.zeros(5)
    assert refusal(model, entries).splitlines()[:5] == [
        "these weights (with the names of timm's Swin) do not fit this SwinTransformer, and none was loaded:",
        "                  in the file     in the model           shape in the file  shape in the model",
        "  shape mismatch  head.fc.weight  head.weight            (32, 7)            (7, 32)",
        "  unexpected      layers.0.gate   -                      (5,)               -",
        "  missing         -               patch_embed.norm.bias  -                  (8,)",
    ]


@pytest.mark.parametrize("shape", [(), (168,), (7, 24), (24, 7, 1)])
def test_reshapes_that_reorder_elements_are_refused(shape):
    """JAX's kernels are transposed: a weight (7, 24) is (24, 7) in the file."""
    model, entries = small("vit"), foreign.jax(small("vit"))
    entries["head/kernel"] = np.resize(entries["head/kernel"], shape)
    assert re.search(
        rf"shape mismatch +head/kernel +head.weight +{re.escape(str(shape))} +\(7, 24\)", refusal(model, entries)
    )


def test_long_tables_are_truncated():
    text = refusal(small("vit", depth=3), written(small("vit"), foreign.hugging_face_vit))
    assert text.count("\n  missing ") == 11 and "and 2 more" in text


@pytest.mark.parametrize("layout", ["HF 5 ViT", "HF 4 Swin", "JAX hybrid"])
def test_missing_key_weight_is_reported(layout):
    model, entries = file_of(layout)
    del entries[next(name for name in entries if re.search("k(ey|_proj)", name))]
    assert re.search(r"missing +- +\S+\.attn\.qkv\.(weight|bias) \[k\]", refusal(model, entries))
    with pytest.raises(ValueError, match="needs q, k and v, got only q, v"):
        to_canonical(entries, model)


@pytest.mark.parametrize(
    "layout", [name for name, (_, overrides, _) in FILES.items() if "num_classes" not in overrides]
)
def test_another_number_of_classes_needs_head_false(layout):
    family, overrides, _ = FILES[layout]
    model, (_, entries) = small(family, **overrides, num_classes=5).to(dtype=np.float64), file_of(layout)
    before = values(model)
    text = refusal(model, entries)
    assert "(7,)" in text and "head=False keeps the model's; create_model(..., num_classes=7) matches the" in text
    assert "Was the model" not in text and "look like" not in text
    models.load_weights(model, entries, head=False)
    unchanged = [name for name in before if name.startswith(("head", "head_dist", "pre_logits"))]
    assert_has_formula_weights(model, except_for=unchanged)
    for name in unchanged:
        np.testing.assert_array_equal(values(model)[name], before[name])


def test_classifier_only_in_file_or_model():
    for in_file, in_model in [({"num_classes": 0}, {}), ({}, {"num_classes": 0})]:
        model, entries = small("vit", **in_model), written(small("vit", **in_file), foreign.torchvision_vit)
        assert "The classifiers differ: head=False keeps the model's" in refusal(model, entries)
        models.load_weights(model.to(dtype=np.float64), entries, head=False)
        assert_has_formula_weights(model, except_for=["head.weight", "head.bias"])


def test_pre_logits_only_in_file_or_model():
    for in_file, in_model, size in [({"representation_size": 20}, {}, 20), ({}, {"representation_size": 20}, None)]:
        model, entries = small("vit", **in_model), foreign.jax(small("vit", **in_file))
        text = refusal(model, entries)
        assert f"create_model(..., representation_size={size})" in text and "Was the model" not in text
        models.load_weights(model.to(dtype=np.float64), entries, head=False)
        head = [f"{layer}.{kind}" for layer in ("pre_logits.fc", "head") for kind in ("weight", "bias")]
        assert_has_formula_weights(model, except_for=head)


def test_another_number_of_heads_is_refused():
    """Only JAX's files have an axis for the heads: 3 heads of size 8 are not 8 heads of size 3."""
    message = refusal(small("vit", num_heads=8), foreign.jax(small("vit", num_heads=3)))
    assert "not 8 heads" in message and "num_heads=" in message and "and 4 more" in message


def test_empty_weights_are_refused():
    assert "no weights to load" in refusal(small("vit"), {})
    assert "head=False ignores" in refusal(small("vit"), {"head.weight": np.zeros((7, 24))}, head=False)


@pytest.mark.parametrize("write", [foreign.jax, foreign.big_vision])
def test_position_embeddings_are_resampled(write):
    file, model = small("vit"), small("vit", img_size=(48, 32)).to(dtype=np.float64)
    entries = write(file)
    assert "resize=True" in refusal(model, entries)
    models.load_weights(model, entries, resize=True)
    if write is foreign.big_vision:
        file.pos_embed.data[:, 0] = 0
    expected = resample_pos_embed(file.pos_embed, (4, 4), (6, 4))
    np.testing.assert_array_equal(model.pos_embed.numpy(), expected.numpy())
    assert_has_formula_weights(model, except_for=["pos_embed"])


def test_other_grid_of_equal_length_needs_resize():
    """Without resize=True, the position embedding of the file's 4 x 4 grid is loaded unchanged for 2 x 8."""
    file, model = small("vit"), small("vit", img_size=(16, 64)).to(dtype=np.float64)
    entries = foreign.jax(file)
    models.load_weights(model, entries)
    np.testing.assert_array_equal(model.pos_embed.numpy(), file.pos_embed.numpy())
    models.load_weights(model, entries, resize=True)
    expected = resample_pos_embed(file.pos_embed, (4, 4), (2, 8))
    np.testing.assert_array_equal(model.pos_embed.numpy(), expected.numpy())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_checkpoint_metadata_gives_grid_and_window_size(tmp_path, suffix):
    """Grids of 4 x 16 and 8 x 8 have the same length; only the metadata distinguishes them."""
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


@pytest.mark.parametrize("family", ["distilled", "deit3", "dinov2"])
def test_positions_of_prefix_tokens_are_kept(family):
    file, model = small(family), small(family, img_size=(48, 32)).to(dtype=np.float64)
    entries, n = written(file, foreign.ours), {"distilled": 2, "deit3": 0, "dinov2": 0}[family]
    assert "resize=True" in refusal(model, entries)
    assert models.load_weights(model, entries, resize=True).resized == ["pos_embed"]
    patches = resample_pos_embed(file.pos_embed[:, n:], (4, 4), (6, 4), num_prefix_positions=0)
    np.testing.assert_array_equal(model.pos_embed.numpy()[:, :n], file.pos_embed.numpy()[:, :n])
    np.testing.assert_array_equal(model.pos_embed.numpy()[:, n:], patches.numpy())
    assert_has_formula_weights(model, except_for=["pos_embed"])


def test_bias_tables_are_resampled():
    file, model = small("swin"), small("swin", window_size=7).to(dtype=np.float64)
    entries = written(file, foreign.hugging_face_swin)
    assert "resize=True" in refusal(model, entries)
    models.load_weights(model, entries, resize=True)
    name = "layers.1.blocks.1.attn.relative_position_bias_table"
    expected = resample_relative_position_bias_table(dict(file.named_parameters())[name], 7)
    np.testing.assert_array_equal(dict(model.named_parameters())[name].numpy(), expected.numpy())
    assert_has_formula_weights(model, except_for=[n for n, _ in model.named_parameters() if n.endswith("table")])


def test_half_precision_is_resampled_in_float32():
    model, entries = small("vit", img_size=64), foreign.jax(small("vit"))
    models.load_weights(model, {name: x.astype(np.float16) for name, x in entries.items()}, resize=True)
    expected = Tensor(entries["Transformer/posembed_input/pos_embedding"].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(model.pos_embed.numpy(), resample_pos_embed(expected, (4, 4), (8, 8)).numpy())


def test_positions_that_cannot_be_resampled():
    model, entries = small("vit"), foreign.jax(small("vit", img_size=(48, 32)))
    assert "only from a square grid or window" in refusal(model, entries, resize=True)
    assert "resize=True" not in refusal(small("vit", embed_dim=48), foreign.jax(small("vit")), resize=True)


def test_message_names_the_model_that_fits():
    """Names and shapes identify the registered model."""
    entries = written(models.create_model("vit_nano_cifar"), foreign.hugging_face_vit)
    look = "The weights look like weights of create_model('{}') without further arguments."
    assert look.format("vit_nano_cifar") in refusal(models.create_model("vit_micro_cifar"), entries)
    entries = written(models.create_model("vit_tiny_patch16_224"), foreign.ours)  # DeiT has the same shapes
    assert look.format("vit_tiny_patch16_224") in refusal(small("swin"), entries)
    entries = written(models.create_model("swin_nano_cifar"), foreign.torchvision_swin)
    assert look.format("swin_nano_cifar") in refusal(small("convnext"), entries)
    entries = foreign.torchvision_swinv2_file(models.create_model("swinv2_nano_cifar"))
    assert look.format("swinv2_nano_cifar") in refusal(small("swinv2"), entries)
    entries = foreign.jax(models.create_model("vit_nano_cifar", num_classes=3))
    assert look.format("vit_nano_cifar") in refusal(small("swin"), entries)


def test_message_names_no_model_if_none_fits():
    """The first file matches 3/4 of a registered model; the second matches no model better than the given model."""
    of_three_blocks = written(models.create_model("vit_nano_cifar", depth=3), foreign.ours)
    incomplete = written(models.create_model("vit_nano_cifar"), foreign.ours)
    del incomplete["norm.bias"]
    for name, entries in [("vit_micro_cifar", of_three_blocks), ("vit_nano_cifar", incomplete)]:
        text = refusal(models.create_model(name), entries)
        assert "Was the model created with the same arguments" in text and "look like" not in text


def test_unknown_names_list_the_known_layouts():
    text = refusal(small("vit"), {"encoder.embed.w": np.zeros(3), "epoch": 4})
    assert "none of the 2 names (encoder.embed.w, epoch) is known" in text
    assert all(name in text for name in ("minigrad", "timm", "torchvision", "Hugging Face", "Google"))
    assert "no weights to load" in refusal(small("vit"), {})


def test_quantized_weights_are_refused():
    model, entries = file_of("Facebook")
    entries["norm.weight"] = np.ones(16, np.int8)
    text = refusal(model, entries)
    assert "int8  norm.weight" in text and "quantized" in text


def test_second_entry_for_a_parameter_is_unexpected():
    model, entries = file_of("timm's Swin")
    assert "unexpected  head.weight" in refusal(model, entries | {"head.weight": entries["head.fc.weight"]})
