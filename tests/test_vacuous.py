"""pytest --vacuous finds tests that prove nothing, and no others."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.vacuous import EXCLUDED

TESTS = Path(__file__).parent
EXAMPLES = """
import numpy as np

def test_without_an_assertion():
    sorted([])

def test_two_empty_lists():
    found = [x for x in (1, 2) if x > 2]
    assert found == sorted(found)

def test_all_of_nothing():
    assert all(x > 0 for x in range(0))

def test_two_empty_arrays():
    np.testing.assert_allclose([], np.linspace(0, 1, 0))

def test_loop_over_nothing():
    assert sorted([2, 1]) == [1, 2]
    for x in range(0):
        assert x > 0

def test_that_nothing_is_found():
    found = [x for x in (1, 2) if x > 2]
    assert found == []
    assert all(x > 0 for x in (1, 2))
    np.testing.assert_array_equal(np.zeros((0, 4)), np.ones((0, 4)))
"""
CONFTEST = """
from tests.vacuous import Vacuous

def pytest_configure(config):
    config.pluginmanager.register(Vacuous())
"""


def test_vacuous_tests_are_reported(tmp_path):
    (tmp_path / "test_examples.py").write_text(EXAMPLES)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nenable_assertion_pass_hook = true\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", tmp_path, "-p", "no:cacheprovider"],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 1 and "6 passed" in done.stdout, done.stdout + done.stderr
    assert re.findall(r"^(no assertion|compares nothing|never reached) .*?(test_\w+)$", done.stdout, re.MULTILINE) == [
        ("no assertion", "test_without_an_assertion"),
        ("compares nothing", "test_two_empty_lists"),
        ("compares nothing", "test_all_of_nothing"),
        ("compares nothing", "test_two_empty_arrays"),
        ("never reached", "test_loop_over_nothing"),
    ]


def test_excluded_tests_exist():
    defined = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)
    }
    assert defined >= EXCLUDED
