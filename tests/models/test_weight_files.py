"""Files of weights: formats and dtypes, and damaged, malicious or mislabelled files."""

import json
import pickle
import re
import sys

import numpy as np
import pytest

import models
from minigrad import serialize
from models.compare import formula
from tests.models import foreign
from tests.models.foreign import assert_has_formula_weights, file_of, refusal, written
from tests.models.small import small


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_file_formats_and_dtypes_load(tmp_path, suffix, dtype):
    model, entries = file_of("HF 5 ViT")
    serialize.save(tmp_path / f"w{suffix}", {name: x.astype(dtype) for name, x in entries.items()})
    models.load_weights(model, tmp_path / f"w{suffix}")
    for name, parameter in model.named_parameters():
        expected = formula.weight(name, *parameter.shape).astype(dtype)
        np.testing.assert_array_equal(parameter.numpy(), expected, err_msg=name)


@pytest.mark.parametrize("suffix", [".NPZ", ".SafeTensors"])
def test_suffixes_ignore_case(tmp_path, suffix):
    model, entries = file_of("HF 5 ViT")
    serialize.save(tmp_path / f"w{suffix}", entries, {"epoch": 3})
    models.load_weights(model, tmp_path / f"w{suffix}")
    assert_has_formula_weights(model)
    assert serialize.load_metadata(tmp_path / f"w{suffix}") == {"epoch": 3}


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper 16 bits of each float32, as NumPy's raw-bytes dtype V2."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view("V2")


def write_safetensors(path, arrays, dtype: str) -> None:
    """Write the format by hand: length of the header, header, data."""
    header, end = {}, 0
    for name, x in arrays.items():
        header[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": [end, end := end + x.nbytes]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(x.tobytes() for x in arrays.values()))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_bfloat16_files_load(tmp_path, suffix):
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


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_model_keeps_its_dtype_and_device(device, stored):
    model = small("swin").to(device)
    entries = written(small("swin"), foreign.timm_swin)
    models.load_weights(model, {name: x.astype(stored) for name, x in entries.items()})
    assert {(p.dtype, p.device.split(":")[0]) for p in model.parameters()} == {(np.dtype(np.float32), device)}
    expected = formula.weight("norm.weight", *model.norm.weight.shape)
    np.testing.assert_array_equal(model.norm.weight.numpy(), expected.astype(stored).astype(np.float32))


def test_own_checkpoint_loads(tmp_path):
    state_dict = formula.fill(small("convnext")).state_dict()
    serialize.save(tmp_path / "best.npz", state_dict, {"epoch": 7, "settings": {"model": "convnext"}})
    model = small("convnext").to(dtype=np.float64)
    models.load_weights(model, tmp_path / "best.npz")
    assert_has_formula_weights(model)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, suffix, fraction):
    model, entries = file_of("Facebook")
    path = tmp_path / f"w{suffix}"
    serialize.save(path, entries)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    assert re.search(r"is (no|not a) complete (npz|safetensors) file", refusal(model, path))


class RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_object_arrays_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", **{"head.weight": np.array([RunsCode()], dtype=object)}, allow_pickle=True)
    assert "Object arrays cannot be loaded" in refusal(small("vit"), tmp_path / "w.npz")


def test_pickle_with_another_suffix_is_refused(tmp_path):
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(pickle.dumps(RunsCode()) * 100)
        assert re.search("is (no|not a) complete", refusal(small("vit"), path))


def test_unsupported_dtypes_are_refused(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {"head.weight": np.zeros((7, 24), np.uint8)}, "F8_E4M3")
    assert "head.weight has dtype F8_E4M3" in refusal(small("vit"), tmp_path / "w.safetensors")


def test_unknown_suffixes_and_absent_files_are_refused(tmp_path):
    (tmp_path / "w.h5").touch()
    assert "must end in .safetensors, .npz, .pth, .pt, .bin, .ckpt or .pth.tar, got 'w.h5'" in refusal(
        small("vit"), tmp_path / "w.h5"
    )
    with pytest.raises(FileNotFoundError, match=r"no file .*absent.npz"):
        models.load_weights(small("vit"), tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("file", "library", "fix"),
    [
        ("w.pth", "torch", "pip install torch; or convert the file"),
        ("w.safetensors", "safetensors", "pip install safetensors"),
    ],
)
def test_missing_library_is_named(tmp_path, monkeypatch, file, library, fix):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / file).touch()
    with pytest.raises(RuntimeError, match=re.escape(fix)):
        models.load_weights(small("vit"), tmp_path / file)


def test_only_image_models_load_weights():
    backbone = models.create_model("swin_pico_cifar", features_only=True)
    with pytest.raises(TypeError, match=r"needs an ImageModel, got FeatureNet; pass its \.model"):
        models.load_weights(backbone, models.create_model("swin_pico_cifar").state_dict(), head=False)
    with pytest.raises(TypeError, match=r"needs an ImageModel, got Linear$"):
        models.load_weights(small("vit").head, {})


def test_anything_but_a_dict_of_arrays_is_refused():
    with pytest.raises(TypeError, match=r"got Linear; pass its state_dict\(\)"):
        models.load_weights(small("vit"), small("vit").head)
    with pytest.raises(TypeError, match=r"must be a dict of arrays by name, .* got list"):
        models.load_weights(small("vit"), [np.zeros(3)])
    assert "'net' is not a name with a numeric array, got dict" in refusal(small("vit"), {"epoch": 3, "net": {}})
    assert "3 is not a name with a numeric array" in refusal(small("vit"), {3: np.zeros(3)})
    assert "'x' cannot be converted to a NumPy array" in refusal(small("vit"), {"x": [[1], [2, 3]]})
