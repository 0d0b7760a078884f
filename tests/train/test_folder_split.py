"""One folder of classes: --val-split, and which images --eval evaluates."""

import sys
import unicodedata
from contextlib import chdir
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.test_folder import PLAIN, album, paint
from train.__main__ import main, parse
from train.config.errors import InputError
from train.data import folder

HALF = replace(PLAIN, val_split=0.5)


def names(root, classes):
    """The files of `_split`'s arguments, for these numbers of images."""
    return {name: [root / name / f"{i:03}.png" for i in range(n)] for name, n in classes.items()}


@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=4),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 9),
)
def test_split_is_stratified_and_complete(tmp_path_factory, counts, share, seed):
    root = tmp_path_factory.getbasetemp()
    classes = names(root, {f"class {i}": n for i, n in enumerate(counts)})
    train, test = folder._split(root, classes, replace(PLAIN, val_split=share, seed=seed))
    for name, files in classes.items():
        assert sorted(train[name] + test[name]) == files
        assert train[name] == sorted(train[name]) and test[name] == sorted(test[name])
        assert len(test[name]) == min(max(1, round(share * len(files))), len(files) - 1)


def test_split_depends_on_seed_and_names_alone(tmp_path):
    classes = names(tmp_path, {"a": 40, "b": 40})
    _, test = folder._split(tmp_path, classes, HALF)
    reverse = {name: files[::-1] for name, files in classes.items()}
    _, again = folder._split(tmp_path, reverse, HALF)
    assert {name: set(files) for name, files in again.items()} == {name: set(files) for name, files in test.items()}
    elsewhere = tmp_path / "elsewhere"
    _, moved = folder._split(elsewhere, names(elsewhere, {"a": 40, "b": 40}), HALF)
    assert [f.relative_to(elsewhere) for f in moved["a"]] == [f.relative_to(tmp_path) for f in test["a"]]
    _, other = folder._split(tmp_path, classes, replace(HALF, seed=1))
    assert 0 < len(set(test["a"]) & set(other["a"])) < 20
    assert {f.name for f in test["a"]} != {f.name for f in test["b"]}  # no class repeats the choice of another


def test_unicode_forms_give_the_same_split(tmp_path):
    """The file systems of two machines may store the name of a file in two forms."""
    composed = {"a": [tmp_path / "a" / f"é{i}.png" for i in range(20)]}
    decomposed = {"a": [f.with_name(unicodedata.normalize("NFD", f.name)) for f in composed["a"]]}
    (_, one), (_, two) = (folder._split(tmp_path, files, HALF) for files in (composed, decomposed))
    assert [unicodedata.normalize("NFC", f.name) for f in two["a"]] == [f.name for f in one["a"]]


def test_two_forms_of_one_name_are_two_images(tmp_path):
    for name in ("a/\u00e9.png", "a/e\u0301.png", "b/1.png", "b/2.png"):
        paint(tmp_path / name, len(name))
    data = folder.load(tmp_path, HALF)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1]
    assert (data.train.images[0] != data.test.images[0]).any()


def test_split_of_a_folder_of_classes(tmp_path, capsys):
    """Hidden files, subfolders and images beside the classes are treated as in divided folders."""
    there = {f"{c}/{i}": paint(tmp_path / c / f"{i}.png", i) for c, n in (("a", 4), ("b", 2)) for i in range(n)}
    there["a/below"] = paint(tmp_path / "a" / "below" / "9.png", 9)
    there["a/below2"] = paint(tmp_path / "a" / "below" / "8.png", 8)
    paint(tmp_path / "beside.png", 0)
    for name in ("a/._0.png", ".hidden/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    data = folder.load(tmp_path, HALF)
    assert data.train.labels.tolist() == [0, 1, 0, 0] and data.test.labels.tolist() == [0, 1, 0, 0]
    found = np.concatenate([data.train.images, data.test.images])
    assert {image.tobytes() for image in found} == {image.tobytes() for image in there.values()}
    assert capsys.readouterr().err == f"{tmp_path}: 1 image beside the folders of the classes, ignored\n"


def nested(root):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        paint(root / "unpacked" / name, 0)


def divided(root):
    album(root, ({"a": 1, "b": 1}, {"a": 1, "b": 1}))


def one_image(root):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        paint(root / name, 0)


def only_train(root):
    for name in ("a/1.png", "b/1.png"):
        paint(root / "train" / name, 0)


@pytest.mark.parametrize(
    ("make", "share", "message"),
    [
        (divided, 0.5, "but .* is divided already, into train and val: omit --val-split$"),
        (nested, 0.5, r"has 1 folder with images; .*; did you mean the folders in .*unpacked\?$"),
        (nested, 0.0, r"or CLASS/\*\.jpg, with --val-split 0\.2 to .*; did you mean the folders in .*unpacked\?$"),
        (one_image, 0.5, "needs two images in each class, to train and to test on; b has one$"),
        (one_image, 0.0, r"no folder train: .*; or CLASS/\*\.jpg, with --val-split 0\.2 to test on .* images$"),
        (only_train, 0.0, r"no folder val or test .*--data-dir .*train --val-split 0\.2 tests on a fifth"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_divided_are_explained(make, share, message, tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        folder.load(tmp_path, replace(PLAIN, val_split=share))


# Evaluation -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model trained on two thirds of the images in `photos`, of the classes a, b and c."""
    root = tmp_path_factory.mktemp("trained")
    for name in "abc":
        for i in range(6):
            paint(root / "photos" / name / f"{i}.png", ord(name) + 10 * i)
    flags = ["--dataset", "folder", "--data-dir", "photos", "--val-split", str(1 / 3), "--seed", "3", "--epochs", "1"]
    with chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert main([*flags, "--output", "out", "--img-size", "16", "--no-cache"]) == 0
    return root


@pytest.fixture
def here(trained, monkeypatch, no_pictures):
    monkeypatch.chdir(trained)
    return trained


def evaluate(capsys, *flags):
    code = main(["--eval", "out/best.npz", "--no-cache", *map(str, flags)])
    out, err = capsys.readouterr()
    assert code == (2 if err else 0)
    return err or out


def test_split_is_recorded_and_evaluated(here, capsys):
    """--eval evaluates the test images of the training: the accuracy is that of the table of epochs."""
    assert "val_split = 0.3333333333333333\n" in (here / "out" / "args.toml").read_text()
    text = evaluate(capsys)
    assert "data     photos: 6 test images, 3 classes\n" in text
    accuracy = float((here / "out" / "metrics.csv").read_text().splitlines()[1].split(",")[5])
    assert f"acc {accuracy:.2%}" in text


def test_eval_on_another_folder_asks_which_images(here, capsys):
    for i in range(4):
        paint(here / "other" / "c" / f"{i}.png", i)
    said = evaluate(capsys, "--data-dir", "other")
    assert "another folder than in training, which had --val-split 0.333333: add --val-split 0 to evaluate on" in said
    text = evaluate(capsys, "--data-dir", "other", "--val-split", 0)
    assert "data     other: 4 test images, 1 class\n" in text


def test_eval_maps_classes_by_name(here, capsys):
    """In a folder with the class c alone, the label of its images is 2, as in training."""
    for i in range(6):
        paint(here / "subset" / "val" / "c" / f"{i}.png", ord("c") + 10 * i)
    paint(here / "subset" / "val" / "b" / "0.png", ord("b"))
    text = evaluate(capsys, "--data-dir", "subset")  # divided already: no question
    lines = {line.split()[0]: line.split()[1] for line in text.splitlines()[5:]}
    assert lines == {"a": "0", "b": "1", "c": "6"}
    whole = evaluate(capsys, "--val-split", 0)
    recall = [line.split()[2:4] for line in (text + whole).splitlines() if line.startswith("c ")]
    assert recall[0] == recall[1]


def test_eval_names_classes_that_the_model_lacks(here, capsys):
    for name in "ad":
        paint(here / "unknown" / "val" / name / "0.png", 0)
    said = evaluate(capsys, "--data-dir", "unknown")
    assert said.endswith("the model in out/best.npz has no class d, of unknown; its classes are a, b, c\n")


def test_resume_uses_the_same_split(here, tmp_path):
    flags = ["--dataset", "folder", "--data-dir", str(here / "photos"), "--val-split", "0.5", "--output", str(tmp_path)]
    assert main([*flags, "--epochs", "1", "--img-size", "16", "--no-cache"]) == 0
    settings = parse(["--resume", str(tmp_path)])
    assert settings.val_split == 0.5 and settings.seed == 0
    with pytest.raises(InputError, match=r"is of a run with --val-split 0\.5, not 0\.2: omit the flag"):
        parse(["--resume", str(tmp_path), "--val-split", "0.2"])


def test_results_inside_the_folder_are_refused(here, monkeypatch, capsys):
    """In a second run, the folder of the results would be a class."""
    flags = ["--dataset", "folder", "--val-split", "0.5", "--epochs", "1"]
    assert main([*flags, "--data-dir", "photos", "--output", "photos/out"]) == 2
    assert "photos would contain photos/out, the results, beside the classes" in capsys.readouterr().err
    monkeypatch.chdir(here / "photos")
    assert main([*flags, "--data-dir", ".", "--output", "../out2"]) == 2
    assert "--data-dir . would contain runs, the results" in capsys.readouterr().err
