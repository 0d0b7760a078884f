"""A plugin of pytest, `-p tests.gpu.report_tests`: a line of JSON for each test that passed or failed, at once."""

import json

import pytest


class Lines:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed:
            text = report.longreprtext
            found = {"failed": report.nodeid, "error": text[-600:], "traceback": text}
        elif report.when == "call" and report.passed:
            found = {"passed": report.nodeid}
        else:
            return
        terminal.write(f"\n{json.dumps(found)}\n")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of pytest-xdist: the main process has the reports of all workers
        config.pluginmanager.register(Lines(config))
