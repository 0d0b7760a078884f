"""Everything that needs a GPU, in one command:  python -m tests.gpu  (needs CuPy; torch and timm for comparisons)

Stages and their parts are independent. A stage is a process with a time limit. If a part crashes, loses the GPU or
exceeds its own time limit, a new process continues with the next part. Results are saved in --output, as JSON, after
each row; a table is printed at the end. --cpu runs the stages that need no GPU, on tests/cupy_on_cpu.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from models.terminal import escape_unencodable
from tests.gpu.stages import STAGES, alive, failed, release, synchronize

COMMAND = [sys.executable, "-m", "tests.gpu"]
LOST = 3  # exit code of a process that has lost the GPU


def main() -> int:
    """Returns the exit code: 0 if every stage finished and found nothing wrong."""
    escape_unencodable()
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description="Measure and check minigrad on a GPU. It takes at most ten minutes."
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        metavar="STAGE",
        help=f"stages to run, all by default: {', '.join(STAGES)}",
    )
    parser.add_argument("--cpu", action="store_true", help="run the stages that need no GPU")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/gpu"),
        metavar="FOLDER",
        help="folder of results.json, default runs/gpu",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of CIFAR-10, for the stage training")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        return work(options)
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}

    def keep() -> None:
        (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")

    for name in options.stages:
        if options.cpu and not STAGES[name].without_gpu:
            continue
        print(f"{name} ...", flush=True)
        results[name] = {"end": "unfinished", "seconds": 0.0, "rows": [], "errors": ""}
        run(name, options, results[name], keep)
        keep()
    wrong = report(results)
    print(f"\nin {options.output / 'results.json'}" + (f"; WRONG: {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0


def work(options: argparse.Namespace) -> int:
    """The process of a stage: run the parts from `--first` on and print rows as JSON. A failed part gives a row too."""
    parts = STAGES[options.stage].parts(options)
    for number, (name, part) in enumerate(parts.items()):
        if number < options.first:
            continue
        say({"part": number, "of": len(parts), "name": name})
        try:
            for row in part():
                say(row)
            synchronize()  # raises this part's asynchronous errors here, not in the next part
        except Exception as error:
            say(failed(name, error))
        if not alive():
            return LOST
        release()
    return 0


def say(row: dict[str, Any]) -> None:
    print(json.dumps(row, default=float), flush=True)


class Ended(NamedTuple):
    code: int
    part: dict[str, Any] | None  # the last part that started
    errors: str


def run(name: str, options: argparse.Namespace, result: dict[str, Any], keep: Callable[[], None]) -> None:
    """Run one stage in processes of its own. Write its rows, errors, duration and outcome to `result`."""
    stage, start, first, end = STAGES[name], time.perf_counter(), 0, "done"
    while True:
        left = stage.seconds - (time.perf_counter() - start)
        ended = process(name, options, first, left, result["rows"], keep)
        result["errors"] = (result["errors"] + ended.errors)[-4000:]
        late = time.perf_counter() - start >= stage.seconds
        if ended.code and ended.part is None:
            end = "failed"
        elif ended.code and not late and ended.code != LOST:
            why = "took too long" if ended.code == -signal.SIGKILL else f"ended the process ({ended.code})"
            result["rows"].append(failed(ended.part["name"], f"{why}: {ended.errors[-400:]}"))  # type: ignore[index]
        if ended.code and late:
            end = f"stopped after {stage.seconds} s"
        if not ended.code or late or ended.part is None or ended.part["part"] + 1 == ended.part["of"]:
            break
        first = ended.part["part"] + 1
    result |= {"end": end, "seconds": round(time.perf_counter() - start, 1)}
    if end != "done":
        print(f"  {end}\n{result['errors'][-2000:]}", flush=True)


def process(
    name: str,
    options: argparse.Namespace,
    first: int,
    left: float,
    rows: list[dict[str, Any]],
    keep: Callable[[], None],
) -> Ended:
    """Run the parts from `first` on in one process, which is killed after `left` seconds, or at a part's time limit."""
    command = [*COMMAND, "--stage", name, "--first", str(first)]
    command += ["--cpu"] if options.cpu else []
    command += ["--data-dir", options.data_dir] if options.data_dir else []
    deadline, part = time.perf_counter() + left, None
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace", start_new_session=True
        ) as child,
    ):

        def end() -> None:  # kill the process and its children
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(left, end)
        timer.start()
        for line in child.stdout:  # type: ignore[union-attr]
            if not line.startswith("{"):
                print(f"  {line}", end="", flush=True)
                continue
            row = json.loads(line)
            if "part" in row:
                part = row
                timer.cancel()
                timer = threading.Timer(min(STAGES[name].part_seconds, deadline - time.perf_counter()), end)
                timer.start()
                continue
            rows.append(row)
            print(f"  {describe(row)}", flush=True)
            keep()
        code = child.wait()
        timer.cancel()
        end()
        said.seek(0)
        return Ended(code, part, said.read())


def report(results: dict[str, Any]) -> list[str]:
    """Print the table. Returns the names of the stages and rows that are wrong."""
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
