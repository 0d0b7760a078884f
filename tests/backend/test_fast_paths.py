"""Fast paths: registration, lookup, and `without_fast_paths`."""

import subprocess
import sys

import pytest

import minigrad
from minigrad.backend import fast_paths
from minigrad.backend.fast_paths import FAST_PATHS, fast_path, fast_path_of, fast_paths_of, with_fast_paths


def double(x):
    return x + x


@pytest.fixture
def registered():
    """Two fast paths of `double`: for integers, and for numbers above 10."""
    first = fast_path_of(double, supports=lambda x: type(x) is int)(lambda x: 2 * x)
    second = fast_path_of(double, supports=lambda x: x > 10)(lambda x: x * 2)
    yield first, second
    fast_paths._registered.pop(double)
    FAST_PATHS.pop(double, None)


def test_first_supporting_fast_path_is_chosen(registered, pytestconfig):
    found = [fast_path(double, x) for x in (11, 11.5, 1.5)]
    assert found == ([None] * 3 if pytestconfig.getoption("--without-fast-paths") else [*registered, None])


def test_decorated_method_runs_its_fast_path(pytestconfig):
    class Counter:
        @with_fast_paths
        def next(self, x):
            return x + 1

    fast_path_of(Counter.next, supports=lambda self, x: x > 10)(lambda self, x: -x)
    try:
        fast = not pytestconfig.getoption("--without-fast-paths")
        assert [Counter().next(x) for x in (1, 11)] == [2, -11 if fast else 12]
        with minigrad.without_fast_paths():
            assert Counter().next(11) == 12
    finally:
        fast_paths._registered.pop(Counter.next)
        FAST_PATHS.pop(Counter.next, None)


def test_blocks_without_fast_paths_may_be_nested(registered):
    before = dict(FAST_PATHS)
    with minigrad.without_fast_paths():
        with minigrad.without_fast_paths():
            pass
        assert not FAST_PATHS and fast_path(double, 11) is None and fast_paths_of(double) == registered
    assert before == FAST_PATHS


def test_command_line_option_disables_fast_paths(pytestconfig):
    assert bool(FAST_PATHS) != pytestconfig.getoption("--without-fast-paths")


def test_importing_minigrad_registers_fast_paths():
    code = "import minigrad; from minigrad.backend.fast_paths import FAST_PATHS; print(len(FAST_PATHS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 10
