"""`python -m tests.gpu` without a GPU: stages that need none pass; a failure or a timeout does not stop the others."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigrad import functional as F
from minigrad.backend import cublas_lt
from tests.cuda.runner import needs_compiler
from tests.cupy_on_cpu import in_place_of_cupy
from tests.gpu import __main__ as script
from tests.gpu.cases import CASES
from tests.gpu.stages import STAGES, Stage, Workload, ceilings, properties, steps
from tests.gpu.stages.steps import ROUNDS, STEPS, WARMUP, compared


@needs_compiler
def test_without_a_gpu(tmp_path):
    command = [sys.executable, "-m", "tests.gpu", "--cpu", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == [name for name, stage in STAGES.items() if stage.without_gpu]
    assert all(result["end"] == "done" for result in results.values())
    for case, row in zip(CASES, results["kernels"]["rows"], strict=True):
        assert row["what"] == case.name and ".cuda." in row["by"] and "wrong" not in row
        assert row["value"] < case.limit and (row["value"] > 0 or case.run is F.relu)


STAGE = """
import os, sys, time
from tests.gpu import __main__ as script
from tests.gpu.stages import STAGES, Stage

def good():
    yield {"what": "good", "value": 1.5, "unit": "x"}

def raises():
    yield {"what": "half", "value": 1.0}
    raise ValueError("it is broken")

def loses_the_gpu():
    script.alive = lambda: False
    raise RuntimeError("illegal address")
    yield

def crashes():
    print("its last message", file=sys.stderr, flush=True)
    os.abort()
    yield

def hangs():
    time.sleep(100)
    yield

PARTS = {name: globals()[name] for name in os.environ["PARTS"].split()}
STAGES["kernels"] = Stage(lambda options: PARTS, 20, 20, without_gpu=True)
sys.exit(script.main())
"""


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Run a stage of these parts. Returns its result, which is saved after each row."""

    def run(parts, seconds=20.0, part_seconds=20.0):
        (tmp_path / "stage.py").write_text(STAGE)
        monkeypatch.setenv("PARTS", parts)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        monkeypatch.setattr(script, "COMMAND", [sys.executable, str(tmp_path / "stage.py")])
        monkeypatch.setitem(STAGES, "kernels", Stage(None, seconds, part_seconds, without_gpu=True))
        result, kept = {"rows": [], "errors": ""}, []
        script.run("kernels", SimpleNamespace(cpu=True, data_dir=None), result, lambda: kept.append(1))
        assert len(kept) >= len([row for row in result["rows"] if row["value"] != "failed"])
        return result

    return run


def test_failed_part_is_a_row_and_the_next_part_runs(stage):
    result = stage("raises loses_the_gpu good crashes")
    assert result["end"] == "done"
    assert [(row["what"], row["value"], row.get("wrong", False)) for row in result["rows"]] == [
        ("half", 1.0, False), ("raises", "failed", True), ("loses_the_gpu", "failed", True), ("good", 1.5, False),
        ("crashes", "failed", True),
    ]  # fmt: skip
    raised, lost, crashed = (row["error"] for row in result["rows"] if "error" in row)
    assert (raised, lost) == ("ValueError: it is broken", "RuntimeError: illegal address")
    assert "its last message" in crashed


def test_a_part_has_a_time_limit(stage):
    result = stage("hangs good", part_seconds=1.0)
    assert result["end"] == "done" and [row["what"] for row in result["rows"]] == ["hangs", "good"]
    assert "took too long" in result["rows"][0]["error"] and result["rows"][0]["wrong"]


def test_a_stage_has_a_time_limit(stage):
    result = stage("good hangs crashes", seconds=2.0)
    assert result["end"] == "stopped after 2.0 s" and result["seconds"] < 10
    assert [row["what"] for row in result["rows"]] == ["good"]


def test_stage_that_cannot_start_is_failed(stage):
    result = stage("unknown")
    assert result["end"] == "failed" and "KeyError" in result["errors"] and not result["rows"]


def test_report_lists_what_is_wrong(capsys):
    rows = [{"what": "a", "value": 1.0, "unit": "us"}, {"what": "b", "value": "failed", "wrong": True}]
    results = {
        "first": {"end": "done", "seconds": 1, "rows": rows},
        "second": {"end": "failed", "seconds": 2, "rows": []},
    }
    assert script.report(results) == ["first: b", "second"]
    assert "<-- WRONG" in capsys.readouterr().out


def test_time_limits_add_up_to_ten_minutes():
    """The sum includes half a minute for the program that starts the stages."""
    assert sum(stage.seconds for stage in STAGES.values()) <= 570


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
