"""Shared by all tests: worker processes, the number of examples, devices, and a clean state before each test."""

import os
from contextlib import nullcontext

import pytest
from hypothesis import HealthCheck, settings

import minigrad
from minigrad.backend import cublas, cuda_is_available
from tests.cupy_on_cpu import in_place_of_cupy
from tests.vacuous import Vacuous

# HYPOTHESIS_PROFILE=ci|deep runs more examples. A slow machine is no failure: no deadline, no health check of speed.
settings.register_profile("quick", max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", settings.get_profile("quick"), max_examples=3)  # python -m tests.gpu
settings.register_profile("ci", settings.get_profile("quick"), max_examples=40, derandomize=True)
settings.register_profile("deep", settings.get_profile("quick"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_report_header():
    return "cuda: CuPy" if cuda_is_available() else "cuda: no GPU, so NumPy arrays replace CuPy (tests/cupy_on_cpu)"


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request):
    """Run a test on the CPU and on the GPU. Without a GPU, NumPy arrays with CuPy's restrictions replace CuPy."""
    no_gpu = request.param == "cuda" and not cuda_is_available()
    with in_place_of_cupy() if no_gpu else nullcontext():
        yield request.param


def pytest_addoption(parser):
    parser.addoption("--without-fast-paths", action="store_true", help="run the reference implementation of every op")
    parser.addoption("--vacuous", action="store_true", help="report tests that prove nothing: tests/vacuous.py")
    parser.addoption("--exhaustive", action="store_true", help="run all cases of the slow tests, not a sample")


MAX_WORKERS = 8  # a worker needs up to 1 GiB of memory


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With pytest-xdist, run folders of tests in one process per core, each with one BLAS thread.

    Runs of named files, with a debugger or with `-n 0` use only this process.
    """
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    if option.numprocesses is None and not (option.tx or option.usepdb or option.trace or option.capture == "no"):
        if option.collectonly or option.vacuous or all(".py" in argument for argument in config.args):
            return
        workers = min(config.hook.pytest_xdist_auto_num_workers(config=config), MAX_WORKERS)
        option.numprocesses, option.dist = (workers, "worksteal") if workers > 1 else (None, option.dist)
    if option.numprocesses:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_collection_modifyitems(config, items):
    """Deselect the tests marked exhaustive, unless --exhaustive is given."""
    if not config.getoption("exhaustive"):
        deselected = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


@pytest.fixture(scope="session")
def exhaustive(pytestconfig):
    """True with --exhaustive: a test then runs all its cases, not a sample."""
    return pytestconfig.getoption("exhaustive")


@pytest.fixture(autouse=True, scope="session")
def fast_paths(pytestconfig):
    """Disable fast paths in all tests if --without-fast-paths is given."""
    with minigrad.without_fast_paths() if pytestconfig.getoption("--without-fast-paths") else nullcontext():
        yield


@pytest.fixture(autouse=True)
def clean_state():
    """Each test starts with gradients enabled, seed 0 and TF32 disabled."""
    minigrad.manual_seed(0)
    cublas.allow_tf32(False)
    with minigrad.enable_grad():
        yield


class WorstErrors:
    """For each op, the maximum relative errors against PyTorch in this run, and the number of examples."""

    def __init__(self) -> None:
        self.worst: dict[str, tuple[int, float, float]] = {}

    def add(self, op: str, value: float, gradient: float, examples: int = 1) -> None:
        count, worst_value, worst_gradient = self.worst.get(op, (0, 0.0, 0.0))
        self.worst[op] = (count + examples, max(worst_value, value), max(worst_gradient, gradient))


_WORST_ERRORS = pytest.StashKey[WorstErrors]()


def pytest_configure(config):
    config.stash[_WORST_ERRORS] = WorstErrors()
    if config.getoption("--vacuous"):
        config.pluginmanager.register(Vacuous())


@pytest.fixture(scope="session")
def worst_errors(pytestconfig):
    """Collects the errors against PyTorch, for the table at the end of the run."""
    return pytestconfig.stash[_WORST_ERRORS]


def pytest_sessionfinish(session):
    """A worker of pytest-xdist sends its errors to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worst_errors"] = session.config.stash[_WORST_ERRORS].worst


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for op, (count, value, gradient) in getattr(node, "workeroutput", {}).get("worst_errors", {}).items():
        node.config.stash[_WORST_ERRORS].add(op, value, gradient, count)


def pytest_terminal_summary(terminalreporter, config):
    worst = config.stash[_WORST_ERRORS].worst
    if worst:
        terminalreporter.section("error against PyTorch in float64, relative to the maximum entry (at least 1e-3)")
        terminalreporter.write_line(f"{'op':32} {'examples':>8} {'output':>12} {'gradients':>12}")
        for op, (count, value, gradient) in sorted(worst.items()):
            terminalreporter.write_line(f"{op:32} {count:8} {value:12.1e} {gradient:12.1e}")
