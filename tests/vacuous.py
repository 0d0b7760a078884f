"""pytest --vacuous: report tests that prove nothing, because their assertions compare nothing or never run.

An assertion is an `assert`, `pytest.raises`, `pytest.warns`, `pytest.fail`, a function of `np.testing`, or a check of
`minigrad.testing`. For each test that passes, this plugin reports

    no assertion          the test reaches no assertion: it shows only that nothing raises
    compares nothing      an assertion that is empty in every call: computed values with [] == [], or all() of nothing
    never reached         an `assert` that no run of the test reaches: in a loop over nothing, or behind an `if`

The tests run in one process: the plugin does not see assertions in workers of pytest-xdist.
"""

import ast
import re
import sys
from collections import defaultdict
from functools import wraps
from pathlib import Path

import numpy as np
import pytest

import minigrad.testing

# These tests count live objects or check memory addresses, and pytest's explanations of assertions keep objects alive.
EXCLUDED = {
    "test_step_leaves_no_reference_cycles",
    "test_cached_copies_are_freed_with_the_block",
    "test_without_an_algorithm_bias_and_sums_are_separate",
    "test_hooks_leave_no_reference_cycle_and_are_not_pickled",
}

EMPTY = r"(?:\[\]|\(\)|\{\}|set\(\)|frozenset\(\)|''|OrderedDict\(\)|dict_keys\(\[\]\)|array\(\[\][^)]*\))"
EMPTY_COMPARISON = re.compile(rf"(?<!\w){EMPTY} == {EMPTY}")
# In the source of an assertion: an empty literal, or the shape of a 0-d array.
INTENDED = re.compile(r"\[\]|\(\)(?<!\w\(\))|\{\}|\bset\(\)|''|\"\"|\.shape\b")


class Vacuous:
    def __init__(self) -> None:
        self.test = None  # the running test
        self.assertions = defaultdict(dict)  # test -> {(file, line): True if the assertion there ever compared values}
        self.passed = []
        self.empty_quantifier = False  # all() or any() of an empty iterable, since the last assertion

    def record(self, place, compares):
        if self.test is not None:
            self.assertions[self.test][place] = compares or self.assertions[self.test].get(place, False)

    def recorded(self, check, compares=lambda *args: True):
        """`check`, with each of its calls recorded."""

        @wraps(check)
        def wrapper(*args, **options):
            caller = sys._getframe(1)
            self.record((caller.f_code.co_filename, caller.f_lineno), compares(*args))
            return check(*args, **options)

        return wrapper

    def recorded_quantifier(self, built_in):
        """all() or any(), recording a call on an empty iterable."""

        def wrapper(values):
            items = list(values)
            self.empty_quantifier |= not items
            return built_in(items)

        return wrapper

    def pytest_sessionstart(self):
        for name in dir(np.testing):
            if name.startswith("assert_"):
                setattr(np.testing, name, self.recorded(getattr(np.testing, name), not_empty))
        for name in ("raises", "warns", "fail"):
            setattr(pytest, name, self.recorded(getattr(pytest, name)))
        for name in ("gradcheck", "watch"):
            setattr(minigrad.testing, name, self.recorded(getattr(minigrad.testing, name)))

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.originalname not in EXCLUDED]
        for module in {item.module for item in items}:
            module.all, module.any = self.recorded_quantifier(all), self.recorded_quantifier(any)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.test, self.empty_quantifier = item, False
        try:
            result = yield
            self.passed.append(item)
            return result
        finally:
            self.test = None

    def pytest_assertion_pass(self, item, lineno, orig, expl):
        is_empty = EMPTY_COMPARISON.search(expl) and not INTENDED.search(orig)
        is_empty = is_empty or (self.empty_quantifier and re.search(r"\b(all|any)\(", orig))
        self.empty_quantifier = False
        self.record((str(item.path), lineno), not is_empty)

    def findings(self):
        lines = []
        for item in self.passed:
            assertions = self.assertions[item]
            if not assertions:
                lines.append(f"no assertion      {item.nodeid}")
            lines += [
                f"compares nothing  {Path(file).name}:{line} in {item.nodeid}"
                for (file, line), compares in assertions.items()
                if not compares
            ]
        reached = {place for assertions in self.assertions.values() for place in assertions}
        ran = defaultdict(set)
        for item in self.passed:
            ran[str(item.path)].add(item.originalname)
        for file, names in ran.items():
            for function in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef) and function.name in names:
                    lines += [
                        f"never reached     {Path(file).name}:{node.lineno} in {function.name}"
                        for node in ast.walk(function)
                        if isinstance(node, ast.Assert) and (file, node.lineno) not in reached
                    ]
        return lines

    def pytest_terminal_summary(self, terminalreporter):
        lines = self.findings()
        terminalreporter.section(f"vacuous: {len(lines)} findings, {len(self.passed)} tests passed")
        for line in lines:
            terminalreporter.write_line(line)

    def pytest_sessionfinish(self, session):
        if self.findings() and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def not_empty(*arrays):
    """False for two empty 1-D arrays. Arrays of shapes such as (0, 4) count: the assertion compares their shapes."""
    return not arrays or any(np.ndim(x) != 1 or np.size(x) for x in arrays[:2])
