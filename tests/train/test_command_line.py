"""`python -m train` in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest

from tests.train.command import ROOT, TINY, rows, train
from tests.train.hostile import write_cifar10
from train.__main__ import main


def test_help_is_fast_and_fits_80_columns(tmp_path):
    start = time.perf_counter()
    result = train("--help", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert time.perf_counter() - start < 5
    for flag in ("--model", "--dataset", "--data-dir", "--download", "--epochs", "--batch-size", "--lr", "--output"):
        assert flag in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_needs_no_numpy(tmp_path):
    code = "import sys, train.__main__ as m; m.parser().format_help(); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "vit_nano_cifr"], "--model vit_nano_cifr: there is no model .* did you mean vit_nano_cifar"),
        (["--dataset", "mnist"], "--dataset: must be one of shapes, cifar10, cifar100, folder, got 'mnist'"),
        (["--epochs", "0"], "--epochs: must be a whole number at least 1, got '0'"),
        (["--epochs", "two"], "--epochs: must be a whole number at least 1, got 'two'"),
        (["--batch-size", "-5"], "--batch-size: must be a whole number at least 1, got '-5'"),
        (["--lr", "0"], "--lr: must be a number above 0, got '0'"),
        (["--lr", "nan"], "--lr: must be a number above 0, got 'nan'"),
        (["--smoothing", "1"], "--smoothing: must be a number at least 0 and below 1, got '1'"),
        (["--drop-path", "-0.1"], "--drop-path: must be a number at least 0 and below 1, got '-0.1'"),
        (["--seed", "2147483648"], "--seed: must be a whole number from 0 to 2147483646, got '2147483648'"),
        (["--epochs", "2", "--warmup-epochs", "3"], "--warmup-epochs 3 is more than --epochs 2"),
        (["--model-ema-decay", "1"], "--model-ema-decay: must be a number at least 0 and below 1, got '1'"),
        (["--graph"], "--graph is not possible: CUDA graphs are for a GPU: --device cuda"),
        (["--skip-nonfinite", "--graph", "--device", "cuda"], "--device cuda: |a graph cannot: --no-skip-nonfinite"),
        (["--device", "tpu"], '--device tpu: device must be "cpu", "cuda" or "cuda:0"'),
        (["--layer-decay", "1.1"], "--layer-decay: must be a number above 0 and at most 1, got '1.1'"),
        (["--grad-accum-steps", "0"], "--grad-accum-steps: must be a whole number at least 1, got '0'"),
        (["--recipe", "slow"], "--recipe: must be one of none, laptop, fast, standard, long, got 'slow'"),
        (["--config", "missing.toml"], "cannot read --config missing.toml: No such file"),
        (["--config", "file", "--epochs", "0"], "--epochs: must be a whole number at least 1, got '0'"),
        (["--hflip", "2"], "--hflip: must be a number from 0 to 1, got '2'"),
        (["--aa", "rand-m9-x1"], 'augmentation: "x1" in "rand-m9-x1": a part is one of m, n, p'),
        (["--crop-padding", "100000"], "--crop-padding 100000 is larger than the images, 32 pixels"),
        (
            ["--crop-padding", "32", "--crop-padding-mode", "reflect"],
            "augmentation: reflection padding by 32 pixels needs",
        ),
        (["--opt", "AdamW"], "got 'AdamW'; did you mean adamw"),
        (["--opt", "SGD"], "got 'SGD'; did you mean sgd"),
        (["--opt", "admw"], "--opt: must be one of adamw, adam, sgd, muon, got 'admw'; did you mean adamw"),
        (["--opt", "sgd", "--momentum", "1"], "--momentum: must be a number at least 0 and below 1, got '1'"),
        (["--color-jitter", "0.4,0.4"], 'augmentation: color_jitter must be one number .*, got "0.4,0.4"'),
        (["--color-jitter", "0,0,0,1"], "augmentation: colour jitter: hue must be from 0"),
        (["--patience", "-1"], "--patience: must be a whole number at least 0, got '-1'"),
        (["--remode", "noise"], "--remode: must be one of pixel, rand, const, got 'noise'"),
        (["--cutout", "-1"], "--cutout: must be a whole number at least 0, got '-1'"),
        (["--aug-repeats", "0"], "--aug-repeats: must be a whole number at least 1, got '0'"),
        (["--no-such-flag"], r"unrecognized arguments: --no-such-flag \(--help lists all flags\)"),
        (["--epoch", "3"], r"unrecognized arguments: --epoch 3; did you mean --epochs\?"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--dataset", "cifar10"], "there is no cifar10 in data: add --download, or set --data-dir"),
        (["--output", "file"], "--output file is a file, not a folder: name another folder"),
        (["--output", "file/below"], "cannot write to --output file/below: Not a directory"),
        (["--output", "old"], "--output old holds the results of an earlier run"),
    ],
)
def test_input_error_is_one_line_and_exit_code_2(flags, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.csv").write_text("precious")
    monkeypatch.chdir(tmp_path)
    try:
        code = main(flags)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "old"]
    assert (tmp_path / "old" / "metrics.csv").read_text() == "precious"


@pytest.mark.parametrize("flags", [["--epochs", "0"], ["--dataset", "cifar10"]], ids=str)
def test_input_error_in_a_separate_process(flags, tmp_path):
    result = train(*flags, cwd=tmp_path)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)


def test_run_writes_all_result_files(tmp_path):
    result = train(*TINY, "--epochs", 3, "--lr", "2e-3", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    folder = tmp_path / "runs" / "vit_nano_cifar-shapes"
    assert {"args.toml", "best.npz", "last.npz", "metrics.csv", "metrics.jsonl"} <= {
        file.name for file in folder.iterdir()
    }
    history = rows(folder)
    assert list(history[0]) == [
        "epoch",
        "lr",
        "train_loss",
        "train_acc",
        "test_loss",
        "test_acc",
        "seconds",
        "images_per_second",
        "skipped",
    ]
    losses = [float(row["train_loss"]) for row in history]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    settings = tomllib.loads((folder / "args.toml").read_text())
    assert settings["epochs"] == 3 and settings["lr"] == 2e-3 and settings["model"] == "vit_nano_cifar"
    for part in (
        "vit_nano_cifar, 142,026 parameters",
        "200 training and 50 test images",
        "epoch 3/3",
        "  test loss",
        "best     ",
    ):
        assert part in result.stdout


def test_saved_settings_file_repeats_a_run(tmp_path):
    (tmp_path / "run.toml").write_text("epochs = 2\nhflip = 0.5\ncutmix = 1.0\nmodel-ema = true\n")
    first = train(*TINY, "--config", "run.toml", "--threads", 1, "--output", "first", cwd=tmp_path)
    again = train("--config", "first/args.toml", "--output", "again", cwd=tmp_path)
    assert first.returncode == again.returncode == 0
    one, two = (
        [{**row, "seconds": 0, "images_per_second": 0} for row in rows(tmp_path / name)] for name in ("first", "again")
    )
    assert len(one) == 2 and one == two
    occupied = train("--config", "first/args.toml", cwd=tmp_path)
    assert occupied.returncode == 2 and "--output first holds the results of an earlier run" in occupied.stderr


def test_ema_weights_are_saved(tmp_path):
    """With decay 0 the EMA equals the model. The epoch line says that the EMA was evaluated."""
    kept = []
    for flags in ([], ["--model-ema", "--model-ema-decay", 0], ["--model-ema"]):
        folder = tmp_path / str(len(kept))
        result = train(*TINY, "--epochs", 1, "--threads", 1, *flags, "--output", folder, cwd=tmp_path)
        assert result.returncode == 0 and result.stderr == ""
        assert ("EMA test loss" in result.stdout) == ("ema      decay" in result.stdout) == bool(flags)
        kept.append([dict(np.load(folder / f"{name}.npz")) for name in ("best", "last")])
    for plain, forgetful, average in zip(*kept, strict=True):
        np.testing.assert_allclose(forgetful["head.weight"], plain["head.weight"], rtol=1e-5, atol=1e-7)
        assert abs(average["head.weight"] - plain["head.weight"]).max() > 1e-4


def test_cifar_and_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    write_cifar10(tmp_path / "data" / "cifar-10-batches-py")
    result = train(
        "--dataset", "cifar10", "--epochs", 1, "--checkpoint-format", "safetensors", "--output", "out", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert {"best.safetensors", "last.safetensors"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_second_run_gets_a_new_folder(tmp_path):
    for _ in range(2):
        train("--train-num-samples", 10, "--val-num-samples", 10, "--epochs", 1, cwd=tmp_path)
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == ["vit_nano_cifar-shapes", "vit_nano_cifar-shapes-2"]


def test_runs_without_optional_packages(tmp_path):
    for name in ("tqdm", "matplotlib", "PIL", "safetensors", "threadpoolctl"):
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text("raise ImportError('not installed')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'hidden'}:{ROOT}"}
    command = [sys.executable, "-m", "train", "--train-num-samples", "20", "--val-num-samples", "20", "--epochs", "1"]
    result = subprocess.run(
        [*command, "--output", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stderr == ""
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        *("args.toml", "best.npz", "last.npz", "metrics.csv", "metrics.jsonl", "resume.npz")
    ]
    result = subprocess.run(
        [*command, "--checkpoint-format", "safetensors"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2 and "pip install safetensors" in result.stderr


def test_ctrl_c_saves_the_state(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train", *TINY, "--epochs", "1000", "--output", "out"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background processes ignore SIGINT
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.fullmatch(
        r"\nstopping after this step; a second signal stops immediately\n"
        r"stopped after epoch \d+ and \d+ of 10 steps of the next; --resume out continues from there\n",
        stderr,
    )
    with np.load(tmp_path / "out" / "last.npz") as file:
        assert "head.weight" in file.files


def test_divergence_error_names_op_and_fix(tmp_path):
    result = train(*TINY, "--epochs", 2, "--lr", "1e30", "--warmup-epochs", "0", "--clip-grad", "0", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    said = r"the loss became nan in step \d of epoch 1/2: \w+ \(in [\w.]+\) computed .* were finite.*try a lower --lr"
    assert re.search(said, line), line


def test_amp_without_ml_dtypes_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main(["--amp", "--output", str(tmp_path)]) == 2
    said = "python -m train: --amp: bfloat16 needs the package ml_dtypes: pip install ml_dtypes\n"
    assert capsys.readouterr().err == said
