"""A resumed run equals one that was never interrupted."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import models
from minigrad import manual_seed, serialize
from tests.cuda.runner import HAS_COMPILER
from tests.train.small import FLAGS as SMALL
from tests.train.small import Small
from train.__main__ import parse
from train.config.errors import InputError
from train.data import shapes
from train.loop import Stopped, Trainer
from train.output import naming, resume

ROOT = Path(__file__).parents[2]
TIMES = {"seconds", "images_per_second"}
AUGMENTED = ["--hflip", "0.5", "--crop-padding", "4", "--aa", "rand-m9-mstd0.5", "--reprob", "0.25"]
AUGMENTED += ["--mixup", "0.8", "--cutmix", "1", "--aug-repeats", "2"]


def trainer_of(dataset, settings, model=Small):
    manual_seed(settings.seed)
    return Trainer(model().to(settings.device), dataset, settings)


def finish(trainer, history=()):
    """Train to the end; returns the rows without times, with the final loss scale, and the weights."""
    history = [*history, *trainer.fit()]
    rows = [{k: v for k, v in asdict(row).items() if k not in TIMES} for row in history]
    return [*rows, trainer.step.scaler.state_dict()], trainer.model.state_dict()


def stop_after(trainer, steps):
    """Make `fit` stop after `steps` steps of the run."""
    step = trainer.advance

    def counted(index):
        step(index)
        if trainer.schedule.t == steps:
            trainer.stop.set()

    trainer.advance = counted


def interrupted(trainer, steps, path):
    """Train until `steps` steps are done, and save the state."""
    stop_after(trainer, steps)
    history = []
    with pytest.raises(Stopped):
        for metrics in trainer.fit():
            history.append(metrics)
    resume.save(path, trainer, history)


def residual():
    return models.create_model("roadmap_00_resnet50_cifar")


def hidden():
    return models.create_model("vit_nano_cifar", depth=1)


class Fragile(Small):
    """Returns Inf or NaN in training if the batch has an image of mean above 0.6."""

    def forward(self, x):
        logits = super().forward(x)
        return logits * np.inf if self.training and x.data.mean((1, 2, 3)).max() > 0.6 else logits


@pytest.mark.parametrize(
    ("flags", "model", "stops"),
    [
        (["--threads", "1"], Small, range(1, 8)),
        (["--threads", "2", *AUGMENTED], Small, [1, 3, 4, 6]),
        (["--model-ema", "--model-ema-decay", "0.7"], Small, [3, 4, 7]),
        (["--batch-size", "8", "--grad-accum-steps", "2"], Small, [3]),
        (["--amp", "--amp-dtype", "float16"], Small, [3]),
        (["--skip-nonfinite", "--threads", "1"], Fragile, range(1, 8)),
        (["--batch-size", "20"], residual, [2]),
        (["--opt", "muon", "--threads", "1"], hidden, range(1, 8)),
        (["--opt", "muon", "--threads", "2", "--model-ema", *AUGMENTED], hidden, [3, 6]),
    ],
    ids=["plain", "random", "average", "accumulated", "scaled", "skipped", "buffers", "muon", "muon and all"],
)
def test_resumed_run_equals_the_uninterrupted_run(dataset, flags, model, stops, tmp_path):
    settings = parse(["--epochs", "2", "--batch-size", "16", *flags])
    expected, weights = finish(trainer_of(dataset, settings, model))
    assert [row["skipped"] for row in expected[:2]] == [model is Fragile] * 2
    for steps in stops:
        path = tmp_path / naming.STATE
        interrupted(trainer_of(dataset, settings, model), steps, path)
        manual_seed(99)  # the result does not depend on the global seed
        again = trainer_of(dataset, settings, model)
        history = resume.load(path, again)
        assert (again.epoch, again.position) == divmod(steps, again.steps) or again.position == again.steps
        found, weights_again = finish(again, history)
        assert found == expected
        for name, value in weights.items():
            np.testing.assert_array_equal(weights_again[name].numpy(), value.numpy(), err_msg=f"{name}, {steps}")


def test_resume_reads_states_without_base_rates(dataset, tmp_path):
    settings, path = parse(["--epochs", "2", "--batch-size", "16", "--threads", "1"]), tmp_path / naming.STATE
    expected, _ = finish(trainer_of(dataset, settings))
    interrupted(trainer_of(dataset, settings), 3, path)
    arrays, metadata = serialize.load(path)
    older = {name: x for name, x in arrays.items() if not name.endswith((".has_state", ".initial_lr"))}
    assert len(older) == len(arrays) - 4
    serialize.save(path, older, metadata)
    again = trainer_of(dataset, settings)
    assert finish(again, resume.load(path, again))[0] == expected


def test_resume_after_every_step(dataset, tmp_path):
    """A new trainer after each step."""
    settings, path = (
        parse(["--epochs", "2", "--batch-size", "16", "--threads", "2", *AUGMENTED]),
        tmp_path / naming.STATE,
    )
    expected, weights = finish(trainer_of(dataset, settings))
    trainer = trainer_of(dataset, settings)
    for step in range(1, 8):
        interrupted_history = resume.load(path, trainer) if path.exists() else []
        stop_after(trainer, step)
        with pytest.raises(Stopped):
            for metrics in trainer.fit():
                interrupted_history.append(metrics)
        resume.save(path, trainer, interrupted_history)
        trainer = trainer_of(dataset, settings)
    found, weights_again = finish(trainer, resume.load(path, trainer))
    assert found == expected
    for name, value in weights.items():
        np.testing.assert_array_equal(weights_again[name].numpy(), value.numpy())


@pytest.mark.parametrize("steps", range(1, 7))
def test_cuda_graph_is_captured_for_full_steps_only(steps, device, tmp_path):
    """Wherever the run resumes, also at the smaller last step of an epoch."""
    if device == "cpu" or not HAS_COMPILER:
        pytest.skip("graphs are CUDA's")
    settings = parse(["--epochs", "2", "--batch-size", "4", "--device", device, "--graph"])
    data, path = shapes.load(22, 2), tmp_path / naming.STATE
    interrupted(trainer_of(data, settings), steps, path)
    again = trainer_of(data, settings)
    finish(again, resume.load(path, again))
    graphed = again.step.full_step
    assert graphed.graph is not None and graphed.kinds == [((4,), np.int64)]


def test_stop_during_evaluation(dataset, tmp_path):
    settings, path = parse(["--epochs", "1", "--batch-size", "30", "--validation-batch-size", "5"]), tmp_path / "r.npz"
    expected, _ = finish(trainer_of(dataset, settings))
    trainer, seen = trainer_of(dataset, settings), []

    def look(model, inputs, output):
        seen.append(model.training)
        if seen.count(False) == 2:
            trainer.stop.set()

    trainer.model.register_forward_hook(look)
    with pytest.raises(Stopped):
        list(trainer.fit())
    assert trainer.position == trainer.steps and seen.count(False) < 20
    resume.save(path, trainer, [])
    again = trainer_of(dataset, settings)
    assert finish(again, resume.load(path, again))[0] == expected


# Invalid states -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(dataset, tmp_path):
    settings = parse(["--epochs", "2", "--batch-size", "16", "--threads", "1", "--model-ema"])
    interrupted(trainer_of(dataset, settings), 6, tmp_path / naming.STATE)
    return settings, tmp_path / naming.STATE


def changed(path, **changes):
    arrays, metadata = serialize.load(path)
    for name, change in changes.items():
        table = arrays if name in arrays else metadata
        table[name] = change(table.get(name))
    serialize.save(path, {name: x for name, x in arrays.items() if x is not None}, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model/head.bias": lambda x: x[:5]}, r"model/head.bias is \(5,\) float32 in it, and \(10,\) float32 in this"),
        ({"model/head.bias": lambda x: x.astype(float)}, r"model/head.bias is \(10,\) float64 in it"),
        ({"model/head.bias": lambda x: None}, r"model/head.bias is missing"),
        ({"ema/updates": lambda x: None}, r"ema/updates is missing"),
        ({"optimizer/0.0.m": lambda x: None}, r"optimizer/0.0.m is missing"),
        ({"optimizer/0.0.step": lambda x: x * 1.5}, r"optimizer/0.0.step is \(\) float64 in it"),
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
    settings, path = saved
    changed(path, **changes)
    trainer = trainer_of(dataset, settings)
    before = {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        resume.load(path, trainer)
    assert "\n" not in str(error.value)
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    assert trainer.epoch == trainer.position == trainer.generator.draws == 0 and not trainer.step.optimizer.state[0][0]


def test_truncated_and_damaged_states_are_refused(dataset, saved):
    """A changed byte gives a one-line error, unless the byte is outside the arrays."""
    settings, path = saved
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(30):
        path.write_bytes(whole[: chance.randrange(len(whole))])
        with pytest.raises(InputError, match="cannot resume from"):
            resume.load(path, trainer_of(dataset, settings))
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            resume.load(path, trainer_of(dataset, settings))
        except InputError as error:
            assert "\n" not in str(error)


def test_resume_takes_settings_from_the_state(saved):
    settings, path = saved
    for flags in (["--resume", path], ["--resume", path.parent], ["--resume", "auto", "--output", path.parent]):
        found = parse([*map(str, flags), "--batch-size", "16", "--data-dir", "elsewhere"])
        expected = replace(settings, data_dir="elsewhere", output=str(path.parent), resume=str(path))
        assert found == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "17"], "is of a run with --batch-size 16, not 17: leave the flag out to continue the run"),
        (["--model", "vit_tiny_cifar"], "is of a run with --model vit_nano_cifar, not vit_tiny_cifar"),
        (["--output", "/elsewhere"], "a run continues in the folder of its state; leave --output out"),
    ],
)
def test_flags_that_contradict_the_state_are_refused(saved, flags, message):
    with pytest.raises(InputError, match=message):
        parse(["--resume", str(saved[1]), *flags])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {k: v for k, v in x.items() if k != "seed"}, "of another version of this program, .*--seed"),
        (lambda x: {**x, "epochs": "many"}, "its setting epochs must be a whole number, got 'many'"),
        (lambda x: {**x, "batch_size": -5}, "its setting batch_size must be at least 1, got -5"),
        (lambda x: {**x, "lr": None}, "its setting lr must be a number, got None"),
        (lambda x: {**x, "opt": "sgd"}, "its setting opt must be one of adamw, muon, got 'sgd'"),
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
    with pytest.raises(InputError, match=r"is something else, not the state of a run: that is the file resume"):
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


# Processes ------------------------------------------------------------------------------------------------------------

FLAGS = [*SMALL, "--epochs", "12", "--model-ema", "--crop-padding", "4"]

# As `python -m train`, but the process kills itself at its N-th open, rename or remove in the output folder.
KILLED_AT_FILE = """
import os, signal, sys
from train.__main__ import main

left, folder = int(sys.argv.pop(1)), sys.argv[2]

def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(folder):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
sys.exit(main())
"""


def start(folder, *flags, how=("-m", "train"), largest_file=resource.RLIM_INFINITY):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background processes ignore SIGINT
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    command = [sys.executable, "-W", "error", *how, "--output", folder, "--resume", "auto", *flags]
    return subprocess.Popen(
        [*map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def to_the_end(folder, *flags):
    process = start(folder, *flags)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out


def table(folder):
    """The lines of metrics.csv without the times."""
    with (folder / "metrics.csv").open(newline="") as file:
        lines = [line.rstrip("\r\n").split(",") for line in file]
    kept = [i for i, name in enumerate(lines[0]) if name not in TIMES]
    return [",".join(line[i] for i in kept) for line in lines]


def same_results(folder, expected):
    assert table(folder) == table(expected)
    for name in ("best.npz", "last.npz"):
        (found, told), (wanted, tells) = serialize.load(folder / name), serialize.load(expected / name)
        assert told["epoch"] == tells["epoch"] and set(found) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
    assert not list(folder.glob("*.part"))
    assert resume.is_finished(folder / naming.STATE)


def loads(folder):
    """Check the files of a killed process: each one loads, and the table has no duplicate or cut row."""
    for name in ("best.npz", "last.npz", naming.STATE):
        if (folder / name).exists():
            serialize.load(folder / name)
    if (folder / "metrics.csv").exists():
        rows = serialize.load_metadata(folder / naming.STATE)["history"]
        epochs = [line.split(",")[0] for line in table(folder)[1:]]
        assert epochs == [str(row["epoch"]) for row in rows][: len(epochs)] and len(rows) <= len(epochs) + 1


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    to_the_end(folder, *FLAGS)
    return folder


def test_killed_at_any_time_run_resumes(uninterrupted, tmp_path, exhaustive):
    chance, kills, run, wanted = random.Random(1), 0, 0, 12 if exhaustive else 3
    while kills < wanted or (tmp_path / str(run)).exists():
        process = start(tmp_path / str(run), *FLAGS)
        if kills < wanted:
            for line in process.stdout:
                if line.startswith("output"):
                    break
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        process.communicate(timeout=100)
        kills += process.returncode == -signal.SIGKILL
        loads(tmp_path / str(run))
        if process.returncode == 0:
            same_results(tmp_path / str(run), uninterrupted)
            run += 1


def test_killed_at_any_file_operation_run_resumes(uninterrupted, tmp_path, exhaustive):
    chance, starts, code = random.Random(2), 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        last = chance.randint(1, 60) if exhaustive or starts < 4 else 1000  # more than there are
        process = start(tmp_path / "run", *FLAGS, how=("-c", KILLED_AT_FILE, last))
        _, err = process.communicate(timeout=100)
        code, starts = process.returncode, starts + 1
        loads(tmp_path / "run")
    assert code == 0 and starts > (5 if exhaustive else 4), err
    same_results(tmp_path / "run", uninterrupted)


def test_folder_is_locked_by_one_process(uninterrupted, tmp_path):
    pytest.importorskip("fcntl")
    folder = tmp_path / "run"
    first = start(folder, *FLAGS)
    for line in first.stdout:
        if line.startswith("output"):
            break
    first.send_signal(signal.SIGSTOP)
    second = start(folder, *FLAGS)
    _, err = second.communicate(timeout=100)
    assert second.returncode == 2
    message = "another process is training there; wait for its end, or name another folder\n"
    assert err == f"python -m train: --output {folder}: {message}"
    first.kill()  # which releases its lock
    first.communicate(timeout=100)
    to_the_end(folder, *FLAGS)
    same_results(folder, uninterrupted)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive)]
)
def test_signal_saves_the_state_after_the_step(number, code, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *FLAGS)
    for line in process.stdout:
        if line.startswith("epoch  3"):
            break
    time.sleep(0.03)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    said = err.split("\n")
    assert said[1] == "stopping after this step; a second signal stops immediately" and said[2].startswith(
        "stopped after epoch "
    )
    assert said[2].endswith(f"--resume {folder} continues from there")
    assert "resume   after epoch " in to_the_end(folder)
    same_results(folder, uninterrupted)
    assert to_the_end(folder) == f"finished {folder} has completed 12 epochs: nothing to resume\n"


def test_full_disk_is_one_line_and_keeps_old_files(uninterrupted, tmp_path, exhaustive):
    """A limit on the file size stands for a disk that becomes full while a file is written."""
    folder = tmp_path / "run"
    weights = (uninterrupted / "last.npz").stat().st_size

    def fails(limit):
        process = start(folder, *FLAGS, largest_file=limit)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 2
        assert err == f"python -m train: cannot write to --output {folder}: File too large\n"
        assert not list(folder.glob("*.part"))
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "args.toml"}

    for limit in (1000, weights) if exhaustive else (weights,):
        assert fails(limit) == {}, limit
    process = start(folder, *FLAGS)
    for line in process.stdout:
        if line.startswith("epoch  3"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    kept = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "args.toml"}
    for limit in (1000, weights // 2, weights + 10_000, 3 * weights) if exhaustive else (weights + 10_000,):
        assert fails(limit) == kept, limit
    to_the_end(folder)
    same_results(folder, uninterrupted)
