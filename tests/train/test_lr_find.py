"""The learning-rate range test, `--lr-find`."""

import csv
import sys

import numpy as np
import pytest

from tests.train.small import FLAGS as SMALL
from tests.train.small import Small, trainer_of
from train import lr_find
from train.__main__ import main, parse
from train.config.errors import InputError
from train.lr_find import BETA, HIGHEST, LOWEST, STEPS, RangeTest, range_test, smooth, write_table

FLAGS = [*SMALL, "--lr-find"]


def test_moving_average_is_the_weighted_mean():
    losses = np.random.default_rng(0).random(30)
    for t, found in enumerate(smooth(losses)):
        assert found == pytest.approx(np.average(losses[: t + 1], weights=BETA ** np.arange(t + 1)[::-1]))


def test_suggestions_for_a_known_curve():
    """The loss falls as a sigmoid of log lr, steepest at 1e-3, is lowest at 1e-1, and falls again after a peak."""
    lrs = np.geomspace(LOWEST, HIGHEST, 4000)  # the moving average lags behind by few of these steps
    x = np.log10(lrs)
    losses = 2 - 1 / (1 + np.exp(-4 * (x + 3))) + np.where(x > -1, 9 * (x + 1), 0)
    losses[-100:] = np.linspace(losses[-101], 1.5, 100)
    test = RangeTest(lrs, losses)
    assert test.steepest == pytest.approx(1e-3, rel=0.05)
    assert test.tenth == pytest.approx(1e-2, rel=0.05)


def test_learning_rates_grow_exponentially_in_every_group(dataset, monkeypatch):
    """With layer-wise decay, the rates of the groups keep their ratios. Full batches only; the schedule stays."""
    trainer = trainer_of(dataset, parse(["--batch-size", "16", "--lr", "0.02"]))
    group, other = trainer.step.optimizer.param_groups
    other["initial_lr"] = 0.01
    seen, step = [], trainer.step.compute
    monkeypatch.setattr(
        trainer.step, "compute", lambda index: seen.append((group["lr"], other["lr"], len(index))) or step(index)
    )
    monkeypatch.setattr(lr_find, "LIMIT", np.inf)
    test = range_test(trainer)
    rates, halves, images = zip(*seen, strict=True)
    np.testing.assert_allclose(rates[: len(test.lrs)], np.geomspace(LOWEST, HIGHEST, STEPS)[: len(test.lrs)])
    np.testing.assert_allclose(halves, np.array(rates) / 2)
    assert set(images) == {16} and trainer.schedule.t == trainer.epoch == 0
    assert test.losses[0] > min(test.losses)


def test_range_test_stops_at_four_times_the_minimum(dataset, monkeypatch):
    trainer = trainer_of(dataset, parse(["--batch-size", "16"]))
    losses = iter([2.0] * 30 + [1e3] * 70)
    monkeypatch.setattr(lr_find, "loss_of_step", lambda *arguments: next(losses))
    assert len(range_test(trainer).losses) == 31


class Exploding(Small):
    """Returns NaN from the 5th step on."""

    steps = 0

    def forward(self, x):
        self.steps += 1
        return super().forward(x) * (np.nan if self.steps > 4 else 1)


@pytest.mark.parametrize("flags", [[], ["--skip-nonfinite"]])
def test_early_nan_is_an_error(dataset, flags):
    trainer = trainer_of(dataset, parse(["--batch-size", "16", "--threads", "1", *flags]), Exploding)
    with pytest.raises(InputError, match=r"at learning rate 1.9e-06, in step 5, the loss was inf: it must stay finite"):
        range_test(trainer)


@pytest.mark.parametrize("draws", [True, False])
def test_lr_find_writes_table_and_picture_only(draws, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lr_find, "STEPS", 25)
    if draws:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = tmp_path / "run"
    assert main([*FLAGS, "--output", str(folder), "--opt", "sgd"]) == 0
    out = capsys.readouterr().out
    assert {file.name for file in folder.iterdir()} == {"lr_find.csv", *(["lr_find.png"] if draws else [])}
    assert "(steepest decrease of the loss)" in out and ("pip install matplotlib" in out) != draws
    assert max(map(len, out.replace(str(folder), "runs/NAME").splitlines())) <= 80
    with (folder / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["lr"]) == 1e-6 and float(rows[24]["lr"]) == 10 and set(rows[0]) == {"lr", "loss", "average"}
    assert f"lr       {RangeTest(*(np.array([float(r[k]) for r in rows]) for k in ('lr', 'loss'))).steepest:.2g}" in out


def test_table_is_rounded_to_six_digits(tmp_path):
    write_table(RangeTest(np.array([1e-6, 1 / 3]), np.array([2.0, 1.0])), tmp_path / "lr_find.csv")
    assert (tmp_path / "lr_find.csv").read_text() == "lr,loss,average\n1e-06,2,2\n0.333333,1,1.47368\n"
