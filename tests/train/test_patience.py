"""Early stopping, `--patience`."""

import pytest

from tests.train.command import rows
from tests.train.small import FLAGS as SMALL
from train.__main__ import main
from train.loop import Trainer
from train.output.results import Results

FLAGS = [*SMALL, "--model", "vit_nano_cifar"]
ACCURACIES = [0.25, 0.5, 0.5, 0.4, 0.5, 0.6, 0.1, 0.1]


@pytest.fixture(autouse=True)
def accuracies(monkeypatch, no_pictures):
    """Epochs without training, with given test accuracies."""

    def train_epoch(trainer, title):
        for _ in range(trainer.steps):
            trainer.schedule.step()
        return 2.0, 0.1

    monkeypatch.setattr(Trainer, "train_epoch", train_epoch)
    monkeypatch.setattr(Trainer, "evaluate", lambda trainer: (2.0, ACCURACIES[trainer.epoch]))


@pytest.mark.parametrize(("patience", "epochs"), [(0, 8), (1, 3), (2, 4), (3, 5), (4, 8), (9, 8)])
def test_run_stops_without_a_better_accuracy(patience, epochs, tmp_path, capsys):
    """An equal accuracy is not better."""
    folder = str(tmp_path / "run")
    assert main([*FLAGS, "--epochs", "8", "--patience", str(patience), "--output", folder]) == 0
    out, best = capsys.readouterr().out, max(ACCURACIES[:epochs])
    assert len(rows(tmp_path / "run")) == epochs and f"best     {best:.2%} test accuracy" in out
    without = f"{patience} epoch{'' if patience == 1 else 's'} without a better test accuracy"
    line = f"stopped  after epoch {epochs}/8, {without} (--patience {patience})\n"
    assert (line in out) == ("stopped" in out) == (epochs < 8)
    assert main(["--resume", folder]) == 0
    completed = f"{epochs} of 8 epochs, ended by --patience" if epochs < 8 else "8 epochs"
    assert f"has completed {completed}: nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize("killed", [1, 3, 4])
def test_resumed_run_counts_on(killed, tmp_path, monkeypatch, capsys):
    """A process that is killed when it has saved epoch `killed`, also the last."""
    folder, fit = str(tmp_path / "run"), Trainer.fit

    def fit_and_die(trainer):
        for metrics in fit(trainer):
            yield metrics
            if metrics.epoch == killed:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Results, "epochs_since_best", lambda results: 0)
        patched.setattr(Trainer, "fit", fit_and_die)
        assert main([*FLAGS, "--epochs", "8", "--patience", "2", "--output", folder]) == 130
    assert main(["--resume", folder]) == 0
    assert len(rows(tmp_path / "run")) == 4 and "stopped  after epoch 4/8, 2 epochs" in capsys.readouterr().out


def test_patience_may_change_on_resume(tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(Results, "add", lambda results, metrics: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*FLAGS, "--epochs", "8", "--output", folder])
    assert main(["--resume", folder, "--patience", "1"]) == 0
    assert len(rows(tmp_path / "run")) == 3
