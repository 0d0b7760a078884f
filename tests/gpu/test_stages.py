"""The parts of stages of `python -m tests.gpu`, without a GPU."""

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad.backend import cublas_lt, to_device
from minigrad.kernels.cuda.launch import Kernel
from tests.cuda.runner import needs_compiler
from tests.cupy_on_cpu import in_place_of_cupy
from tests.gpu.cases import CASES
from tests.gpu.stages import ceilings, contenders, precompile, profile, properties, smoke, steps, training
from tests.gpu.stages.contenders import Workload
from tests.gpu.stages.stage import cifar10, missing
from tests.gpu.stages.steps import ROUNDS, STEPS, WARMUP, compared


def test_epilogues_are_compared(monkeypatch):
    monkeypatch.setattr(ceilings, "gpu_seconds", lambda work: 1.0)

    def rows():
        return [row for name in ceilings.EPILOGUES for row in ceilings.epilogues(name, 9, 4, 6)]

    with in_place_of_cupy():
        found = rows()
        assert len(found) == 6 and all(row["value"] == 1 and not row["wrong"] for row in found)
        monkeypatch.setattr(cublas_lt.shared(), "matmul", lambda *_: True)  # computes nothing
        monkeypatch.setattr(sys.modules["cupy"], "empty", sys.modules["cupy"].zeros)
        assert all(row["wrong"] and row["error"] > 0.1 for row in rows())
        monkeypatch.setattr(cublas_lt, "shared", lambda: None)
        assert all(row["wrong"] and row["value"] == "no such product" for row in rows())


WORKLOAD = Workload("vit_nano_cifar", 2, 1.0, 1.0)


def contender(called, name, loss):
    return lambda workload: lambda: called.append(name) or loss


def test_contenders_are_measured_alone_and_then_in_turn():
    called = []
    names = {"a": 1.0, "b": 1.005, "c": 1.01}
    rows = list(compared(WORKLOAD, {name: contender(called, name, loss) for name, loss in names.items()}, 2.0))
    assert called == [name for name in names for _ in range(WARMUP + STEPS)] + (["a"] * STEPS + ["c"] * STEPS) * ROUNDS
    assert [row["what"].split(": ")[1] for row in rows] == ["a", "b", "c", "c to a"]
    assert rows[-1]["value"] > 0 and not any("wrong" in row for row in rows)
    assert all(row["images_s"] == pytest.approx(2 / row["value"] * 1e3) for row in rows[:3])


def test_failed_contender_does_not_affect_the_others(monkeypatch):
    called = []

    def missing(workload):
        raise ImportError("no such package")

    def broken(workload):
        raise ValueError("broken")

    first, *rows, last = compared(WORKLOAD, {"a": missing, "b": broken, "c": contender(called, "c", 1.0)}, 2.0)
    assert first["error"] == "ImportError: no such package" and "wrong" not in first
    assert rows[0]["error"] == "ValueError: broken" and rows[0]["wrong"]
    assert rows[1]["value"] > 0 and last["value"] == "failed" and len(called) == WARMUP + STEPS + ROUNDS * STEPS
    monkeypatch.setattr(steps, "alive", lambda: False)  # after the GPU is lost, the error is raised
    with pytest.raises(ValueError, match="broken"):
        list(compared(WORKLOAD, {"b": broken, "c": contender(called, "c", 1.0)}, 2.0))


@pytest.mark.parametrize("loss", [1.1, float("nan")])
def test_losses_that_differ_are_wrong(loss):
    rows = list(compared(WORKLOAD, {"a": contender([], "a", 1.0), "c": contender([], "c", loss)}, 2.0))
    assert rows[-1]["wrong"]


def test_pytest_results_are_counted_and_failures_named(tmp_path):
    """Input: two tests, and a file of tests on cupy_on_cpu."""
    (tmp_path / "test_cuda.py").write_text("def test_good(): pass\n\n\ndef test_bad(): assert not 'good'\n")
    rows = properties.tests((str(tmp_path / "test_cuda.py"), "tests/optim/test_ema.py"), workers=0)
    assert next(rows)["what"].endswith("::test_bad")
    assert next(rows)["value"] >= 3  # one test is test_good
    with pytest.raises(RuntimeError, match="ended with 1"):
        next(rows)


def test_failed_tests_have_their_reason(tmp_path):
    (tmp_path / "test_cuda.py").write_text("def test_bad(): assert 'cuda' == 'cpu', 'the reason'\n")
    row = next(properties.tests((str(tmp_path / "test_cuda.py"),), workers=0))
    assert "the reason" in row["error"] and "def test_bad" in row["traceback"] and row["wrong"]


@needs_compiler
@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_smoke_compares_losses_with_numpy(wrong, monkeypatch):
    losses = smoke.losses

    def changed(*arguments, **options):
        found = losses(*arguments, **options)
        return [found[0], found[1] + wrong * options["amp"], found[2]]

    def broken(model, overrides, device, *, amp, graphed):
        if graphed and not amp:
            raise ValueError("no graph")
        return changed(model, overrides, device, amp=amp, graphed=graphed)

    monkeypatch.setattr(smoke, "losses", broken)
    rows = list(smoke.smoke("vit_nano_cifar", smoke.SMALL["vit_nano_cifar"], SimpleNamespace(cpu=True)))
    assert [row["what"].split(": ")[1] for row in rows] == list(smoke.MODES)
    assert rows[1]["error"] == "ValueError: no graph" and "no graph" in rows[1]["traceback"]
    assert [bool(row.get("wrong")) for row in rows] == [False, True, bool(wrong), bool(wrong)]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("relu, bfloat16", "conv 3 x 3")])
def test_arrays_made_on_the_device_are_those_of_numpy(case):
    expected = case.arrays(small=True)
    with in_place_of_cupy():
        found = case.arrays(small=True, device="cuda")
        tensors = case.tensors(found, "cuda")
        for x, y, t in zip(expected, found, tensors, strict=True):
            np.testing.assert_array_equal(x, to_device(y, "cpu"))
            np.testing.assert_array_equal(x, to_device(t.data, "cpu"))
        np.testing.assert_array_equal(to_device(case.grad(tensors[0].data), "cpu"), case.grad(expected[0]))
        assert tensors[0].data.transpose(0, 2, 3, 1).flags.c_contiguous == case.images
    assert len(np.unique(expected[0].reshape(len(expected[0]), -1), axis=0)) == len(expected[0])


class Pool:
    """Compiles in this process, and notes which modules."""

    def __init__(self, *arguments):
        self.compiled = compiled

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, kernel):
        compiled.append(kernel)
        error = ValueError("does not compile") if kernel.file == "loss.cu" else None
        return SimpleNamespace(exception=lambda: error)


compiled: list[Kernel] = []


def test_each_module_is_compiled_once(monkeypatch):
    monkeypatch.setattr(precompile, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(precompile.Compiler, "owns", lambda self, x: hasattr(x, "_host"))
    compiled.clear()
    works = {name: lambda: precompile.one_step("vit_nano_cifar") for name in "ab"} | {"c": lambda: 1 / 0}
    with in_place_of_cupy(), np.errstate(all="ignore"):
        failure, bad, last = precompile.precompile(works)
    assert failure["what"] == "c" and failure["error"].startswith("ZeroDivisionError")
    assert bad["what"].startswith("loss.cu") and bad["error"] == "ValueError: does not compile"
    modules = [(kernel.file, kernel.constants) for kernel in compiled]
    assert last["value"] == len(modules) == len(set(modules)) and {"norm.cu", "optim.cu"} < {
        file for file, _ in modules
    }


def test_cifar10_is_unpacked_once(tmp_path):
    options = SimpleNamespace(cpu=True, data_dir=tmp_path / "data", scratch=tmp_path / "scratch")
    assert missing(("CIFAR-10", "json"), options) == ["CIFAR-10"] and cifar10(options) is None
    (tmp_path / "data").mkdir()
    script = "import os, sys; os.makedirs(f := f'{sys.argv[1]}/cifar-10-batches-py'); open(f'{f}/batches.meta', 'w')"
    (tmp_path / "data" / "unpack_cifar10.py").write_text(script)
    assert missing(("CIFAR-10",), options) == []
    for _ in range(2):  # (a second run of the script would raise)
        assert [row["value"] for row in precompile.unpack(options)] == [str(tmp_path / "scratch")]
    (tmp_path / "scratch" / "cifar-10-batches-py" / "batches.meta").unlink()  # unpacking was interrupted
    with pytest.raises(RuntimeError, match="File exists"):
        list(precompile.unpack(options))


SHORT = ["--device", "cpu", "--threads", "1", "--train-num-samples", "64", "--val-num-samples", "32", "--epochs", "2"]


def run_of(tmp_path, name="a, run", seconds=1000.0, flags=()):
    options = SimpleNamespace(deadline=time.time() + seconds, output=tmp_path)
    (row,) = training.trained(name, [*SHORT, *flags], tmp_path / name, options)
    return row


def test_every_epoch_is_in_metrics_csv(tmp_path):
    row = run_of(tmp_path)
    assert row["epochs"] == 2 and 0 <= row["value"] <= 1 and not row["stopped"] and row["seconds"] > 0
    (tmp_path / "metrics.csv").write_text("run,epoch\nb,1,0\na run,1,0\n")  # of an earlier run, and of this one
    assert run_of(tmp_path, flags=["--resume", "auto"])["seconds"] == row["seconds"]  # finished: not run again
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.startswith("run,epoch,") and [line[:5] for line in lines] == ["b,1,0", "a run", "a run"]
    with pytest.raises(RuntimeError, match="no model 'unknown'"):
        run_of(tmp_path, "c", flags=["--model", "unknown"])


def test_run_is_stopped_before_the_deadline_and_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STOPS", 1.0)
    assert run_of(tmp_path, seconds=0.5)["value"] == "no time left"
    long = ["--train-num-samples", "3000", "--epochs", "100", "--val-num-samples", "16", "--resume", "auto"]
    row = run_of(tmp_path, seconds=8.0, flags=long)
    assert row["stopped"] and row["epochs"] < 100
    assert run_of(tmp_path, seconds=8.0, flags=long)["epochs"] >= row["epochs"]


NCU = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed"
"","","nsecond","%"
"0","depthwise_correlate","1,234","50.5"
"1","attention_mma_backward","5,000","12.25"
"""


def test_table_of_nsight_compute_is_read():
    assert list(profile.kernels(NCU.splitlines())) == [
        {"what": "ncu: depthwise_correlate", "value": 1.234, "unit": "us", "memory_%": 50.5},
        {"what": "ncu: attention_mma_backward", "value": 5.0, "unit": "us", "memory_%": 12.25},
    ]


def test_slowest_cases_are_profiled(monkeypatch):
    times = {case.name: 1.0 + i for i, case in enumerate(CASES)}

    def time_of(case, arrays):
        return {"value": times[case.name], "backward_us": 1.0, "share_of_copy": 0.5}

    monkeypatch.setattr("tests.gpu.stages.kernels.time_of", time_of)
    monkeypatch.setattr(profile, "release", lambda: None)
    monkeypatch.setattr(type(CASES[0]), "arrays", lambda case, small, device: [])
    large = [case.name for case in CASES if case.dtype == "bfloat16"]
    assert sorted(profile.slowest()) == sorted(large[:2])  # the shorter forward, the larger the share of backward
    monkeypatch.setattr(subprocess, "run", lambda command, **_: SimpleNamespace(stdout=NCU, stderr="", returncode=0))
    assert [row["value"] for row in profile.profiled()] == [5.0, 1.234]
    monkeypatch.setattr(subprocess, "run", lambda command, **_: SimpleNamespace(stdout="", stderr="no", returncode=9))
    with pytest.raises(RuntimeError, match="ncu ended with 9: no"):
        list(profile.profiled())


def test_quick_weights_differ_by_name_and_row():
    weights = contenders.weights_of("vit_nano_cifar")
    assert not np.array_equal(contenders.stream("a", 9), contenders.stream("b", 9))
    matrix = weights["blocks.0.mlp.fc1.weight"]
    assert len(np.unique(matrix, axis=0)) == len(matrix) and matrix.dtype == np.float32
