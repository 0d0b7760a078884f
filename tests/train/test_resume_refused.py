"""States that cannot be resumed, and settings that contradict the state: refused, and nothing is changed."""

import random
from dataclasses import replace

import numpy as np
import pytest

from minigrad import serialize
from tests.train.small import info_of, interrupted, trainer_of
from train.__main__ import parse
from train.config.errors import InputError
from train.output import naming, resume


@pytest.fixture
def saved(dataset, tmp_path):
    settings = parse(["--epochs", "2", "--batch-size", "16", "--threads", "1", "--model-ema"])
    info = info_of(dataset, settings)
    interrupted(trainer_of(dataset, settings), 6, tmp_path / naming.STATE, info)
    return settings, tmp_path / naming.STATE, info


def changed(path, **changes):
    arrays, metadata = serialize.load(path)
    for name, change in changes.items():
        table = arrays if name in arrays else metadata
        table[name] = change(table.get(name))
    serialize.save(path, {name: x for name, x in arrays.items() if x is not None}, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model/head.bias": lambda x: x[:5]},
            r"head.bias is \(5,\) float32 in the file, \(10,\) float32 in this run",
        ),
        ({"model/head.bias": lambda x: x.astype(float)}, r"model/head.bias is \(10,\) float64 in the file"),
        ({"model/head.bias": lambda x: None}, r"model/head.bias is missing"),
        ({"ema/updates": lambda x: None}, r"ema/updates is missing"),
        ({"optimizer/0.0.m": lambda x: None}, r"optimizer/0.0.m is missing"),
        ({"optimizer/0.0.step": lambda x: x * 1.5}, r"optimizer/0.0.step is \(\) float64 in the file"),
        ({"order": lambda x: x + 1}, r"order of the images has indices out of range"),
        ({"order": lambda x: None}, r"not of the same step"),
        ({"schedule/t": lambda x: x + 1}, r"not of the same step"),
        ({"scaler/scale": lambda x: x * np.nan}, r"the loss scale is not above 0"),
        ({"optimizer/0.lr": lambda x: -x}, r"0.lr must not be negative"),
        ({"optimizer/0.has_state": lambda x: ~x}, r"'0.0.step' does not fit these parameters"),
        ({"ema/head.bias": lambda x: x * np.inf}, r"EMA: .*head.bias: has values that are NaN or infinite"),
        ({"position": lambda x: 99}, r"the state is at step 99 after 1 epoch, of 4 steps each"),
        ({"position": lambda x: True}, r"the state is at step True"),
        ({"draws": lambda x: x[:-1]}, r"draws must be 2 whole numbers"),
        ({"draws": lambda x: [*x, 0]}, r"an earlier version .*random numbers of each thread"),
        ({"draws": lambda x: [-1, 0]}, r"draws must be 2 whole numbers"),
        ({"skipped": lambda x: [1.0, 0]}, r"skipped must be 2 whole numbers"),
        ({"history": lambda x: []}, r"the state is at step|not of the same step"),
        ({"history": lambda x: [{}]}, r"the table of epochs is damaged"),
        ({"history": lambda x: [{**x[0], "lr": "no"}]}, r"has an entry that is not a number"),
        ({"lr": lambda x: None}, r"the learning rate or the time is not a finite number"),
        ({"data": lambda x: {**x, "images": [1, 2]}}, r"have changed since the state was saved"),
        ({"resume": lambda x: 2}, r"is something else, not the state of a run"),
        ({"settings": lambda x: 7}, r"is something else, not the state of a run"),
    ],
)
def test_invalid_state_is_refused_and_changes_nothing(dataset, saved, changes, message):
    settings, path, info = saved
    changed(path, **changes)
    trainer = trainer_of(dataset, settings)
    before = {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        resume.load(path, trainer, info)
    assert "\n" not in str(error.value)
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    assert (
        trainer.epoch == trainer.position == trainer.sampler.generator.draws == 0
        and not trainer.step.optimizer.state[0][0]
    )


def test_truncated_and_damaged_states_are_refused(dataset, saved):
    """A changed byte gives a one-line error, unless the byte is outside the arrays."""
    settings, path, info = saved
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(30):
        path.write_bytes(whole[: chance.randrange(len(whole))])
        with pytest.raises(InputError, match="cannot resume from"):
            resume.load(path, trainer_of(dataset, settings), info)
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            resume.load(path, trainer_of(dataset, settings), info)
        except InputError as error:
            assert "\n" not in str(error)


def test_resume_takes_settings_from_the_state(saved):
    settings, path, _ = saved
    for flags in (["--resume", path], ["--resume", path.parent], ["--resume", "auto", "--output", path.parent]):
        found = parse([*map(str, flags), "--batch-size", "16", "--data-dir", "elsewhere"])
        expected = replace(settings, data_dir="elsewhere", output=str(path.parent), resume=str(path))
        assert found == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "17"], "is of a run with --batch-size 16, not 17: omit the flag to continue the run"),
        (["--lr-find"], "is of a run with --lr-find no, not yes: omit the flag to continue the run"),
        (["--color-jitter", "0.4"], "is of a run with --color-jitter 0, not 0.4"),
        (["--model", "vit_tiny_cifar"], "is of a run with --model vit_nano_cifar, not vit_tiny_cifar"),
        (["--output", "/elsewhere"], "a run continues in the folder of its state; omit --output"),
    ],
)
def test_flags_that_contradict_the_state_are_refused(saved, flags, message):
    with pytest.raises(InputError, match=message):
        parse(["--resume", str(saved[1]), *flags])


def test_states_of_earlier_versions_are_resumed(saved):
    before = parse(["--resume", str(saved[1])])
    added = {"pretrained", "zero", "momentum", "patience", "color_jitter", "lr_find", "tensorboard"}
    changed(saved[1], settings=lambda x: {k: v for k, v in x.items() if k not in added})
    assert parse(["--resume", str(saved[1])]) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {k: v for k, v in x.items() if k != "seed"}, "of another version of this program: it lacks --seed"),
        (lambda x: {**x, "se\ned": 0}, r"program: it has the unknown setting 'se\\ned'$"),
        (lambda x: {**x, "epochs": "many"}, "its setting epochs must be a whole number, got 'many'"),
        (lambda x: {**x, "batch_size": -5}, "its setting batch_size must be a whole number at least 1, got -5"),
        (lambda x: {**x, "lr": None}, "its setting lr must be a number, got None"),
        (lambda x: {**x, "opt": "sdg"}, "opt must be one of adamw, adam, sgd, muon, got 'sdg'; did you mean sgd"),
    ],
)
def test_damaged_settings_are_refused(saved, change, message):
    changed(saved[1], settings=change)
    with pytest.raises(InputError, match=message):
        parse(["--resume", str(saved[1])])


def test_files_that_are_no_state_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        parse(["--resume", str(tmp_path / "none.npz")])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match=r"is something else, not the state of a run: the state is resume.npz in the"):
        parse(["--resume", str(tmp_path / "other.npz")])
    serialize.save(tmp_path / "best.npz", {}, {"model": {}})
    with pytest.raises(InputError, match=r"is a trained model, not the state"):
        parse(["--resume", str(tmp_path / "best.npz")])
    (tmp_path / "metrics.csv").write_text("epoch\n")
    with pytest.raises(InputError, match=r"holds the results of a run, but not its state"):
        parse(["--resume", "auto", "--output", str(tmp_path)])


def test_resume_auto_starts_a_run_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--resume", "auto"]) == parse([])
    for name in ("vit_nano_cifar-shapes", "vit_nano_cifar-shapes-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.csv").write_text("")
    with pytest.raises(InputError, match="runs/vit_nano_cifar-shapes-2 holds"):
        parse(["--resume", "auto"])
