"""CIFAR from a folder or an archive; damaged and hostile files are refused."""

import gzip
import io
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest

from tests.train.hostile import batch, hostile, py2_array, py2_dict, py2_labels, py2_list, py2_string, write_cifar10
from train.config.errors import InputError
from train.data import cifar
from train.data.unpickle import load_plain

CIFAR10, CIFAR100 = cifar.SOURCES["cifar10"], cifar.SOURCES["cifar100"]


@pytest.fixture
def data_dir(tmp_path):
    """A folder that contains a tiny CIFAR-10."""
    write_cifar10(tmp_path / CIFAR10.folder)
    return tmp_path


def pack(folder, archive, rename=str):
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, rename(f"{folder.name}/{file.name}"))


def test_load_cifar10_from_a_folder(tmp_path):
    images, labels = write_cifar10(tmp_path / CIFAR10.folder)
    for place in (tmp_path, tmp_path / CIFAR10.folder):
        dataset = cifar.load(CIFAR10, place)
        np.testing.assert_array_equal(dataset.train.images, images.reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(dataset.train.labels, labels)
        assert dataset.train.images.dtype == np.uint8 and dataset.train.labels.dtype == np.int64
        assert len(dataset.test) == 20
        assert dataset.classes[0] == "airplane" and len(dataset.classes) == 10


def test_archive_equals_folder(data_dir, tmp_path):
    archive = tmp_path / "elsewhere" / CIFAR10.archive
    archive.parent.mkdir()
    pack(data_dir / CIFAR10.folder, archive)
    expected = cifar.load(CIFAR10, data_dir)
    for place in (archive, archive.parent):
        dataset = cifar.load(CIFAR10, place)
        np.testing.assert_array_equal(dataset.train.images, expected.train.images)
        np.testing.assert_array_equal(dataset.test.labels, expected.test.labels)
    assert list(archive.parent.iterdir()) == [archive]  # nothing was unpacked


def test_load_cifar100(tmp_path):
    folder = tmp_path / CIFAR100.folder
    folder.mkdir()
    images = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    for name in ("train", "test"):
        (folder / name).write_bytes(batch(images, [99, 0], "fine_labels"))
    names = [py2_string(f"class {i}".encode()) for i in range(100)]
    (folder / "meta").write_bytes(py2_dict(fine_label_names=py2_list(names)))
    dataset = cifar.load(CIFAR100, tmp_path)
    np.testing.assert_array_equal(dataset.test.images.reshape(2, 3072), images)
    assert dataset.test.labels.tolist() == [99, 0] and dataset.classes[99] == "class 99"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_python_3_pickles_load(protocol, order):
    images = np.arange(6, dtype=np.uint8).reshape(2, 3).copy(order)
    plain = {"labels": [1, 2], "name": "a", b"raw": [b"\xe9", b""], "more": (1, 2.5, None, True)}
    arrays = {"data": images, "strided": images[:, ::2], "one": np.arange(3), "big": np.arange(3, dtype=">i4")}
    content = pickle.dumps({**plain, **arrays, "numbers": [np.int64(-3), np.uint8(4)]}, protocol)
    for name in (b"numpy._core.", b"numpy.core."):  # in NumPy 2 and 1; protocols 4 and 5 store the length
        if protocol < 4 or name in content:
            loaded = load_plain(content.replace(b"numpy._core.", name).replace(b"numpy.core.", name))
            for key, array in arrays.items():
                np.testing.assert_array_equal(loaded.pop(key).array, array, strict=True)
            assert loaded == {**plain, "numbers": [-3, 4]}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("encoding", ["bytes", "latin1"])
@pytest.mark.parametrize("labels", [list, np.array, lambda labels: list(np.array(labels, np.uint8)), tuple])
def test_cifar_pickled_again(protocol, encoding, labels, data_dir):
    """Keys are bytes or strings; labels are a list, array or tuple; image names are bytes."""
    expected = cifar.load(CIFAR10, data_dir)
    for file in (data_dir / CIFAR10.folder).iterdir():
        content = pickle.loads(file.read_bytes(), encoding=encoding)
        key = b"labels" if encoding == "bytes" else "labels"
        if key in content:
            content[key] = labels(content[key])
            content["filenames"] = [f"{i}.png".encode() for i in range(200)]
        file.write_bytes(pickle.dumps(content, protocol))
    again = cifar.load(CIFAR10, data_dir)
    np.testing.assert_array_equal(again.train.images, expected.train.images)
    np.testing.assert_array_equal(again.train.labels, expected.train.labels)
    assert again.classes == expected.classes


@pytest.mark.parametrize("name", hostile(None))
def test_hostile_file_is_refused(name, data_dir, tmp_path):
    proof = tmp_path / "proof"
    content = hostile(proof)[name]
    (data_dir / CIFAR10.folder / "data_batch_3").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match="data_batch_3") as caught:
        cifar.load(CIFAR10, data_dir)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not proof.exists()
    assert peak < 300e6
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_hostile_pickles_act_without_protection(tmp_path):
    """`pickle.loads` runs the code in hostile files."""
    for name in (
        "exec",
        "exec in protocol 0",
        "exec in protocol 4",
        "exec by hand",
        "exec by INST",
        "exec by OBJ",
        "os.system",
    ):
        proof = tmp_path / name
        pickle.loads(hostile(proof)[name])
        assert proof.exists(), name


def test_hostile_files_change_no_state(tmp_path):
    """After all hostile files are refused, a valid file still loads."""
    for name, content in hostile(tmp_path / "proof").items():
        if name != "nested lists":  # plain data, but not CIFAR's
            with pytest.raises(pickle.UnpicklingError):
                load_plain(content)
    images, _ = write_cifar10(tmp_path / CIFAR10.folder)
    np.testing.assert_array_equal(cifar.load(CIFAR10, tmp_path).train.images.reshape(-1, 3072), images)


def test_every_truncation_is_refused():
    content = batch(np.zeros((1, 3072), np.uint8), [3])
    for length in [*range(150), *range(150, len(content), 97), len(content) - 1]:
        with pytest.raises(pickle.UnpicklingError):
            load_plain(content[:length])


def test_damaged_bytes_only_raise_input_error():
    rng = np.random.default_rng(1)
    content = batch(np.zeros((1, 3072), np.uint8), [3])
    head = content.index(b"\x00" * 100)
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(head)] = rng.integers(256)
        try:
            cifar._batch(bytes(damaged), "file", CIFAR10)
        except InputError as error:
            assert "file" in str(error)


ONE = np.zeros((1, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "refused"),
        (b"hello", "refused"),
        (b"\x80\x02]q\x01.", "must hold a dict, not a list"),
        (py2_dict(labels=py2_labels([1])), r"`data` must be an array \(images, 3072\)"),
        (py2_dict(labels=py2_labels([1]), data=py2_string(b"x")), "`data` must be"),
        (py2_dict(labels=py2_labels([1]), data=py2_array(ONE[:, :3071])), "`data` must be"),
        (pickle.dumps({"labels": [1], "data": ONE.astype(np.int8)}), "`data` must be"),
        (pickle.dumps({"labels": [1], "data": ONE.reshape(1, 3, 32, 32)}), "`data` must be"),
        (pickle.dumps({"labels": np.array([[1]]), "data": ONE}), "`labels` must be a list of integers"),
        (pickle.dumps({"labels": [1], "data": ONE / 1}), "refused: an array of another type than integers"),
        (pickle.dumps({"labels": [1], "data": ONE, "names": np.array(["a"])}), "another type than integers"),
        (
            pickle.dumps({"labels": [1], "data": ONE, "names": np.array(["a"], object)}),
            "refused: .* is not allowed in|other",
        ),
        (py2_dict(labels=py2_list([]), data=py2_array(ONE[:0])), "`data` must be"),
        (py2_dict(data=py2_array(ONE).split(b"(K")[0]), "`data` must be"),  # an array without contents
        (py2_dict(data=py2_array(ONE)), "`labels` must be a list of integers"),
        (py2_dict(labels=py2_list([b"N"]), data=py2_array(ONE)), "`labels` must be a list of integers"),
        (batch(ONE, [1, 2]), "1 image and 2 labels"),
        (batch(ONE, [10]), "labels must be from 0 to 9, got 10 to 10"),
        (py2_dict(labels=py2_list([b"J\xff\xff\xff\xff"]), data=py2_array(ONE)), "got -1 to -1"),
    ],
)
def test_wrong_contents_are_refused(data_dir, content, message):
    (data_dir / CIFAR10.folder / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match=f"test_batch.*{message}"):
        cifar.load(CIFAR10, data_dir)


@pytest.mark.parametrize("names", [py2_list([]), py2_list([b"K\x01"] * 10), py2_labels([1]), b"N"])
def test_wrong_class_names_are_refused(data_dir, names):
    (data_dir / CIFAR10.folder / "batches.meta").write_bytes(py2_dict(label_names=names))
    with pytest.raises(InputError, match=r"batches.meta: `label_names` must be a list of 10 names"):
        cifar.load(CIFAR10, data_dir)


def test_missing_data_error_says_what_to_do(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"there is no cifar10 in .*--download.*--data-dir.*cifar-10-batches-py"):
            cifar.load(CIFAR10, place)


def test_missing_file_is_refused(data_dir):
    (data_dir / CIFAR10.folder / "data_batch_2").unlink()
    with pytest.raises(InputError, match="incomplete: data_batch_2 missing"):
        cifar.load(CIFAR10, data_dir)
    pack(data_dir / CIFAR10.folder, data_dir / "some.tar.gz")
    with pytest.raises(InputError, match="incomplete: data_batch_2 missing"):
        cifar.load(CIFAR10, data_dir / "some.tar.gz")


def test_archive_links_and_outside_paths_are_ignored(data_dir, tmp_path):
    """Links are not followed, and paths outside the folder are not written."""
    secret = tmp_path / "secret"
    secret.write_bytes(batch(ONE, [1]))
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in (data_dir / CIFAR10.folder).iterdir():
            if file.name != "test_batch":
                tar.add(file, f"{CIFAR10.folder}/{file.name}")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"{CIFAR10.folder}/test_batch")
            link.type, link.linkname = kind, str(secret)
            tar.addfile(link)
        for name in ("../escaped", f"{tmp_path}/escaped", f"{CIFAR10.folder}/../../escaped"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(InputError, match="incomplete: test_batch missing"):
        cifar.load(CIFAR10, archive)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.99])
def test_truncated_archive_is_refused(data_dir, tmp_path, share):
    whole = tmp_path / "whole.tar.gz"
    pack(data_dir / CIFAR10.folder, whole)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(InputError, match=r"cut\.tar\.gz is (damaged|incomplete)"):
        cifar.load(CIFAR10, cut)


def test_damaged_archive_is_refused(data_dir, tmp_path):
    whole = tmp_path / "whole.tar.gz"
    pack(data_dir / CIFAR10.folder, whole)
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 0xFF
    whole.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        cifar.load(CIFAR10, whole)
    whole.write_bytes(gzip.compress(b"no tar at all" * 100))
    with pytest.raises(InputError, match=r"damaged or not a tar\.gz"):
        cifar.load(CIFAR10, whole)


def test_oversized_file_is_refused(data_dir, monkeypatch):
    monkeypatch.setattr(cifar, "_LARGEST", 1000)
    with pytest.raises(InputError, match="larger than"):
        cifar.load(CIFAR10, data_dir)
    pack(data_dir / CIFAR10.folder, data_dir / "some.tar.gz")
    with pytest.raises(InputError, match="larger than"):
        cifar.load(CIFAR10, data_dir / "some.tar.gz")
