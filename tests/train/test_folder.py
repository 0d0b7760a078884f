"""Image folders: which files are read, in which order, and what is refused."""

import sys
import warnings
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.command import train as run
from train.__main__ import parse
from train.config.errors import InputError
from train.create import create_dataset
from train.data import folder

Image = pytest.importorskip("PIL.Image")
PLAIN = folder.Options(img_size=32)


def paint(path, seed, size=(32, 32)):
    """Write an image file of noise; returns its pixels (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)


def album(root, counts, test="val"):
    """Write counts[split][class] images; returns their pixels by split and class."""

    def painted(place, n):
        return [paint(place / f"{i:03}.png", crc32(f"{place} {i}".encode())) for i in range(n)]

    splits = {"train": counts[0], test: counts[1]}
    return {s: {name: painted(root / s / name, n) for name, n in classes.items()} for s, classes in splits.items()}


@pytest.mark.parametrize("test", ["val", "test"])
@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=4), limit=st.none() | st.integers(1, 12))
def test_classes_alternate_and_limit_is_a_prefix(tmp_path_factory, test, counts, limit):
    """The classes alternate, so that a prefix has all classes. Pixels, labels and statistics are exact."""
    root, names = tmp_path_factory.mktemp("album"), [f"class {i}" for i in range(len(counts))]
    there = album(root, (dict(zip(names, counts, strict=True)), dict.fromkeys(names, 1)), test)
    (root / "train" / ".hidden").mkdir()
    (root / "train" / names[0] / "notes.txt").write_text("no image")
    data = folder.load(root, PLAIN, limit)
    expected = [
        (there["train"][name][i], label) for i in range(4) for label, name in enumerate(names) if i < counts[label]
    ][:limit]
    np.testing.assert_array_equal(data.train.images, [image for image, _ in expected])
    assert data.train.labels.tolist() == [label for _, label in expected] and data.train.labels.dtype == np.int64
    np.testing.assert_array_equal(data.test.images, [there[test][name][0] for name in names])
    assert data.classes == tuple(names) and data.name == root.name
    scaled = data.train.images / 255
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 2, 3)), rtol=1e-9)


def test_val_has_priority_over_test(tmp_path):
    there = album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}), "test")
    np.testing.assert_array_equal(folder.load(tmp_path, PLAIN).test.images[0], there["val"]["a"][0])


def test_statistics_over_several_chunks(monkeypatch):
    monkeypatch.setattr(folder, "_CHUNK", 3 * 60 + 1)  # three images
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 5), dtype=np.uint8)
    mean, std = folder._statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, (pixels / 255).std(axis=(0, 2, 3)))
    assert folder._statistics(np.full((2, 3, 4, 4), 7, np.uint8))[1] == (1 / 255,) * 3  # never 0, a divisor


def test_images_are_resized_to_img_size(tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            paint(tmp_path / split / name / "1.png", 0, (20, 50))
            paint(tmp_path / split / name / "2.jpg", 1, (70, 30))
    data = create_dataset(parse(["--dataset", "folder", "--data-dir", str(tmp_path), "--img-size", "24", "--no-cache"]))
    assert data.train.images.shape == (4, 3, 24, 24)


def damage(root):
    (root / "val" / "b" / "000.png").write_bytes(b"no image at all")


def empty(root):
    (root / "train" / "b" / "000.png").unlink()


def add(name):
    return lambda root: paint(root / name / "000.png", 0)


def remove(name):
    return lambda root: (root / name).rename(root / "elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("train"), r"--data-dir .*album has no folder train: it must have train/CLASS"),
        (remove("val"), r"--data-dir .*album has a folder train, but no folder val or test"),
        (add("train/c"), "the classes in .*train and val differ: c only in train"),
        (add("val/c"), "the classes in .*train and val differ: c only in val"),
        (empty, "there are no images in the folder .*train/b"),
        (damage, r"val/b/000\.png is not an image in a supported format"),
        (
            lambda root: [remove("train/b")(root), (root / "val/b").rename(root / "other")],
            "train has 1 folder with images; at least two classes are needed$",
        ),
    ],
)
def test_invalid_folders_are_refused(tmp_path, change, message):
    root = tmp_path / "album"
    album(root, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    change(root)
    with pytest.raises(InputError, match=message) as caught:
        folder.load(root, PLAIN)
    assert len(str(caught.value).splitlines()) == 1


def test_error_names_first_bad_images_and_counts_all(tmp_path):
    """The images of both splits are checked before the error is raised."""
    album(tmp_path, ({"a": 4, "b": 1}, {"a": 2, "b": 1}))
    for name in ("train/a/000", "train/a/001", "val/a/001"):
        (tmp_path / f"{name}.png").write_bytes(b"no image at all")
    (tmp_path / "train" / "b" / "gone.png").symlink_to("nowhere")
    first = r"train/a/000\.png is not .*a/001\.png.*b/gone\.png: No such file or directory"
    with pytest.raises(InputError, match=f"{first}; and 1 more file: repair or delete them, or add --skip-bad-images"):
        folder.load(tmp_path, PLAIN)


def test_skipped_images_are_left_out_and_listed(tmp_path):
    there = album(tmp_path, ({"a": 3, "b": 2}, {"a": 2, "b": 2}))
    for name in ("train/a/001", "val/b/000"):
        (tmp_path / f"{name}.png").write_bytes(b"no image at all")
    data = folder.load(tmp_path, replace(PLAIN, skip_bad_images=True))
    train, test = there["train"], there["val"]
    np.testing.assert_array_equal(data.train.images, [train["a"][0], train["b"][0], train["b"][1], train["a"][2]])
    np.testing.assert_array_equal(data.test.images, [test["a"][0], test["a"][1], test["b"][1]])
    assert data.train.labels.tolist() == [0, 1, 1, 0] and data.test.labels.tolist() == [0, 0, 1]
    assert [line.split(" is ")[0] for line in data.bad_images] == [
        str(tmp_path / "train/a/001.png"), str(tmp_path / "val/b/000.png")
    ]  # fmt: skip


def test_class_without_readable_images_is_refused(tmp_path):
    album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    (tmp_path / "train/b/000.png").write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"no training image of the class b can be read: .*b/000\.png is not"):
        folder.load(tmp_path, replace(PLAIN, skip_bad_images=True))


def test_warning_filters_are_unchanged_after_reading(tmp_path):
    """Filters are shared by all threads: a thread that changed them would leave them changed."""
    album(tmp_path, ({"a": 20, "b": 20}, {"a": 1, "b": 1}))
    before = list(warnings.filters)
    folder.load(tmp_path, PLAIN)
    assert warnings.filters == before


def test_hidden_files_and_folders_are_ignored(tmp_path, capsys):
    there = album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    for name in ("train/a/._000.png", "train/a/.DS_Store", "train/a/Thumbs.db", "train/a/.ipynb_checkpoints/000.png",
                 "train/.ipynb_checkpoints/1.png", "val/._b.png", "._train"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    data = folder.load(tmp_path, PLAIN)
    np.testing.assert_array_equal(data.train.images, [there["train"]["a"][0], there["train"]["b"][0]])
    assert data.classes == ("a", "b") and capsys.readouterr().err == ""


def test_images_in_subfolders_have_the_class_of_the_folder(tmp_path):
    """Symbolic links are followed as in torchvision's ImageFolder, but not in cycles."""
    album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    below = [paint(tmp_path / "train" / "a" / name, i) for i, name in enumerate(["x/1.png", "x/y/1.png", "z/0.png"])]
    paint(tmp_path / "elsewhere" / "2.png", 7)
    (tmp_path / "train" / "b" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "b" / "circle").symlink_to(tmp_path / "train" / "b")
    data = folder.load(tmp_path, PLAIN)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 0]
    np.testing.assert_array_equal(data.train.images[[2, 4, 5]], below)


def test_images_beside_the_classes_are_counted(tmp_path, capsys):
    album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    for name in ("1.png", "2.PNG", "notes.txt"):
        (tmp_path / "train" / name).write_bytes(b"no image")
    assert len(folder.load(tmp_path, PLAIN).train) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path / 'train'}: 2 images beside the folders of the classes, ignored"


def test_suffixes_of_other_files_are_named(tmp_path, capsys):
    album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    for name in ("a/1.HEIC", "b/2.heic", "b/._3.mov", "a/below/list"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"no image")
    assert len(folder.load(tmp_path, PLAIN).train) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path / 'train'}: files that are not images (.heic, list), ignored"


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    album(tmp_path, ({decomposed: 1, "cafz": 1}, {composed: 1, "cafz": 1}))
    paint(tmp_path / "train" / composed / "2.png", 5)
    data = folder.load(tmp_path, PLAIN)
    assert data.classes == ("cafz", composed)  # composed é sorts after z; decomposed e sorts before z
    assert data.train.labels.tolist() == [0, 1, 1] and data.test.labels.tolist() == [0, 1]


def test_missing_pillow_says_what_to_install(tmp_path, monkeypatch):
    album(tmp_path, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match="needs Pillow: pip install pillow"):
        folder.load(tmp_path, PLAIN)


def test_run_on_an_image_folder(tmp_path):
    album(tmp_path / "album", ({"a": 6, "b": 5, "c": 4}, {"a": 2, "b": 2, "c": 2}))
    flags = ["--dataset", "folder", "--data-dir", "album", "--epochs", 1, "--batch-size", 4, "--img-size", 16]
    result = run(*flags, "--output", "out", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "album: 15 training and 6 test images, 3 classes" in result.stdout
    assert (tmp_path / "out" / "best.npz").exists() and not (tmp_path / "out" / "bad_images.txt").exists()
    assert len(list((tmp_path / "runs" / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "folder", "--download"], "--download is for CIFAR"),
        (["--img-size", "64"], "--img-size is for --dataset folder: the images of shapes are 32 x 32"),
        (["--scale", "0.3", "1"], "--scale is for --dataset folder: the images of shapes are 32 x 32; try --crop-pad"),
        (["--val-split", "0.3"], "--val-split is for --dataset folder: shapes has no image files"),
        (["--skip-bad-images"], "--skip-bad-images is for --dataset folder: shapes has no image files"),
        (["--dataset", "folder", "--data-dir", "nowhere"], "--data-dir nowhere: there is no such folder"),
    ],
)
def test_conflicting_dataset_flags_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        create_dataset(parse(flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model", "convnext_atto", "--img-size", "16"],
            "at least 32 x 32 for the strides of this model, got (1, 3, 16, 16)",
        ),
        (["--model", "vit_tiny_patch16_224", "--img-size", "40"], "40 x 40"),
    ],
)
def test_image_size_that_the_model_refuses(flags, message, tmp_path):
    """The error comes before any file is written."""
    album(tmp_path / "album", ({"a": 1, "b": 1}, {"a": 1, "b": 1}))
    result = run("--dataset", "folder", "--data-dir", "album", "--no-cache", *flags, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"python -m train: --model {flags[1]}: ") and message in line
    assert [file.name for file in tmp_path.iterdir()] == ["album"]
