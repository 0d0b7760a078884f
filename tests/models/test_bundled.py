"""The weights and images in models/bundled/: what they are, and what the programs show with them."""

import csv
import json
import re
import shlex
import socket
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import models
from minigrad import serialize
from models import predict
from models.registry import model_class
from models.weights.table import BUNDLED
from tests.models import bundle
from tests.models.checkpoints import write
from train import __main__ as train

ROOT = Path(__file__).parents[2]
NAMES = models.list_pretrained("*.shapes")
CIFAR = models.list_pretrained("*.cifar10")
ROWS = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) % \| `(.*)` \|$", (BUNDLED / "README.md").read_text(), re.M)


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)


@pytest.mark.parametrize("names", [NAMES, CIFAR], ids=["shapes", "cifar10"])
def test_one_small_model_of_each_family(names):
    classes = sorted(model_class(name.partition(".")[0]).__name__ for name in names)
    assert classes == ["ConvNeXt", "HybridVisionTransformer", "SwinTransformer", "VisionTransformer"]


def test_readme_lists_the_files():
    assert sorted(name for name, *_ in ROWS) == sorted(name.partition(".")[0] for name in NAMES + CIFAR)


def test_files_are_small():
    for names, limit in ((NAMES, 300_000), (CIFAR, 1_000_000)):
        assert all((BUNDLED / f"{name}.npz").stat().st_size <= limit for name in names)
    assert sum(path.stat().st_size for path in predict.IMAGES.iterdir()) <= 20_000


def test_files_are_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["models"]
    found = {path for pattern in patterns for path in (ROOT / "models").glob(pattern)}
    assert found == {*BUNDLED.glob("*.npz"), *predict.IMAGES.iterdir()}


@pytest.mark.parametrize(("name", "parameters", "accuracy", "command"), ROWS, ids=[row[0] for row in ROWS])
def test_readme_has_command_and_accuracy(name, parameters, accuracy, command):
    settings = vars(train.parse(shlex.split(command.removeprefix("python -m train "))))
    arrays, metadata = serialize.load(BUNDLED / f"{name}.{settings['dataset']}.npz")
    assert sum(x.size for x in arrays.values()) == int(parameters.replace(",", ""))
    assert f"{100 * metadata['test_acc']:.2f}" == accuracy
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    assert metadata["settings"] == {key: settings[key] for key in metadata["settings"]}  # later flags have defaults
    log = (BUNDLED / f"{name}.csv").read_text().splitlines()
    assert log[0].startswith("epoch,lr,train_loss,") and len(log) == 1 + settings["epochs"] == 1 + metadata["epoch"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_accuracy_is_the_stated(name, count):
    """Of the first images: at most the mistakes of all. One image more or less may be rounding of another processor."""
    path = BUNDLED / f"{name}.npz"
    mistakes = count * (1 - bundle.accuracy(path, count))
    stated = 2000 * (1 - serialize.load_metadata(path)["test_acc"])
    assert (0 if count < 2000 else stated - 1) <= round(mistakes) <= round(stated) + 1


@pytest.mark.parametrize("name", CIFAR)
def test_accuracy_on_cifar_is_that_of_the_log(name):
    """Rounding the weights to float16 changes the predictions of a few images. The images are not at hand here."""
    metadata = serialize.load_metadata(BUNDLED / f"{name}.npz")
    with (BUNDLED / f"{name.partition('.')[0]}.csv").open(newline="") as log:
        last = list(csv.DictReader(log))[-1]
    assert abs(metadata["test_acc"] - float(last["test_acc"])) < 0.001
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(metadata["classes"]) == names


@pytest.mark.parametrize("name", NAMES + CIFAR)
def test_weights_are_stored_in_float16_and_loaded_in_float32(name):
    stored = serialize.load(BUNDLED / f"{name}.npz")[0]
    for asked in (name, name.partition(".")[0]):
        state = models.create_model(asked, pretrained=True).state_dict()
        assert state.keys() == stored.keys()
        for key, x in state.items():
            assert x.dtype == np.float32 and stored[key].dtype == np.float16
            np.testing.assert_array_equal(x.numpy(), stored[key])


def test_other_arguments():
    model = models.create_model("vit_nano_cifar", pretrained=True, num_classes=3, img_size=48)
    assert model.head.weight.shape == (3, 64) and model.pos_embed.shape == (1, 1 + 12 * 12, 64)
    with pytest.raises(ValueError, match=r"bundled.*vit_nano_cifar.shapes.npz are for images of 3 channels, not 1"):
        models.create_model("vit_nano_cifar", pretrained=True, in_chans=1)
    assert models.create_model("swin_pico_cifar", features_only=True, pretrained=True).feature_info.channels()


def test_tool_writes_the_images_again(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    bundle.draw_images(tmp_path)
    assert sorted(path.name for path in predict.IMAGES.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(*(np.asarray(image_module.open(x)) for x in (path, predict.IMAGES / path.name)))


def test_tool_writes_a_checkpoint(tmp_path, capsys):
    run, few = tmp_path / "run", ["--train-num-samples", "20", "--val-num-samples", "20", "--epochs", "1"]
    assert train.main([*few, "--output", str(run)]) == 0
    path = bundle.bundle(run, tmp_path, data_dir=tmp_path)
    arrays, metadata = serialize.load(path)
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float16)} and path.stat().st_size < 300_000
    assert metadata["test_acc"] == bundle.accuracy(path) and "output" not in metadata["settings"]
    assert (tmp_path / "vit_nano_cifar.csv").read_text() == (run / "metrics.csv").read_text()
    assert train.main(["--eval", str(path), "--val-num-samples", "20"]) == 0


# The programs ---------------------------------------------------------------------------------------------------------


def lines_of(capsys):
    out, err = capsys.readouterr()
    assert err.startswith("bundled weights  ") and "\nyour own         python -m models." in err
    return out.splitlines()


@pytest.mark.parametrize("arguments", [[], *(["--pretrained", "--model", name] for name in NAMES)])
def test_predict_shows_the_bundled_images(arguments, capsys):
    pytest.importorskip("PIL.Image")
    assert predict.main(arguments) == 0
    header, *lines = lines_of(capsys)
    assert header.split() == ["image", "1", "2", "3"] and max(map(len, lines)) < 80
    for figure, line in zip(sorted(bundle.FIGURES), lines, strict=True):
        assert line.split()[:2] == [f"{figure}.png", figure]


def test_visualize_draws_the_bundled_images(tmp_path, monkeypatch, capsys):
    pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    from models.visualize.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    drawn = [Path(line.partition("  ")[0]) for line in lines_of(capsys)]
    assert sorted(path.name for path in drawn) == [
        *("attention.png", "filters.png", "positions.png", "prediction.png", "rollout.png")
    ]
    assert sorted(drawn) == sorted(Path("pictures").iterdir())
    assert main(["--html"]) == 0 and lines_of(capsys)[0].startswith("explore.html  ")
    assert "star.png" in Path("explore.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["vit.npz"], "CHECKPOINT"),
        (["--pretrained", "--model", "swin_micro_cifar"], "--model swin_micro_cifar --pretrained"),
    ],
)
def test_images_are_for_weights_of_their_dataset_only(arguments, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "vit.npz", "vit")
    assert predict.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"python -m models.predict: give images: python -m models.predict {shown} IMAGE...\n"


def test_training_starts_from_bundled_weights(tmp_path, capsys):
    few = ["--train-num-samples", "20", "--val-num-samples", "20", "--epochs", "1", "--lr", "1e-12", "--threads", "1"]
    assert train.main([*few, "--pretrained", "--output", str(tmp_path / "shapes")]) == 0
    line = re.search(r"weights .*", capsys.readouterr().out)[0]
    assert line == f"weights  {BUNDLED / 'vit_nano_cifar.shapes.npz'} (licence: mit)"
    trained = serialize.load(tmp_path / "shapes" / "last.npz")[0]
    for key, x in models.create_model("vit_nano_cifar", pretrained=True).state_dict().items():
        np.testing.assert_allclose(trained[key], x.numpy(), rtol=1e-6, atol=1e-9)


def test_head_of_other_classes_is_not_loaded():
    from train import initial

    model = models.create_model("vit_nano_cifar")
    line = initial.load_pretrained("vit_nano_cifar", model, "abcdefghij")
    assert line.endswith("(licence: mit); new head: 10 classes in the file, 10 others in the data")
    assert not model.head.weight.numpy().any() and model.pos_embed.numpy().any()
