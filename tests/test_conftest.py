"""tests/conftest.py: folders run in parallel, single files in one process; `--exhaustive`."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import MAX_WORKERS, pytest_cmdline_main, pytest_collection_modifyitems
from tests.cuda.runner import barriers

ROOT = Path(__file__).parent.parent


def workers(args, cores=2, plugin=True, worker=False, **options):
    """The number of processes for a run with these arguments."""
    off = {"numprocesses": None, "dist": "no", "tx": [], "usepdb": False, "trace": False, "capture": "fd"}
    config = SimpleNamespace(
        option=SimpleNamespace(**off | {"collectonly": False, "vacuous": False} | options),
        args=args,
        pluginmanager=SimpleNamespace(hasplugin=lambda name: plugin),
        hook=SimpleNamespace(pytest_xdist_auto_num_workers=lambda config: cores),
    )
    if worker:
        config.workerinput = {}
    pytest_cmdline_main(config)
    return config.option.numprocesses


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)


@pytest.mark.parametrize("args", [["tests"], ["tests/ops", "tests/autograd/test_tape.py"]], ids=str)
def test_folders_run_in_parallel(args):
    assert workers(args) == 2 and workers(args, cores=64) == MAX_WORKERS
    assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "options",
    [
        {"plugin": False}, {"worker": True}, {"cores": 1}, {"usepdb": True}, {"trace": True}, {"capture": "no"},
        {"collectonly": True}, {"numprocesses": 0},
    ],
    ids=str,
)  # fmt: skip
def test_some_runs_use_one_process(options):
    assert not workers(["tests"], **options) and "OMP_NUM_THREADS" not in os.environ


def test_named_files_run_in_one_process():
    assert not workers(["tests/autograd/test_tape.py::test_x", "tests/test_tensor.py"])


def test_given_number_of_processes_is_used():
    assert workers(["tests"], numprocesses=3) == 3 and workers(["tests/autograd/test_tape.py"], numprocesses=3) == 3


@pytest.mark.parametrize("given", [False, True])
def test_exhaustive_tests_run_only_with_the_option(given):
    plain, more = (SimpleNamespace(get_closest_marker=lambda name, found=found: found) for found in (None, "mark"))
    items, left_out = [plain, more], []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    pytest_collection_modifyitems(SimpleNamespace(getoption=lambda name: given, hook=hook), items)
    assert (items, left_out) == (([plain, more], []) if given else ([plain], [more]))


def collected(*options):
    """The tests of the barriers in norm.cu that pytest collects, without pytest-xdist."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--collect-only", *options]
    command += ["tests/cuda/test_norm.py", "-k", "barrier"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_exhaustive_collects_every_case():
    assert len(collected()) == 1
    assert len(collected("--exhaustive")) == len(barriers("norm.cu")) > 1
