"""Evaluation of a checkpoint: metrics, report, plots."""

import re
from dataclasses import replace

import numpy as np
import pytest

import models
from minigrad import Tensor, functional, no_grad, serialize
from minigrad.parallel import Shards, World
from models.images import normalize
from models.weights import checkpoint
from tests.train.command import TINY, rows
from tests.train.command import train as command
from tests.train.small import info_of
from train.__main__ import main, parse
from train.config import stored
from train.config.errors import InputError
from train.create import create_dataset
from train.evaluate import Evaluation, Predictions
from train.output import checkpoint as writing
from train.output import plots, report
from train.output.log import Metrics

CLASSES = ("ant", "bee", "cat")
PROBABILITIES = np.array([[8, 1, 1], [2, 7, 1], [1, 9, 0], [0, 4, 6], [5, 2, 3], [1, 8, 1]], np.float32) / 10
LABELS = np.array([0, 0, 0, 2, 2, 1])
with np.errstate(divide="ignore"):
    PREDICTIONS = Predictions(np.log(PROBABILITIES), LABELS, CLASSES)


def test_confusion_worst_loss_and_accuracy():
    np.testing.assert_array_equal(PREDICTIONS.confusion, [[1, 2, 0], [0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(PREDICTIONS.worst(9), [2, 1, 4])  # most confident first
    np.testing.assert_array_equal(PREDICTIONS.worst(1), [2])
    np.testing.assert_allclose(PREDICTIONS.probabilities, PROBABILITIES, rtol=1e-6)
    right = [0.8, 0.2, 0.1, 0.6, 0.3, 0.8]  # the probability of the true class
    assert PREDICTIONS.loss == pytest.approx(-np.log(right).mean(), rel=1e-6) and PREDICTIONS.acc == 3 / 6


def test_report_lists_recall_and_precision():
    lines = [line.split() for line in report.text(PREDICTIONS).splitlines()]
    assert lines[0] == ["loss", "1.0122", "acc", "50.00%"]
    assert lines[3] == ["ant", "3", "33.3", "%", "50.0", "%", "bee", "(2)"]
    assert lines[4] == ["bee", "1", "100.0", "%", "33.3", "%"]
    assert lines[5] == ["cat", "2", "50.0", "%", "100.0", "%", "ant", "(1)"]
    strange = replace(PREDICTIONS, classes=("ant", "\x1b[2J", "cat"), labels=np.zeros(6, int))
    assert "\x1b" not in report.text(strange) and "\\x1b" in report.text(strange)


@pytest.mark.parametrize("K", [2, 10, 60])
def test_plots_for_any_class_count_and_names(K, tmp_path, monkeypatch):
    """Plots support many classes, names with markup or characters that no font has, and no wrong prediction."""
    pytest.importorskip("matplotlib")
    texts = []
    from matplotlib.axes import Axes

    for name in ("text", "set_title"):
        original = getattr(Axes, name)
        monkeypatch.setattr(
            Axes, name, lambda self, *a, original=original, **b: texts.append(a) or original(self, *a, **b)
        )
    chance = np.random.default_rng(0)
    p = chance.random((40, K)).astype(np.float32)
    names = (r"$\bad$ and a name that does not end", "蟻", *map(str, range(K - 2)))
    images = chance.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    for labels in (chance.integers(0, K, 40), p.argmax(axis=1)):
        predictions = Predictions(np.log(p), labels, names)
        plots.mistakes(predictions, images, tmp_path)
        for name in ("confusion.png", "mistakes.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
            (tmp_path / name).unlink()
    first = replace(predictions, labels=chance.integers(0, K, 40))
    texts.clear()
    plots.mistakes(first, images, tmp_path)
    n = first.worst(1)[0]
    said = [text for *_, text in texts]
    assert any(text.endswith(f"{first.probabilities[n, first.predicted[n]]:.0%}") for text in said)
    fields = sum(isinstance(text[0], np.integer) for text in texts)  # (x, y, text)
    assert fields == (np.count_nonzero(first.confusion) if K <= 25 else 0)


def test_percentages_are_never_rounded_to_0_or_100():
    found = [plots._percentage(p) for p in (0.04, 0.1, 0.94, 0.96, 42.4, 99.0, 99.5, 99.97, 100.0)]
    assert found == ["<0.1", "0.1", "0.9", "1", "42", "99", "99.5", "99.9", "100"]


@pytest.mark.parametrize(("names", "rotation"), [(("cat", "dog"), 0), (("cat", "a long name"), 90)])
def test_names_under_few_classes_do_not_overlap(names, rotation, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    p = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    plots._confusion(Predictions(np.log(p), np.array([0, 1]), names), tmp_path / "confusion.png")
    figures[0].canvas.draw()
    labels = figures[0].axes[0].get_xticklabels()
    assert {label.get_rotation() for label in labels} == {rotation}
    boxes = [label.get_window_extent() for label in labels]
    assert boxes[0].x1 < boxes[1].x0


def test_eval_equals_the_last_row_of_the_run(tmp_path):
    """--eval prints the loss and accuracy of metrics.csv, and writes no file."""
    result = command(*TINY, "--epochs", 2, "--model-ema", "--output", "out", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    left = {file.name for file in (tmp_path / "out").iterdir()}
    before = {name: (tmp_path / "out" / name).read_bytes() for name in left}
    assert not pytest.importorskip("matplotlib") or {"confusion.png", "mistakes.png"} <= left
    tested = command("--eval", "out/last.npz", cwd=tmp_path)
    assert tested.returncode == 0 and tested.stderr == ""
    row = rows(tmp_path / "out")[-1]
    assert f"loss {float(row['test_loss']):.4f} acc {float(row['test_acc']):.2%}" in tested.stdout
    assert "50 test images" in tested.stdout and "heart" in tested.stdout
    more = command("--eval", "out/last.npz", "--val-num-samples", 90, "--device", "cpu", cwd=tmp_path)
    assert "90 test images" in more.stdout
    assert {name: (tmp_path / "out" / name).read_bytes() for name in left} == before


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "best.npz"
    settings = parse(["--val-num-samples", "30", "--train-num-samples", "10", "--threads", "2"])
    dataset = create_dataset(settings)
    info = info_of(dataset, settings)
    model = models.create_model(**info.model)
    model.head.weight.data[...] = np.random.default_rng(0).standard_normal(model.head.weight.shape)  # initialised to 0
    writing.save(path, model, info, Metrics(1, 0.1, 1.0, 0.1, 1.0, 0.1, 1.0, 1.0))
    return path, dataset


def test_predictions_use_the_stored_statistics(kept):
    path, dataset = kept
    other = replace(dataset, mean=(0.0, 0.0, 0.0), std=(9.0, 9.0, 9.0))  # the stored statistics are used instead
    with Shards(2) as shards:
        predictions = report.predictions(path, other, Evaluation(7, None, shards, World()))
    model, _ = checkpoint.load(path)
    with no_grad():
        logits = model(Tensor(normalize(dataset.test.images, dataset.mean, dataset.std)))
    np.testing.assert_allclose(
        predictions.probabilities, functional.softmax(logits, dim=-1).numpy(), rtol=1e-4, atol=1e-6
    )
    assert predictions.loss == pytest.approx(
        functional.cross_entropy(logits, Tensor(dataset.test.labels)).item(), rel=1e-5
    )


def test_checkpoint_of_an_earlier_version(kept):
    """Missing settings have their defaults; unknown settings are ignored."""
    path, _ = kept
    arrays, metadata = serialize.load(path)
    del metadata["settings"]["skip_nonfinite"]
    serialize.save(path, arrays, {**metadata, "settings": {**metadata["settings"], "aug": True}})
    assert stored.of_checkpoint(path, {}, {}).val_num_samples == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: {}, "no checkpoint of this program"),
        (lambda metadata: {**metadata, "settings": 3}, "no checkpoint of this program"),
        (lambda metadata: {**metadata, "settings": {"epochs": "x"}}, "is damaged|another version"),
        (
            lambda metadata: {**metadata, "classes": [*metadata["classes"][1:], "dog"]},
            "has no class disc, of shapes; its classes are ring, square",
        ),
        (lambda metadata: {**metadata, "classes": ["dog"]}, "it has 1 class name for a model with 10 classes"),
    ],
)
def test_damaged_or_foreign_checkpoint_is_refused(kept, change, message, capsys):
    path, _ = kept
    arrays, metadata = serialize.load(path)
    serialize.save(path, arrays, change(metadata))
    assert main(["--eval", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_eval_of_a_folder_is_of_its_best_checkpoint(kept):
    path, _ = kept
    assert parse(["--eval", str(path.parent)]) == parse(["--eval", str(path)])


def test_eval_refuses_flags_without_effect_and_bad_files(kept, tmp_path):
    path, _ = kept
    with pytest.raises(InputError, match="--resume has no effect with --eval"):
        parse(["--eval", str(path), "--resume", "auto"])
    with pytest.raises(InputError, match="--val-split is for --dataset folder: shapes has no image files"):
        parse(["--eval", str(path), "--val-split", "0.2"])
    with pytest.raises(InputError, match="there is no file"):
        parse(["--eval", str(tmp_path / "none.npz")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder .* has no best\.npz or best\.safetensors"):
        parse(["--eval", str(tmp_path / "empty")])
    serialize.save(tmp_path / "resume.npz", {}, {"resume": 1, "settings": {}})
    with pytest.raises(InputError, match="is the state of a run; its models are the files best and last"):
        parse(["--eval", str(tmp_path / "resume.npz")])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a complete npz"):
        parse(["--eval", str(path)])
