"""`python -m tests.gpu` without a GPU: stages that need none pass; a failure or a timeout does not stop the others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad import functional as F
from tests.cuda.runner import needs_compiler
from tests.gpu import __main__ as script
from tests.gpu import processes
from tests.gpu.cases import CASES
from tests.gpu.output import FILES, Output
from tests.gpu.stages import COMMANDS, SECONDS, STAGES, Stage, failed, longest, smoke


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
    found = {row["what"]: (row["value"], row["losses"]) for row in results["smoke"]["rows"]}
    assert list(found) == [f"{model}: {mode}" for model in smoke.SMALL for mode in smoke.MODES]
    for model in smoke.SMALL:
        assert found[f"{model}: bfloat16"] == found[f"{model}: bfloat16 graph"]
        assert found[f"{model}: bfloat16"][0] > found[f"{model}: float32"][0]


STAGE = """
import os, sys, time
from tests.gpu import __main__ as script, processes
from tests.gpu.stages import STAGES, Stage

def good():
    print("{a message}")
    print('{"a": "message"}', flush=True)
    yield {"what": "good", "value": 1.5, "unit": "x"}

def raises():
    yield {"what": "half", "value": 1.0}
    raise ValueError("it is broken")

def loses_the_gpu():
    processes.alive = lambda: False
    raise RuntimeError("illegal address")
    yield

def crashes():
    print("its first message", "." * 900, "its last message", file=sys.stderr, flush=True)
    os.abort()
    yield

def hangs():
    time.sleep(100)
    yield

def naps():
    time.sleep(1.5)
    yield {"what": "naps", "value": time.time()}

PARTS = {name: globals()[name] for name in os.environ["PARTS"].split()}
STAGES["kernels"] = Stage(lambda options: PARTS, 20, 20)
STAGES["unpack"] = Stage(lambda options: {"naps": naps}, 20, 20)
sys.exit(script.main())
"""


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Replace the stages `kernels`, by one of these parts, and `unpack`. Returns the command line's function, which
    returns the results."""

    def prepare(parts, *arguments, seconds=20.0, part_seconds=20.0, needs=()):
        (tmp_path / "stage.py").write_text(STAGE)
        monkeypatch.setenv("PARTS", parts)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        monkeypatch.setattr(processes, "COMMAND", [sys.executable, str(tmp_path / "stage.py")])
        kernels = Stage(None, seconds, part_seconds, needs=needs, without_gpu=True, waits=True)
        monkeypatch.setitem(STAGES, "kernels", kernels)
        monkeypatch.setitem(STAGES, "unpack", Stage(None, 20, 20, needs=(), without_gpu=True, background=True))
        monkeypatch.setattr(
            "sys.argv", ["x", "--output", str(tmp_path / "out"), *(arguments or ["--stages", "kernels"])]
        )
        monkeypatch.setattr(script, "SCRATCH", tmp_path / "scratch")
        monkeypatch.setattr(script, "SHORTEST", 0.5)
        monkeypatch.chdir(tmp_path)
        code = script.main()
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert code == (
            1
            if any(row.get("wrong") for r in results.values() for row in r["rows"])
            or [r for r in results.values() if r["end"].startswith(("failed", "stopped"))]
            else 0
        )
        return results["kernels"]

    return prepare


def errors(tmp_path):
    return (tmp_path / "out" / "errors.txt").read_text()


def test_failed_part_is_a_row_and_the_next_part_runs(stage, tmp_path):
    result = stage("raises loses_the_gpu good crashes")
    assert result["end"] == "done"
    assert [(row["what"], row["value"], row.get("wrong", False)) for row in result["rows"]] == [
        ("half", 1.0, False), ("raises", "failed", True), ("loses_the_gpu", "failed", True), ("good", 1.5, False),
        ("crashes", "failed", True),
    ]  # fmt: skip
    raised, lost, crashed = (row["error"] for row in result["rows"] if "error" in row)
    assert (raised, lost) == ("ValueError: it is broken", "RuntimeError: illegal address")
    assert "its last message" in crashed and "its first message" not in crashed
    text = errors(tmp_path)
    assert text.index("== kernels: raises\nTraceback") < text.index('raise ValueError("it is broken")\nValueError')
    assert "its first message" in text and all("traceback" not in row for row in result["rows"])


def test_a_part_has_a_time_limit(stage):
    result = stage("hangs good", part_seconds=1.0)
    assert result["end"] == "done" and [row["what"] for row in result["rows"]] == ["hangs", "good"]
    assert "took too long" in result["rows"][0]["error"] and result["rows"][0]["wrong"]


def test_a_stage_has_a_time_limit(stage):
    result = stage("good hangs crashes", "--stages", "kernels", "--seconds", "2", seconds=1.0)
    assert result["end"] == "stopped after 2 s" and 1 < result["seconds"] < 8  # the time left is used
    assert [row["what"] for row in result["rows"]] == ["good"]


def test_later_stages_get_what_is_left(stage):
    result = stage("hangs", "--stages", "kernels", "environment", "--seconds", "17", "--cpu", seconds=1.0)
    assert result["end"] == "stopped after 2 s"  # 15 s are for the stage `environment`
    result = stage("good", "--stages", "kernels", "--seconds", "0.4")
    assert result["end"] == "not run: no time left" and not result["rows"]


def test_stage_that_cannot_start_is_failed(stage, tmp_path):
    result = stage("unknown")
    assert result["end"] == "failed" and "KeyError" in errors(tmp_path) and not result["rows"]


def test_stage_says_what_it_needs(stage):
    result = stage("good", needs=("no_such_package", "json", "CIFAR-10"))
    assert result["end"] == "not run: needs no_such_package, CIFAR-10" and not result["rows"]


def test_a_stage_waits_for_those_in_the_background(stage, tmp_path):
    result = stage("naps", "--stages", "unpack", "environment", "kernels", "--cpu")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["rows"][0]["value"] - results["unpack"]["rows"][0]["value"] > 1.5
    assert results["environment"]["end"] == "done" and results["environment"]["rows"]


def test_files_are_written_after_each_row(tmp_path, capsys):
    output = Output(tmp_path, "--first")
    for name in ("first", "second"):
        output.begin(name)
    output.add("first", {"what": "a", "value": 1.0, "unit": "us"})
    for number in range(3):
        try:
            raise ValueError(f"problem {number // 2}")
        except ValueError as error:
            output.add("first", failed(f"b{number}", error))
    output.add("first", failed("c", ImportError("no torch")))
    assert len(json.loads((tmp_path / "results.json").read_text())["first"]["rows"]) == 5
    assert "b1" in (tmp_path / "summary.txt").read_text()
    output.end("first", "done")
    output.end("second", "stopped after 3 s", 3.0, "its last words")
    assert output.wrong() == ["first: b0", "first: b1", "first: b2", "second"]
    text = (tmp_path / "errors.txt").read_text()  # each error once, and none of a missing package
    assert text.count("Traceback") == 2 and "== first: b0" in text and "== first: b2" in text
    assert "its last words" in text and "no torch" not in text
    assert "<-- WRONG" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} <= set(FILES) and len(FILES) <= 8


def test_time_limits_fit_the_commands():
    """A machine is lent for commands of 500 s and 180 s; the rest is for starting Python and stopping processes."""
    assert longest(COMMANDS["first"]) <= 480 and longest(COMMANDS["second"]) <= 170
    assert (
        longest(COMMANDS["first"]) <= SECONDS["first"] <= 495
        and longest(COMMANDS["second"]) <= SECONDS["second"] <= 178
    )
    assert {name for names in COMMANDS.values() for name in names} == set(STAGES)
    for stage in STAGES.values():
        assert stage.part_seconds <= stage.seconds and not (stage.background and stage.waits)


def test_readme_states_stages_and_limits():
    rows = re.findall(
        r"^\| (\w*) ?\| ([\w, ]+) \| ([\w, ]+) \|", (Path(__file__).parent / "README.md").read_text(), re.M
    )
    stated: dict[str, list[str]] = {}
    for command, names, seconds in rows[1:]:
        stated.setdefault(command or list(stated)[-1], []).extend(names.split(", "))
        for stage in map(STAGES.__getitem__, names.split(", ")):
            beside = ", beside" if stage.background else ""
            assert seconds in (f"{stage.seconds}{beside}", "the rest")
    assert {command: tuple(names) for command, names in stated.items()} == COMMANDS


def test_longest_counts_stages_in_the_background():
    names = ("environment", "unpack", "ceilings")  # 15, 60 beside the next, and 25 after both
    assert [STAGES[name].seconds for name in names] == [15, 60, 25]
    assert longest(names) == 15 + 60 + 25 and longest(names[:2]) == 75 and longest(("unpack", "environment")) == 60
