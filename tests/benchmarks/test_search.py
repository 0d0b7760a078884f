"""The search of settings: every variant can be trained, halving, the log."""

import csv
from unittest.mock import create_autospec

import numpy as np
import pytest

from models.model import ImageModel
from tests.benchmarks import search
from tests.benchmarks.search import BASES, CHANGES, Variant
from train.data import shapes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(search, "RUNGS", (1e-9, 0.05, 0.05))
    monkeypatch.setattr(search, "VALIDATION", 8)
    monkeypatch.setattr(search.cifar, "load", create_autospec(search.cifar.load, return_value=shapes.load(40, 1)))


def rows(log):
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def variants(family, monkeypatch, accuracy):
    """Variants named by a number, whose accuracy is a function of the number."""
    monkeypatch.setitem(CHANGES, family, {str(i): {} for i in range(4)})
    found = {"images": 1, "epochs": 1, "ms_per_image": 1.0}

    def run(self, dataset, rung, seed):
        name = {"variant": self.name, "seed": seed, "rung": rung}
        return name | found | {"val_acc": accuracy(int(self.name[-1]))}

    monkeypatch.setattr(Variant, "run", run)


@pytest.mark.parametrize("family", BASES)
def test_each_variant_is_a_model_for_cifar(family):
    dataset = shapes.load(8, 1)
    sizes = set()
    for change in CHANGES[family]:
        model = Variant(family, change).trainer(dataset).model
        assert isinstance(model, ImageModel) and model.num_classes == 10
        sizes.add(sum(p.data.size for p in model.parameters()))
    assert len(sizes) > 3  # the arguments of the model are used


def test_a_trial_sees_each_image_once_up_to_all_images(monkeypatch):
    monkeypatch.setattr(Variant, "ms_per_image", lambda self, dataset: 1.0)
    variant, dataset = Variant("vit", "base"), shapes.load(40, 8)
    row = variant.run(dataset, 1, 0)
    assert (row["images"], row["epochs"]) == (25, 2)  # 50 images in 0.05 s: more than 40
    monkeypatch.setattr(search, "RUNGS", (0.01, 0.05, 0.05))
    row = variant.run(dataset, 0, 0)
    assert (row["images"], row["epochs"]) == (10, 1) and 0 <= row["val_acc"] <= 1


def test_validation_images_are_the_last_training_images(tmp_path, monkeypatch):
    dataset, seen = search.cifar.load(search.cifar.SOURCES["cifar10"], ""), []
    variants("swin", monkeypatch, lambda i: i)
    run = Variant.run
    monkeypatch.setattr(Variant, "run", lambda self, data, *rest: (seen.append(data), run(self, data, *rest))[1])
    search.main(["--families", "swin", "--log", str(tmp_path / "log.csv")])
    np.testing.assert_array_equal(seen[0].train.images, dataset.train.images[:32])
    np.testing.assert_array_equal(seen[0].test.images, dataset.train.images[32:])


def test_the_better_half_continues_and_no_trial_is_repeated(tmp_path, monkeypatch):
    log = tmp_path / "log.csv"
    variants("swin", monkeypatch, lambda i: i / 10)
    search.main(["--families", "swin", "--log", str(log)])
    expected = [("0", i) for i in (0, 1, 2, 3)] + [("1", 3), ("1", 2), ("2", 3)]
    assert [(row["rung"], int(row["variant"][-1])) for row in rows(log)] == expected
    search.main(["--families", "swin", "--log", str(log)])
    assert len(rows(log)) == 7
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    search.main(["--families", "swin", "--log", str(log)])
    assert [(row["rung"], int(row["variant"][-1])) for row in rows(log)] == expected


def test_without_time_no_trial_starts(tmp_path):
    search.main(["--minutes", "0", "--log", str(tmp_path / "log.csv")])
    assert not (tmp_path / "log.csv").exists()
