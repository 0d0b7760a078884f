"""Weights in the layouts of others: what is loaded, what is refused, and what the refusal says."""

import json
import pickle
import re
import sys

import numpy as np
import pytest

import models
from minigrad import Tensor, serialize
from models.compare import formula
from models.layouts import places, to_canonical
from models.swin import resample_relative_position_bias_table
from models.vit import resample_pos_embed
from tests.models import foreign
from tests.models.foreign import written
from tests.models.small import small

# In three stages of Swin, the second has a merging at both of its ends: whose it is depends on the layout.
_SWIN = {"depths": (2, 1, 1), "num_heads": (2, 2, 4)}
_NAMES_OF_4 = ("query", "key", "value")
FILES = {
    "minigrad": ("vit", {"representation_size": 20}, lambda m: written(m, foreign.ours)),
    "timm's hybrid": ("hybrid", {}, lambda m: written(m, foreign.ours)),
    "timm's stem": ("hybrid", {"layers": (), "channels": ()}, lambda m: written(m, foreign.timm_stem)),
    "Microsoft": ("swin", _SWIN, lambda m: written(m, foreign.ours)),
    "Facebook": ("convnext", {}, lambda m: written(m, foreign.ours)),
    "timm's Swin": ("swin", _SWIN, lambda m: written(m, foreign.timm_swin)),
    "timm's ConvNeXt": ("convnext", {}, lambda m: written(m, foreign.timm_convnext)),
    "torchvision's ViT": ("vit", {"representation_size": 20}, lambda m: written(m, foreign.torchvision_vit)),
    "torchvision's old ViT": ("vit", {}, lambda m: written(m, foreign.torchvision_old_vit)),
    "torchvision's Swin": ("swin", _SWIN, lambda m: written(m, foreign.torchvision_swin)),
    "torchvision's ConvNeXt": ("convnext", {}, lambda m: written(m, foreign.torchvision_convnext)),
    "HF 5 ViT": ("vit", {}, lambda m: written(m, foreign.hugging_face_vit)),
    "HF 4 ViT": ("vit", {}, lambda m: written(m, foreign.hugging_face_4_vit, _NAMES_OF_4)),
    "HF 5 ViTModel": (
        "vit", {"num_classes": 0, "representation_size": 24}, lambda m: written(m, foreign.hugging_face_vit_model)
    ),
    "HF 5 Swin": ("swin", _SWIN, lambda m: written(m, foreign.hugging_face_swin)),
    "HF 4 Swin": ("swin", _SWIN, lambda m: written(m, foreign.hugging_face_4_swin, _NAMES_OF_4)),
    "HF ConvNeXt": ("convnext", {}, lambda m: written(m, foreign.hugging_face_convnext)),
    "JAX ViT": ("vit", {"representation_size": 20}, foreign.jax),
    "JAX hybrid": ("hybrid", {"layers": (2, 1)}, foreign.jax),
}  # fmt: skip


def file_of(layout: str) -> tuple[models.ImageModel, dict[str, np.ndarray]]:
    """A model with its first weights, in float64, and the arrays of a file for it."""
    family, overrides, write = FILES[layout]
    return small(family, **overrides).to(dtype=np.float64), write(small(family, **overrides))


def assert_has_formula_weights(model, except_for=()):
    for name, parameter in model.named_parameters():
        if name not in except_for:
            np.testing.assert_array_equal(parameter.numpy(), formula.weight(name, *parameter.shape), err_msg=name)


def values(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def refusal(model, weights, **choices) -> str:
    """What the error says. The model is as it was."""
    before = values(model)
    with pytest.raises(ValueError) as error:
        models.load_weights(model, weights, **choices)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    return str(error.value)


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


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_files(tmp_path, suffix, dtype):
    model, entries = file_of("HF 5 ViT")
    serialize.save(tmp_path / f"w{suffix}", {name: x.astype(dtype) for name, x in entries.items()})
    models.load_weights(model, tmp_path / f"w{suffix}")
    for name, parameter in model.named_parameters():
        expected = formula.weight(name, *parameter.shape).astype(dtype)
        np.testing.assert_array_equal(parameter.numpy(), expected, err_msg=name)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper halves of float32, with NumPy's name for bytes that it knows nothing about."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view("V2")


def write_safetensors(path, arrays, dtype: str) -> None:
    """The format by hand: the length of the header, the header, the numbers."""
    header, end = {}, 0
    for name, x in arrays.items():
        header[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": [end, end := end + x.nbytes]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(x.tobytes() for x in arrays.values()))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_bfloat16_files(tmp_path, suffix):
    model, entries = file_of("JAX ViT")
    halves, path = {name: bfloat16(x) for name, x in entries.items()}, tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path, **halves)
    else:
        write_safetensors(path, halves, "BF16")
    models.load_weights(model, str(path))
    for name, parameter in model.named_parameters():
        expected = formula.weight(name, *parameter.shape)
        assert (abs(parameter.numpy() - expected) <= abs(expected) * 2.0**-7).all(), name
        assert not (parameter.numpy().astype(np.float32).view(np.uint32) & 0xFFFF).any(), name


def test_the_model_keeps_its_dtype_and_device(device):
    model = small("swin").to(device)
    models.load_weights(model, written(small("swin"), foreign.timm_swin))
    assert {(p.dtype, p.device.split(":")[0]) for p in model.parameters()} == {(np.dtype(np.float32), device)}
    expected = formula.weight("norm.weight", *model.norm.weight.shape)
    np.testing.assert_array_equal(model.norm.weight.numpy(), expected.astype(np.float32))


def test_a_checkpoint_of_our_own(tmp_path):
    state_dict = formula.fill(small("convnext")).state_dict()
    serialize.save(tmp_path / "best.npz", state_dict, {"epoch": 7, "settings": {"model": "convnext"}})
    model = small("convnext").to(dtype=np.float64)
    models.load_weights(model, tmp_path / "best.npz")
    assert_has_formula_weights(model)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
def test_truncated_files(tmp_path, suffix, kept):
    model, entries = file_of("Facebook")
    path = tmp_path / f"w{suffix}"
    serialize.save(path, entries)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert re.search(r"is no complete (npz|safetensors) file", refusal(model, path))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_python_objects_in_an_npz_file_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", **{"head.weight": np.array([Bomb()], dtype=object)}, allow_pickle=True)
    assert "Object arrays cannot be loaded" in refusal(small("vit"), tmp_path / "w.npz")


def test_a_file_that_is_another_kind_than_it_says(tmp_path):
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(pickle.dumps(Bomb()) * 100)
        assert "is no complete" in refusal(small("vit"), path)


def test_types_that_are_no_numbers_here(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {"head.weight": np.zeros((7, 24), np.uint8)}, "F8_E4M3")
    assert "head.weight is stored as F8_E4M3" in refusal(small("vit"), tmp_path / "w.safetensors")


def test_files_of_other_names(tmp_path):
    (tmp_path / "w.h5").touch()
    assert "end in .safetensors, .npz, .pth, .pt or .bin, got 'w.h5'" in refusal(small("vit"), tmp_path / "w.h5")
    with pytest.raises(FileNotFoundError, match=r"no file .*absent.npz"):
        models.load_weights(small("vit"), tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("file", "library", "fix"),
    [("w.pth", "torch", "pip install torch; or convert it"), ("w.safetensors", "safetensors", "pip install 'minigrad")],
)
def test_without_the_library(tmp_path, monkeypatch, file, library, fix):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / file).touch()
    with pytest.raises(RuntimeError, match=re.escape(fix)):
        models.load_weights(small("vit"), tmp_path / file)


def test_what_is_no_dict_of_arrays():
    with pytest.raises(TypeError, match=r"got Linear; pass its state_dict\(\)"):
        models.load_weights(small("vit"), small("vit").head)
    with pytest.raises(TypeError, match="or such a dict, got list"):
        models.load_weights(small("vit"), [np.zeros(3)])
    assert "'net' is no array of numbers by name but dict" in refusal(small("vit"), {"epoch": 3, "net": {}})
    assert "3 is no array of numbers by name" in refusal(small("vit"), {3: np.zeros(3)})
    assert "'x' is no array that NumPy can hold" in refusal(small("vit"), {"x": [[1], [2, 3]]})


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
    look = "They look like those of create_model('{}')."
    assert look.format("vit_nano_cifar") in refusal(models.create_model("vit_micro_cifar"), entries)
    entries = written(models.create_model("swin_nano_cifar"), foreign.torchvision_swin)
    assert look.format("swin_nano_cifar") in refusal(small("convnext"), entries)
    entries = foreign.jax(models.create_model("vit_nano_cifar", num_classes=3))
    assert look.format("vit_nano_cifar") in refusal(small("swin"), entries)
    text = refusal(small("vit"), written(small("vit", depth=3), foreign.ours))
    assert "Was the model created with the same arguments" in text and "look like" not in text


def test_names_that_nobody_knows():
    text = refusal(small("vit"), {"encoder.embed.w": np.zeros(3), "epoch": 4})
    assert "none of these 2 names (encoder.embed.w, epoch) is known here" in text
    assert all(name in text for name in ("minigrad", "timm", "torchvision", "Hugging Face", "Google"))
    assert "none of these 0 names" in refusal(small("vit"), {})


def test_quantised_weights():
    model, entries = file_of("Facebook")
    entries["norm.weight"] = np.ones(16, np.int8)
    text = refusal(model, entries)
    assert "int8  norm.weight" in text and "quantised" in text


def test_two_entries_for_one_parameter():
    model, entries = file_of("timm's Swin")
    assert "unexpected  head.weight" in refusal(model, entries | {"head.weight": entries["head.fc.weight"]})
