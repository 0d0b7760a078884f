"""pytest --vacuous: a plugin that reports tests which prove nothing.

An assertion is an `assert`, a call of `pytest.raises`, `warns` or `fail`, of `np.testing`, or of a check in
minigrad.testing. For each test that passes, the plugin reports

    no assertion          the test ran no assertion: it shows only that no error was raised
    compares nothing      an assertion that was trivial in every run: [] == [] of computed values, all() of no elements
    never reached         an `assert` that no run of its test executed: in an empty loop, or under an `if`

Run in one process: assertions in workers of xdist are not counted.
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

# These tests count objects or compare addresses, which the plugin changes by keeping values of assertions alive.
EXCLUDED = {
    "test_step_leaves_no_reference_cycles",
    "test_cached_copies_are_freed_with_the_block",
    "test_without_an_algorithm_bias_and_sums_are_separate",
}

EMPTY = r"(?:\[\]|\(\)|\{\}|set\(\)|frozenset\(\)|''|OrderedDict\(\)|dict_keys\(\[\]\)|array\(\[\][^)]*\))"
NOTHING = re.compile(rf"(?<!\w){EMPTY} == {EMPTY}")
LITERAL = re.compile(r"\[\]|\(\)(?<!\w\(\))|\{\}|\bset\(\)|''|\"\"")


class Vacuous:
    def __init__(self) -> None:
        self.test = None  # the running test
        self.seen = defaultdict(dict)  # test -> {(file, line) of an assertion: True if any run compared something}
        self.passed = []
        self.quantified_nothing = False  # True if all() or any() had no elements since the last assertion

    def record(self, location, something):
        if self.test is not None:
            self.seen[self.test][location] = something or self.seen[self.test].get(location, False)

    def recorded(self, check, something=lambda *args: True):
        """Wrap `check`, an assertion function, so that its calls are recorded."""

        @wraps(check)
        def wrapper(*args, **kwargs):
            caller = sys._getframe(1)
            self.record((caller.f_code.co_filename, caller.f_lineno), something(*args))
            return check(*args, **kwargs)

        return wrapper

    def quantifier(self, built_in):
        """Wrap all() or any(), so that calls without elements are recorded."""

        def wrapper(values):
            items = list(values)
            self.quantified_nothing |= not items
            return built_in(items)

        return wrapper

    def pytest_sessionstart(self):
        for name in dir(np.testing):
            if name.startswith("assert_"):
                setattr(np.testing, name, self.recorded(getattr(np.testing, name), compares_something))
        for name in ("raises", "warns", "fail"):
            setattr(pytest, name, self.recorded(getattr(pytest, name)))
        for name in ("gradcheck", "watch"):
            setattr(minigrad.testing, name, self.recorded(getattr(minigrad.testing, name)))

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.originalname not in EXCLUDED]
        for module in {item.module for item in items}:
            module.all, module.any = self.quantifier(all), self.quantifier(any)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.test, self.quantified_nothing = item, False
        try:
            result = yield
            self.passed.append(item)
            return result
        finally:
            self.test = None

    def pytest_assertion_pass(self, item, lineno, orig, expl):
        nothing = NOTHING.search(expl) and not LITERAL.search(orig)
        nothing = nothing or (self.quantified_nothing and re.search(r"\b(all|any)\(", orig))
        self.quantified_nothing = False
        self.record((str(item.path), lineno), not nothing)

    def findings(self):
        lines = []
        for item in self.passed:
            seen = self.seen[item]
            if not seen:
                lines.append(f"no assertion      {item.nodeid}")
            lines += [
                f"compares nothing  {Path(file).name}:{line} in {item.nodeid}"
                for (file, line), something in seen.items()
                if not something
            ]
        reached = {location for seen in self.seen.values() for location in seen}
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


def compares_something(*arrays):
    """False if both arrays are empty and 1-d; empty arrays of other shapes, such as (0, 4), compare their shapes."""
    return not arrays or any(np.ndim(x) != 1 or np.size(x) for x in arrays[:2])
