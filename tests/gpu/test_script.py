"""`python -m tests.gpu` without a GPU: what can run does, and a stage that hangs or fails does not stop the others."""

import json
import subprocess
import sys
from types import SimpleNamespace

from minigrad import cublas_lt
from minigrad import functional as F
from tests.cuda.runner import needs_compiler
from tests.cupy_on_cpu import in_place_of_cupy
from tests.gpu import __main__ as script
from tests.gpu import stages
from tests.gpu.cases import CASES
from tests.gpu.stages import ROUNDS, STAGES, STEPS, Stage, Workload, compared


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


def test_a_stage_has_a_time_limit(monkeypatch):
    monkeypatch.setitem(STAGES, "kernels", Stage(None, 0.2, without_gpu=True))
    result = script.run("kernels", SimpleNamespace(cpu=True, data_dir=None))
    assert result["end"] == "stopped after 0.2 s" and result["seconds"] < 5


def test_what_is_wrong_is_said(capsys):
    rows = [{"what": "a", "value": 1.0, "unit": "us"}, {"what": "b", "value": "failed", "wrong": True}]
    results = {
        "first": {"end": "done", "seconds": 1, "rows": rows},
        "second": {"end": "failed", "seconds": 2, "rows": []},
    }
    assert script.report(results) == ["first: b", "second"]
    assert "<-- WRONG" in capsys.readouterr().out


def test_all_stages_together_take_ten_minutes():
    assert sum(stage.seconds for stage in STAGES.values()) <= 600


def test_epilogues_are_compared(monkeypatch):
    monkeypatch.setattr(stages, "on_device", lambda work: 1.0)
    with in_place_of_cupy():
        rows = list(stages.epilogues(9, 4, 6))
        assert len(rows) == 6 and all(row["value"] == 1 and not row["wrong"] for row in rows)
        monkeypatch.setattr(cublas_lt.shared(), "matmul", lambda *_: True)  # whatever was in that memory
        monkeypatch.setattr(sys.modules["cupy"], "empty", sys.modules["cupy"].zeros)
        assert all(row["wrong"] and row["error"] > 0.1 for row in stages.epilogues(9, 4, 6))
        monkeypatch.setattr(cublas_lt, "shared", lambda: None)
        assert all(row["wrong"] and row["value"] == "no such product" for row in stages.epilogues(9, 4, 6))


def test_contenders_take_turns():
    called = []

    def contender(name, loss):
        return lambda workload: lambda: called.append(name) or loss

    def missing(workload):
        raise ImportError("no such package")

    workload = Workload("vit_nano_cifar", 2, 1.0, 1.0)
    row = compared(workload, {"a": contender("a", 1.0), "b": missing, "c": contender("c", 1.01)}, "c", 2.0)
    assert row["b"] == "ImportError: no such package" and row["value"] > 0 and "wrong" not in row
    assert called == ["a"] * 4 + ["c"] * 4 + (["a"] * STEPS + ["c"] * STEPS) * ROUNDS
    assert compared(workload, {"a": contender("a", 1.0), "c": contender("c", 2.0)}, "c", 2.0)["wrong"]
    assert compared(workload, {"a": missing}, "a", 2.0)["value"] == "failed"
