"""Stage `profile`: what Nsight Compute says about the two kernels of minigrad that take longest.

python -m tests.gpu.stages.profile CASE ...     what the stage runs under ncu: forward and backward of cases
"""

import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from models.terminal import escape_unencodable
from tests.gpu.stages.device import release
from tests.gpu.stages.stage import Options, Parts, Row

ROOT = Path(__file__).parents[3]
METRICS = {  # Nsight Compute's names, and ours
    "gpu__time_duration.sum": "us",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "compute_%",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_%",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_%",
    "launch__registers_per_thread": "registers",
}
PER_UNIT = {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3}  # microseconds


def parts(options: Options) -> Parts:
    return {"slowest cases": profiled}


def profiled() -> Iterator[Row]:
    names = slowest()
    command = ["ncu", "--csv", "--page", "raw", "--clock-control", "none", "--profile-from-start", "off"]
    command += ["--metrics", ",".join(METRICS), sys.executable, "-m", "tests.gpu.stages.profile", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    found = sorted(kernels(done.stdout.splitlines()), key=lambda row: -row["value"])
    if not found:
        raise RuntimeError(f"ncu ended with {done.returncode}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    yield from found


def kernels(lines: Sequence[str]) -> Iterator[Row]:
    """A row for each kernel in ncu's table, which has a line of units below its header."""
    table = [line for line in lines if line.startswith('"')]
    units: dict[str, str] = {}
    for line in csv.DictReader(table):
        units = units or line
        if line is units:
            continue
        values = {ours: float(line[name].replace(",", "")) for name, ours in METRICS.items() if line.get(name)}
        us = values.pop("us", 0.0) * PER_UNIT.get(units["gpu__time_duration.sum"], 1)
        yield {"what": f"ncu: {line['Kernel Name'][:40]}", "value": us, "unit": "us", **values}


def slowest(count: int = 2) -> list[str]:
    """The large cases whose forward and backward take longest, relative to a copy of their inputs and outputs."""
    from tests.gpu.cases import CASES
    from tests.gpu.stages.kernels import is_large, time_of

    copies = {}
    for case in filter(is_large, CASES):
        row = time_of(case, case.arrays(small=False, device="cuda"))
        copies[case.name] = (row["value"] + row["backward_us"]) / (row["value"] * row["share_of_copy"])
        release()
    return sorted(copies, key=copies.__getitem__)[-count:]


def main(names: Sequence[str]) -> None:
    escape_unencodable()
    import cupy

    from tests.gpu.cases import CASES
    from tests.gpu.stages.kernels import outcome

    for case in CASES:
        if case.name in names:
            run = partial(outcome, case, case.arrays(small=False, device="cuda"), "cuda")
            run()
            cupy.cuda.Device().synchronize()
            cupy.cuda.runtime.profilerStart()
            run()
            cupy.cuda.Device().synchronize()
            cupy.cuda.runtime.profilerStop()


if __name__ == "__main__":
    main(sys.argv[1:])
