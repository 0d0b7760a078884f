"""The search of settings: every variant can be trained, halving, the log."""

import csv
import json
import re
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest

from models.model import ImageModel
from tests.benchmarks import search
from tests.benchmarks.search import BASES, CHANGES, Variant
from train.data import shapes

ROOT = Path(__file__).parents[2]
LOG = ROOT / ".github" / "logs" / "search.csv"


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


def test_named_variants_run_in_one_rung(tmp_path, monkeypatch, capsys):
    log = tmp_path / "log.csv"
    variants("swin", monkeypatch, lambda i: i / 10)
    for _ in range(2):
        search.main(["--variants", "swin: 2", "swin: 0", "--rung", "1", "--log", str(log)])
    assert [(row["rung"], row["variant"]) for row in rows(log)] == [("1", "swin: 2"), ("1", "swin: 0")]
    with pytest.raises(SystemExit):
        search.main(["--variants", "swin: 9", "--log", str(log)])
    assert "invalid choice: 'swin: 9'" in capsys.readouterr().err


def test_without_time_no_trial_starts(tmp_path):
    search.main(["--minutes", "0", "--log", str(tmp_path / "log.csv")])
    assert not (tmp_path / "log.csv").exists()


def test_readme_agrees_with_the_log():
    """Each accuracy in the table of train/README.md, and in the text below it, is that of a run in the log."""
    text = (ROOT / "train" / "README.md").read_text()
    log = {(row["variant"], row["rung"]): f"{100 * float(row['val_acc']):.1f}" for row in rows(LOG)}
    table = re.findall(
        r"^\| `([\w ,-]+)`.* \| ([\d.]*) ?\| ([\d.]*) ?\| ([\d.]*) ?\| ([\d.]*) ?\|$", text, re.MULTILINE
    )
    stated = {
        (f"{family}: {change}", "0"): cell
        for change, *cells in table
        for family, cell in zip(("convnext", "hybrid", "swin", "vit"), cells, strict=True)
        if cell
    }
    assert len(stated) > 30
    assert stated == {key: log[key] for key in stated}
    below = re.search(r"^With 300 s, .*?\.\n", text, re.DOTALL | re.MULTILINE)[0]
    assert set(re.findall(r"([\d.]+) %", below)) <= {accuracy for (_, rung), accuracy in log.items() if rung == "1"}


def test_log_has_variants_of_the_search():
    """Each row has the settings of its variant and the parameters of its model; one variant was an earlier Muon."""
    for row in rows(LOG):
        family, change = row["variant"].removesuffix(", muon for matrices alone").split(": ")
        variant = Variant(family, change)
        assert json.loads(row["settings"]) == json.loads(json.dumps(variant.values))
        model = variant.trainer(shapes.load(8, 1)).model
        assert sum(p.data.size for p in model.parameters()) == int(row["parameters"])
