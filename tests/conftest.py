"""What every test shares: workers, how much is tried, the devices, and a clean state before each test."""

import os
from contextlib import nullcontext

import pytest
from hypothesis import HealthCheck, settings

import minigrad
from minigrad.backend import cublas, cuda_is_available
from tests.cupy_on_cpu import in_place_of_cupy
from tests.vacuous import Vacuous

# HYPOTHESIS_PROFILE=ci|deep draws more. A slow or shared machine is no defect: no deadline, no health check on speed.
settings.register_profile("quick", max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("quick"), max_examples=40, derandomize=True)
settings.register_profile("deep", settings.get_profile("quick"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_report_header():
    return "cuda: CuPy" if cuda_is_available() else "cuda: a stand-in for CuPy (tests/cupy_on_cpu), as there is no GPU"


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request):
    """Each test that asks for it runs on the CPU and on the GPU or, where there is none, on arrays as strict."""
    stand_in = request.param == "cuda" and not cuda_is_available()
    with in_place_of_cupy() if stand_in else nullcontext():
        yield request.param


def pytest_addoption(parser):
    parser.addoption("--without-fast-paths", action="store_true", help="run the reference implementation of every op")
    parser.addoption("--vacuous", action="store_true", help="report tests that prove nothing: tests/vacuous.py")
    parser.addoption("--exhaustive", action="store_true", help="run all cases of the slow tests, not a sample")


MOST_WORKERS = 8  # each takes up to 1 GiB


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With pytest-xdist, run folders of tests in one process for each core, each with one BLAS thread.

    A run of named files stays in this process, as does one with a debugger, and any run with `-n 0`.
    """
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    if option.numprocesses is None and not (option.tx or option.usepdb or option.trace or option.capture == "no"):
        if option.collectonly or option.vacuous or all(".py" in argument for argument in config.args):
            return
        workers = min(config.hook.pytest_xdist_auto_num_workers(config=config), MOST_WORKERS)
        option.numprocesses, option.dist = (workers, "worksteal") if workers > 1 else (None, option.dist)
    if option.numprocesses:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_collection_modifyitems(config, items):
    """Deselect the tests marked exhaustive, unless --exhaustive is given."""
    if not config.getoption("exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


@pytest.fixture(scope="session")
def exhaustive(pytestconfig):
    """Whether --exhaustive is given: a test then tries all cases, not a sample."""
    return pytestconfig.getoption("exhaustive")


@pytest.fixture(autouse=True, scope="session")
def fast_paths(pytestconfig):
    """On, as for users, or off throughout."""
    with minigrad.without_fast_paths() if pytestconfig.getoption("--without-fast-paths") else nullcontext():
        yield


@pytest.fixture(autouse=True)
def clean_state():
    """Recording on, seed 0, no TF32, and no test leaves it otherwise."""
    minigrad.manual_seed(0)
    cublas.allow_tf32(False)
    with minigrad.enable_grad():
        yield


class Parity:
    """The worst differences from PyTorch seen in this run, and over how many examples, for each op."""

    def __init__(self) -> None:
        self.worst: dict[str, tuple[int, float, float]] = {}

    def add(self, op: str, value: float, gradient: float, examples: int = 1) -> None:
        count, worst_value, worst_gradient = self.worst.get(op, (0, 0.0, 0.0))
        self.worst[op] = (count + examples, max(worst_value, value), max(worst_gradient, gradient))


_PARITY = pytest.StashKey[Parity]()


def pytest_configure(config):
    config.stash[_PARITY] = Parity()
    if config.getoption("--vacuous"):
        config.pluginmanager.register(Vacuous())


@pytest.fixture(scope="session")
def parity(pytestconfig):
    """Where the comparison with PyTorch notes what it saw."""
    return pytestconfig.stash[_PARITY]


def pytest_sessionfinish(session):
    """A worker of pytest-xdist sends its differences to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = session.config.stash[_PARITY].worst


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for op, (count, value, gradient) in getattr(node, "workeroutput", {}).get("parity", {}).items():
        node.config.stash[_PARITY].add(op, value, gradient, count)


def pytest_terminal_summary(terminalreporter, config):
    worst = config.stash[_PARITY].worst
    if worst:
        terminalreporter.section("difference from PyTorch, float64, relative to the largest entry (at least 1e-3)")
        terminalreporter.write_line(f"{'op':32} {'examples':>8} {'worst value':>12} {'worst gradient':>15}")
        for op, (count, value, gradient) in sorted(worst.items()):
            terminalreporter.write_line(f"{op:32} {count:8} {value:12.1e} {gradient:15.1e}")
