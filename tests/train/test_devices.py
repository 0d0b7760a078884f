"""The training program on a GPU (or a stand-in: tests/conftest.py) gives the results of a CPU."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from minigrad import serialize
from minigrad.backend import to_device
from minigrad.backend.random import Generator
from tests.cuda.runner import HAS_COMPILER
from tests.gpu.launches import counting
from train.__main__ import main, parse
from train.create import create_model, create_trainer
from train.data.colorjitter import ColorJitter
from train.data.dataset import Dataset, Split


@pytest.mark.parametrize("augmented", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_runs_match_on_cpu_device_and_cuda_graph(augmented, tmp_path, capsys, device):
    """Runs on the CPU, on the device, and on the device with a CUDA graph (the default) have the same metrics.

    The 4th full batch is captured, the 5th and 6th are replayed; an epoch's last batch is smaller.
    """
    flags = ["--model", "vit_nano_cifar", "--epochs", "2", "--train-num-samples", "15", "--val-num-samples", "4"]
    flags += ["--batch-size", "4", "--threads", "1", "--no-tune-cpu", "--drop-path", "0.2"]
    flags += ["--smoothing", "0.1", "--model-ema", "--model-ema-decay", "0.5", "--layer-decay", "0.9"]
    if augmented:
        flags += ["--recipe", "standard", "--reprob", "0.5", "--cutout", "3", "--aug-repeats", "2"]
        flags += ["--batch-size", "2", "--grad-accum-steps", "2", "--warmup-epochs", "0.5"]
    outputs, weights = [], []
    for i, where in enumerate((["--device", "cpu"], ["--device", device, "--no-graph"], ["--device", device])):
        if i and (device == "cpu" or (i == 2 and not HAS_COMPILER)):  # a CUDA graph needs compiled kernels
            break
        assert main([*flags, *where, "--output", str(tmp_path / str(i))]) == 0
        rows = (tmp_path / str(i) / "metrics.csv").read_text().splitlines()[1:]
        outputs.append([[float(x) for x in row.split(",")[:6]] for row in rows])
        weights.append(serialize.load(tmp_path / str(i) / "last.npz")[0])
        assert tomllib.loads((tmp_path / str(i) / "args.toml").read_text())["graph"] == (i == 2)
    capsys.readouterr()
    for found in outputs[1:]:
        np.testing.assert_allclose(found, outputs[0], rtol=1e-3)
    assert outputs[2:] in ([], outputs[1:2])  # bit for bit
    for graphed in weights[2:]:
        for name, array in weights[1].items():
            np.testing.assert_array_equal(graphed[name], array, err_msg=name)


def test_recipe_standard_has_few_more_launches_than_fast():
    """RandAugment, erasing and mixing are a few kernels. train/README.md states the launches of a step."""
    split = Split(np.zeros((4, 3, 32, 32), np.uint8), np.arange(4))
    dataset = Dataset("cifar10", split, split, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    steps, transforms = {}, {}
    for recipe in ("fast", "standard"):
        with counting() as count:
            flags = ["--dataset", "cifar10", "--recipe", recipe, "--batch-size", "4", "--model", "vit_tiny_cifar"]
            settings = parse([*flags, "--device", "cuda", "--amp", "--no-graph"])
            step = create_trainer(settings, create_model(settings, dataset), dataset).step
            index = to_device(np.arange(4), "cuda")
            step(index)  # creates the optimizer's state
            count.launches.clear()
            step(index)
            steps[recipe] = count.launches.total()
            step.transform(*step.data.take(index))
            transforms[recipe] = count.launches.total() - steps[recipe]
    assert transforms["standard"] <= 25, transforms
    readme = (Path(__file__).parents[2] / "train" / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"has (\d+) kernels and matrix products with\s+`--recipe fast`,\s+and (\d+)\s+with", readme)
    if HAS_COMPILER:  # else the reference implementation runs
        assert tuple(steps.values()) == tuple(map(int, stated.groups()))


def test_launches_of_colour_jitter_are_those_of_the_readme():
    launches = []
    for jitter in (ColorJitter(0.4, 0.4, 0.4), ColorJitter(0.4, 0.4, 0.4, 0.1)):
        with counting() as count:
            images = to_device(np.zeros((4, 3, 8, 8), np.uint8), "cuda")
            count.launches.clear()
            jitter(images, Generator(0))
            launches.append(count.launches.total())
    readme = (Path(__file__).parents[2] / "train" / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"colour jitter (\d+) \(with hue (\d+)\)", readme)
    assert stated.groups() == tuple(map(str, launches))


def test_mixed_precision_runs_match_float32(tmp_path, capsys, device):
    flags = ["--model", "vit_nano_cifar", "--epochs", "2", "--train-num-samples", "12", "--val-num-samples", "4"]
    flags += ["--batch-size", "4", "--threads", "1", "--no-tune-cpu", "--drop-path", "0.2"]
    outputs = []
    for i, more in enumerate((["--device", "cpu", "--no-graph"], ["--amp", "--no-graph"], ["--amp", "--graph"])):
        if i == 2 and (device == "cpu" or not HAS_COMPILER):
            break
        assert main([*flags, "--device", device, *more, "--output", str(tmp_path / str(i))]) == 0
        rows = (tmp_path / str(i) / "metrics.csv").read_text().splitlines()[1:]
        outputs.append([[float(x) for x in row.split(",")[:6]] for row in rows])
    capsys.readouterr()
    exact, found, *graphed = outputs
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in exact], rtol=0.03)
    assert found != exact and graphed in ([], [found])  # bit for bit


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--amp", "--amp-dtype", "float16"], "loss scaling of float16 runs on the host"),
        (["--opt", "muon"], "the learning rates of SGD and Muon are computed on the host"),
        (["--opt", "sgd"], "the learning rates of SGD and Muon are computed on the host"),
    ],
)
def test_settings_without_cuda_graph(flags, reason, tmp_path, capsys, device):
    """`--graph` gives an error; by default the run prints the reason and trains without a graph."""
    flags = [*flags, "--epochs", "1", "--train-num-samples", "4", "--val-num-samples", "2", "--no-tune-cpu"]
    flags += ["--device", device]
    assert main([*flags, "--graph", "--output", str(tmp_path / "asked")]) == 2
    assert ("graphs are for a GPU" if device == "cpu" else reason) in capsys.readouterr().err
    assert main([*flags, "--output", str(tmp_path / "default")]) == 0
    assert (f"graph    none: {reason}" in capsys.readouterr().out) == (device == "cuda")


@pytest.mark.parametrize("opt", ["adam", "sgd", "muon"])
def test_optimizers_match_the_cpu(opt, tmp_path, device):
    """Adam runs in the CUDA graph, which is captured after the 4th step."""
    flags = ["--epochs", "2", "--train-num-samples", "24", "--val-num-samples", "2", "--no-tune-cpu", "--opt", opt]
    flags += ["--weight-decay", "0.1"]
    losses = []
    for where in ("cpu", device):
        folder = tmp_path / str(len(losses))
        more = ["--batch-size", "4", "--threads", "1", "--device", where, "--output", str(folder)]
        more += ["--graph"] if where == "cuda" and opt == "adam" and HAS_COMPILER else ["--no-graph"]
        assert main([*flags, *more]) == 0
        rows = (folder / "metrics.csv").read_text().splitlines()[1:]
        losses.append([float(row.split(",")[2]) for row in rows])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_range_test_matches_the_cpu(tmp_path, device, monkeypatch):
    """The learning rates of the captured step are those of the test, and the loss of each step is read."""
    monkeypatch.setattr("train.lr_find.STEPS", 20)
    monkeypatch.setattr("train.lr_find.HIGHEST", 1e-2)
    flags = ["--lr-find", "--train-num-samples", "8", "--val-num-samples", "2", "--no-tune-cpu", "--batch-size", "2"]
    flags += ["--threads", "1", "--hflip", "0.5", "--color-jitter", "0.4,0.4,0.4,0.1"]
    tables = []
    for where in ("cpu", device):
        folder = tmp_path / str(len(tables))
        graph = "--graph" if where == "cuda" and HAS_COMPILER else "--no-graph"
        assert main([*flags, "--device", where, graph, "--output", str(folder)]) == 0
        tables.append(np.loadtxt(folder / "lr_find.csv", delimiter=",", skiprows=1))
    assert len(tables[0]) == 20
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-3)
