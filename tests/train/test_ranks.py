"""Training on several ranks equals training in one process."""

import re
from argparse import Namespace

import numpy as np
import pytest

from minigrad import manual_seed
from minigrad.cuda_graph import GraphedStep
from tests.parallel.mpiexec import needs_mpi, run
from tests.parallel.ranks import run_threads
from tests.train.command import TINY, rows, train
from tests.train.ranks import MODELS
from tests.train.ranks import train as train_here
from tests.train.small import Small
from train.__main__ import parse
from train.config.errors import InputError
from train.create import check_batch_size, create_trainer
from train.ranks import _checksum

pytestmark = needs_mpi

CASES = [
    ("small", 3, 16, ["--grad-accum-steps", "2", "--opt", "muon"]),
    ("small", 4, 14, []),  # 104 images: the last batch has 6 images for 4 ranks, in pairs
    ("small", 3, 16, ["--zero", "--opt", "muon"]),
    ("vit", 2, 16, ["--layer-decay", "0.7"]),
    ("small", 2, 16, ["--zero", "--opt", "sgd", "--threads", "2"]),
    ("small", 2, 16, ["--opt", "adam", "--weight-decay", "0.1"]),
    ("vit", 3, 16, ["--zero"]),
    ("roadmap", 2, 16, ["--threads", "2"]),
]
FAMILIES = [pytest.param(model, ranks, 16, [], marks=pytest.mark.exhaustive) for model in MODELS for ranks in (2, 4)]


@pytest.mark.parametrize("model, ranks, batch_size, flags", [*CASES, *FAMILIES])
def test_ranks_equal_one_process(model, ranks, batch_size, flags, tmp_path):
    """With dropout, drop path, all augmentation, mixup, EMA, clipping, accumulation, threads, batch normalisation.

    The gradient of the bias of attention's keys is 0 up to rounding, and Adam divides it by its own size: so the
    tolerance is also absolute.
    """
    options = {"model": model, "steps": 9, "dtype": "float64", "batch_size": batch_size, "images": 104}
    losses, expected = train_here(Namespace(**options, flags=[*flags, "--threads", "1"]))
    file = tmp_path / "found.npz"
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    run(ranks, "-m", "tests.train.ranks", *given, f"--save={file}", "--", *flags, timeout=100)
    found = dict(np.load(file))
    np.testing.assert_allclose(found.pop("losses"), losses, rtol=1e-11)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-11, atol=1e-11, err_msg=name)


# `python -m train`, but one rank receives a signal after some steps of the run.
STOPPED = """
import os, signal, sys
from minigrad.parallel import world
from train.__main__ import main
from train.loop import Trainer

rank, steps, advance = int(sys.argv.pop(1)), int(sys.argv.pop(1)), Trainer.advance

def counted(trainer, index):
    advance(trainer, index)
    if trainer.schedule.t == steps and world().rank == rank:
        os.kill(os.getpid(), signal.SIGTERM)

Trainer.advance = counted
sys.exit(main())
"""


def test_run_continues_with_other_numbers_of_ranks(tmp_path):
    """4 ranks with a divided optimizer state begin, 2 with and without go on, one process ends: as one process."""
    flags = [*TINY, "--epochs", "2", "--mixup", "0.8", "--drop-path", "0.1", "--model-ema"]
    folder = str(tmp_path / "run")
    four = run(4, STOPPED, "3", "4", *flags, "--zero", "--output", folder, check=False)
    assert "stopped after epoch 0 and 4 of 10 steps of the next" in four.err[0] and four.code
    for zero, place in (("--zero", 7), ("--no-zero", 13)):
        two = run(2, STOPPED, "0", str(place), "--resume", folder, zero, check=False)
        assert f"stopped after epoch {place // 10} and {place % 10} of 10 steps of the next" in two.err[0] and two.code
    assert train("--resume", folder, cwd=tmp_path).returncode == 0
    assert train(*flags, "--output", "one", cwd=tmp_path).returncode == 0
    same_rows(tmp_path / "run", tmp_path / "one")


# `python -m train`, but in one call of the augmentation one rank gets an image with NaN.
POISONED = """
import sys
import numpy as np
from minigrad.parallel import world
from train.__main__ import main
from train.data.augment import Transform

rank, left, transform = int(sys.argv.pop(1)), int(sys.argv.pop(1)), Transform.__call__

def poisoned(self, images, labels):
    global left
    left -= 1
    images, targets = transform(self, images, labels)
    if world().rank == rank and not left:
        images[0] = np.nan
    return images, targets

Transform.__call__ = poisoned
sys.exit(main())
"""


def test_nan_on_one_rank_skips_the_step_on_all(tmp_path):
    flags = ["--epochs", "1", *TINY, "--skip-nonfinite", "--output", str(tmp_path / "run")]
    run(3, POISONED, "2", "4", *flags)
    assert [row["skipped"] for row in rows(tmp_path / "run")] == ["1"]


def test_nan_on_one_rank_ends_all(tmp_path):
    result = run(3, POISONED, "1", "4", "--epochs", "1", *TINY, "--output", str(tmp_path / "run"), check=False)
    assert result.code and "in step 4 of epoch 1/1" in "".join(result.err)


def same_rows(found, expected):
    for row, wanted in zip(rows(found), rows(expected), strict=True):
        for name in ("epoch", "lr", "train_loss", "train_acc", "test_loss", "test_acc", "skipped"):
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-5), name


def test_only_rank_0_prints_and_writes(tmp_path):
    result = run(2, "-m", "train", *TINY, "--epochs", "1", "--output", str(tmp_path / "run"))
    assert "ranks    2, each with a part of every batch\n" in result.out[0] and result.out[1] == result.err[1] == ""
    train("--epochs", "1", *TINY, "--output", "one", cwd=tmp_path)
    same_rows(tmp_path / "run", tmp_path / "one")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


def test_range_test_of_ranks_equals_one_process(tmp_path):
    flags = [*TINY, "--lr-find", "--opt", "sgd", "--output"]
    two = run(2, "-m", "train", *flags, str(tmp_path / "two"))
    assert train(*flags, "one", cwd=tmp_path).returncode == 0 and two.out[1] == two.err[1] == ""
    losses = [np.loadtxt(tmp_path / name / "lr_find.csv", delimiter=",", skiprows=1)[:60] for name in ("two", "one")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_patience_and_tensorboard_of_ranks(tmp_path):
    pytest.importorskip("tensorboardX")
    flags = [*TINY, "--epochs", "9", "--lr", "1e-9", "--patience", "1", "--tensorboard"]
    result = run(2, "-m", "train", *flags, "--output", str(tmp_path / "run"))
    assert "stopped  after epoch 2/9, 1 epoch without a better test accuracy" in result.out[0]
    assert len(rows(tmp_path / "run")) == 2 and len([*(tmp_path / "run").glob("events.*")]) == 1


def test_ranks_with_different_seeds_are_told_apart(tmp_path):
    code = (
        "import os, sys\nfrom train.__main__ import main\n"
        f"sys.exit(main([*{TINY}, '--epochs', '1', '--output', r'{tmp_path}/run', '--seed', os.environ['PMI_RANK']]))"
    )
    result = run(2, code, check=False)
    assert result.code and "rank 1 has another value than rank 0 for --seed: 1 instead of 0" in "".join(result.err)
    assert not (tmp_path / "run").exists()


def test_ranks_with_different_images_are_told_apart():
    x = np.arange(12).reshape(3, 4)
    assert _checksum([x]) == _checksum([x[:2], x[2:]]) == _checksum([x.T.copy().T])
    assert _checksum([x]) != _checksum([x[::-1]])


def test_step_of_two_ranks_is_captured(dataset, monkeypatch):
    """The rows of a rank are set within the step alone: the generators are the same before each call."""

    class CapturedError(Exception):
        pass

    def capture(graphed, inputs):
        raise CapturedError

    monkeypatch.setattr(GraphedStep, "_capture", capture)

    def work(world):
        manual_seed(0)
        step = create_trainer(parse(["--batch-size", "8", "--mixup", "1"]), Small(), dataset, world).step
        step.graphed = GraphedStep(step.compute, step.optimizer, warmup=2, generators=step.generators)
        with step.shards:
            for _ in range(2):
                step(np.arange(8))
            with pytest.raises(CapturedError):
                step(np.arange(8))

    run_threads(2, work)


def test_every_rank_needs_an_image():
    settings = parse(["--batch-size", "6"])
    check_batch_size(settings, False, 6)
    check_batch_size(settings, True, 3)
    check_batch_size(parse(["--batch-size", "1"]), True, 1)
    for mixes, ranks, least in ((False, 7, 7), (True, 4, 8)):
        with pytest.raises(InputError, match=re.escape(f"--batch-size 6 is divided between {ranks} ranks")) as error:
            check_batch_size(settings, mixes, ranks)
        assert f"use at least {least}" in str(error.value)
