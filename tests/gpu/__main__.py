"""Everything that only a GPU can tell, in one go:  python -m tests.gpu  (needs CuPy; torch and timm for comparison)

The stages do not depend on each other. Each is a process of its own with a time limit, and what it found before the
limit counts. At the end there is a table, and all of it as JSON in --output. With --cpu, what can be run without a GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.gpu.stages import STAGES


def main() -> int:
    """0 if every stage came to its end and found nothing wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description="Measure and check minigrad on a GPU; at most ten minutes in all."
    )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=" ".join(STAGES)
    )
    parser.add_argument("--cpu", action="store_true", help="run what a machine without a GPU can")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), metavar="FOLDER", help="for results.json")
    parser.add_argument("--data-dir", metavar="DIR", help="where CIFAR-10 is, for the stage `training`")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        for row in STAGES[options.stage].run(options):
            print(json.dumps(row), flush=True)
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in options.stages:
        if options.cpu and not STAGES[name].without_gpu:
            continue
        print(f"{name} ...", flush=True)
        results[name] = run(name, options)
        (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    wrong = report(results)
    print(f"\nin {options.output / 'results.json'}" + (f"; NOT AS IT SHOULD BE: {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One stage, in a process of its own: its rows, its time, and how it ended."""
    command = [sys.executable, "-m", "tests.gpu", "--stage", name]
    command += ["--cpu"] if options.cpu else []
    command += ["--data-dir", options.data_dir] if options.data_dir else []
    start, limit, rows = time.perf_counter(), STAGES[name].seconds, []
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True) as process,
    ):
        timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))  # and all that it has started
        timer.start()
        for line in process.stdout:  # type: ignore[union-attr]
            if line.startswith("{"):
                rows.append(json.loads(line))
                line = describe(rows[-1]) + "\n"
            print(f"  {line}", end="", flush=True)
        code = process.wait()
        in_time = timer.is_alive()
        timer.cancel()
        said.seek(0)
        errors = said.read()
    end = "done" if not code else "failed" if in_time else f"stopped after {limit} s"
    if code:
        print(f"  {end}\n{errors[-2000:]}", flush=True)
    return {"end": end, "seconds": round(time.perf_counter() - start, 1), "rows": rows, "errors": errors[-4000:]}


def report(results: dict[str, Any]) -> list[str]:
    """Print the table; returns what is wrong."""
    wrong = []
    for name, result in results.items():
        print(f"\n{name}: {result['end']}, {result['seconds']} s")
        for row in result["rows"]:
            print(f"  {describe(row)}")
        wrong += [name] if result["end"] != "done" else []
        wrong += [f"{name}: {row['what']}" for row in result["rows"] if row.get("wrong")]
    return wrong


def describe(row: dict[str, Any]) -> str:
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else str(row["value"])
    rest = "  ".join(
        f"{key} {content:.3g}" if isinstance(content, float) else f"{key} {content}"
        for key, content in row.items()
        if key not in ("what", "value", "unit", "wrong")
    )
    rest += "  <-- WRONG" if row.get("wrong") else ""
    return f"{row['what']:48} {value:>10} {row.get('unit', ''):8} {rest}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
