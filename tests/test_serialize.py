"""Saving and loading files of arrays; damaged and malicious files."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

from minigrad import Tensor, serialize

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.ones(3, np.float16), "step": np.array(7)}


@pytest.fixture(params=["npz", "safetensors"])
def path(request, tmp_path):
    if request.param == "safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"weights.{request.param}"


def test_arrays_and_metadata_are_restored(path):
    serialize.save(
        path, {**ARRAYS, "t": Tensor([1.0]), "transposed": ARRAYS["a.weight"].T}, {"epoch": 3, "name": "Ünï"}
    )
    arrays, metadata = serialize.load(path)
    assert metadata == {"epoch": 3, "name": "Ünï"} and set(arrays) == {*ARRAYS, "t", "transposed"}
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == value.dtype and arrays[name].shape == value.shape
    np.testing.assert_array_equal(arrays["transposed"], ARRAYS["a.weight"].T)


def test_truncated_files_are_refused(path):
    serialize.save(path, ARRAYS)
    content = path.read_bytes()
    for size in {0, 1, 7, 8, 20, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="not a complete"):
            serialize.load(path)


def test_corrupted_files_load_or_raise_value_error(path):
    serialize.save(path, ARRAYS)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            arrays, _ = serialize.load(path)
        except ValueError:
            continue
        assert all(isinstance(x, np.ndarray) for x in arrays.values())


def test_pickles_are_refused_and_not_executed(tmp_path):
    trace = tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    path = tmp_path / "weights.npz"
    np.savez(path, allow_pickle=True, a=np.array([Malicious()], object))
    with pytest.raises(ValueError, match="not a complete npz"):
        serialize.load(path)
    path.write_bytes(pickle.dumps(Malicious()))
    for read in (serialize.load, serialize.load_metadata):
        with pytest.raises(ValueError, match="not a zip archive"):  # NumPy's error recommends to load it unsafely
            read(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", pickle.dumps(Malicious()))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="not a complete npz"):
        serialize.load(path)
    assert not trace.exists()


def test_python_objects_are_not_saved(tmp_path):
    with pytest.raises(TypeError, match="only pickle"):
        serialize.save(tmp_path / "x.npz", {"a": np.array([{}], object)})
    assert not list(tmp_path.iterdir())


def test_failed_save_keeps_the_previous_file(path, monkeypatch):
    serialize.save(path, ARRAYS, {"epoch": 1})

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        serialize.save(path, ARRAYS, {"epoch": 2})
    assert serialize.load(path)[1] == {"epoch": 1}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_formats_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"end in \.npz or \.safetensors"):
        serialize.save(tmp_path / "x.pth", ARRAYS)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        serialize.load(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError, match="there is no file"):  # not the error about its name
        serialize.load_metadata(tmp_path / "run")


def test_bfloat16_is_restored(path):
    values = Tensor([[1.0, -2.5], [3e38, 0.125]]).bfloat16()
    serialize.save(path, {"x": values, "half": values.half(), "scalar": values[0, 1]})
    arrays, _ = serialize.load(path)
    assert [arrays[name].dtype.name for name in ("x", "half", "scalar")] == ["bfloat16", "float16", "bfloat16"]
    np.testing.assert_array_equal(arrays["x"], values.data)
    assert arrays["scalar"].item() == -2.5 and Tensor(arrays["x"]).float().tolist() == values.float().tolist()


def test_v2_arrays_in_npz_load_as_bfloat16(tmp_path, monkeypatch):
    pairs = np.zeros(2, [("a", "u1"), ("b", "u1")])
    np.savez(tmp_path / "x.npz", x=np.array([0x3F80, 0xC020], np.uint16).view("V2"), pairs=pairs)
    arrays, _ = serialize.load(tmp_path / "x.npz")
    assert Tensor(arrays["x"]).float().tolist() == [1, -2.5] and arrays["pairs"].dtype == pairs.dtype
    with np.load(tmp_path / "x.npz") as file, pytest.raises(TypeError, match=r"V2; for bfloat16 .* x\.view"):
        Tensor(file["x"])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert serialize.load(tmp_path / "x.npz")[0]["x"].dtype == np.dtype("V2")
