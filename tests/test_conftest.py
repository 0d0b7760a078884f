"""What tests/conftest.py adds to pytest: folders run in parallel, named files in one process; `--exhaustive`."""

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
    """How many processes a run with these arguments gets."""
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
        monkeypatch.setenv(name, "")  # to be put back
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
def test_these_run_in_one_process(options):
    assert not workers(["tests"], **options) and "OMP_NUM_THREADS" not in os.environ


def test_named_files_run_in_one_process():
    assert not workers(["tests/autograd/test_tape.py::test_x", "tests/test_tensor.py"])


def test_the_number_that_is_asked_for_stands():
    assert workers(["tests"], numprocesses=3) == 3 and workers(["tests/autograd/test_tape.py"], numprocesses=3) == 3


@pytest.mark.parametrize("asked", [False, True])
def test_exhaustive_tests_run_if_asked_for(asked):
    plain, more = (SimpleNamespace(get_closest_marker=lambda name, found=found: found) for found in (None, "mark"))
    items, left_out = [plain, more], []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    pytest_collection_modifyitems(SimpleNamespace(getoption=lambda name: asked, hook=hook), items)
    assert (items, left_out) == (([plain, more], []) if asked else ([plain], [more]))


def collected(*options):
    """The tests that pytest, without pytest-xdist, collects for norm.cu's barriers."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--collect-only", *options]
    command += ["tests/cuda/test_norm.py", "-k", "barrier"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_exhaustive_runs_every_case():
    assert len(collected()) == 1
    assert len(collected("--exhaustive")) == len(barriers("norm.cu")) > 1
