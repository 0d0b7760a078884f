"""Stage `properties`: the tests of ops, models and CUDA graphs that run on a GPU."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.gpu.stages.stage import Options, Parts, Row, parse

ROOT = Path(__file__).parents[3]


def parts(options: Options) -> Parts:
    return {"tests": tests}


TESTS = (
    "tests/test_cuda_graph.py",
    "tests/models/test_devices.py",
    "tests/train/test_devices.py",
    "tests/autograd/test_autocast.py",
    "tests/backend/test_arrays.py",
    "tests/backend/test_dtypes.py",
    "tests/backend/test_random.py",
    "tests/nn/test_module.py",
    "tests/ops",
)


def tests(chosen: tuple[str, ...] = TESTS, workers: int = min(16, os.cpu_count() or 1)) -> Iterator[Row]:
    """A row for each failed test, and the number of those that passed: every 100, since the time may run out."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.gpu.report_tests", "--tb=short", "-k", "cuda", *chosen]
    if importlib.util.find_spec("xdist"):  # hundreds of kernels are compiled
        command += ["-n", str(workers)]
    environment, passed = os.environ | {"HYPOTHESIS_PROFILE": "few"}, 0
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        for line in process.stdout:  # type: ignore[union-attr]
            found = parse(line)
            if "passed" in found:
                passed += 1
                if passed % 100 == 0:
                    yield {"what": "tests passed so far", "value": passed}
            elif name := found.pop("failed", ""):
                yield {"what": name[-90:], "value": "failed", **found, "wrong": True}
    yield {"what": f"passed of pytest -k cuda {' '.join(chosen)}", "value": passed}
    if process.returncode:
        raise RuntimeError(f"pytest ended with {process.returncode}")
