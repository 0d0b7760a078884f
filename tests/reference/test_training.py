"""The training program against PyTorch and timm: the same steps, from the same weights, on the same batches."""

import csv
from dataclasses import replace
from importlib.util import find_spec

import pytest

from tests.benchmarks import training
from tests.reference.conftest import skip_without
from train.__main__ import parse
from train.data import shapes

torch = pytest.importorskip("torch")
FLAGS = ["--batch-size", "8", "--threads", "1", "--lr", "2e-4", "--hflip", "0.5", "--crop-padding", "4"]


@pytest.fixture(autouse=True)
def timm():
    skip_without("timm")


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("vit_nano_cifar", ["--smoothing", "0.1", "--cutout", "8", "--model-ema", "--threads", "2"]),
        ("vit_nano_cifar", ["--mixup", "0.8", "--cutmix", "1", "--aa", "rand-m9-n2-mstd0.5", "--clip-grad", "0"]),
        ("swin_nano_cifar", ["--reprob", "0.5", "--model-ema", "--no-model-ema-warmup"]),
        ("convnext_atto_cifar", ["--weight-decay", "0.5"]),
        ("hybrid_nano_cifar", ["--smoothing", "0.1"]),
    ],
    ids=["vit-ema", "vit-mixed", "swin", "convnext", "hybrid"],
)
def test_losses_of_the_first_steps_agree(model, flags):
    """Then the evaluation agrees too. Rounding grows with the number of steps and the learning rate."""
    settings = parse([*FLAGS, "--model", model, "--epochs", "1", "--warmup-epochs", "0.5", *flags])
    pair = training.Pair(settings, shapes.load(60, 20))
    ours, theirs = pair.fit()
    assert len(pair.differences) == 8 and max(pair.differences) < 3e-6
    assert (ours.train_loss, ours.test_loss) == pytest.approx((theirs.train_loss, theirs.test_loss), abs=3e-6)
    assert (ours.train_acc, ours.test_acc) == pytest.approx((theirs.train_acc, theirs.test_acc), abs=0.06)


@pytest.mark.parametrize(
    "change", [{"smoothing": 0.2}, {"clip_grad": 0.0}, {"weight_decay": 5.0}, {"model_ema": False}]
)
def test_a_different_setting_is_noticed(change, monkeypatch):
    settings = parse([*FLAGS, "--epochs", "1", "--lr", "2e-3", "--model-ema", "--smoothing", "0.1"])
    run = training.TorchRun.__init__
    monkeypatch.setattr(
        training.TorchRun, "__init__", lambda self, trainer, settings: run(self, trainer, replace(settings, **change))
    )
    pair = training.Pair(settings, shapes.load(80, 20))
    ours, theirs = pair.fit()[-2:]
    assert max(*pair.differences, abs(ours.test_loss - theirs.test_loss)) > 1e-4


def test_program_writes_the_table_and_the_picture(tmp_path, capsys):
    flags = [*FLAGS, "--train-num-samples", "40", "--val-num-samples", "20", "--epochs", "1"]
    training.main([*flags, "--seeds", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[-4:]] == [
        ["train", "loss"],
        ["train", "acc"],
        ["test", "loss"],
        ["test", "acc"],
    ]
    assert all(len(line) <= 80 for line in printed)
    with (tmp_path / "training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["library"], row["seed"]) for row in rows] == [
        ("minigrad", "0"), ("PyTorch", "0"), ("minigrad", "1"), ("PyTorch", "1")
    ]  # fmt: skip
    if find_spec("matplotlib") is not None:
        assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_program_refuses_settings_that_it_lacks(capsys):
    with pytest.raises(SystemExit):
        training.main([*FLAGS, "--opt", "muon"])
    assert "no other --opt than adamw" in capsys.readouterr().err
