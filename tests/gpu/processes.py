"""A stage in processes of its own: a part that crashes, loses the GPU or takes too long does not affect the others."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from tests.gpu.output import Output
from tests.gpu.stages import STAGES, alive, failed, release, synchronize
from tests.gpu.stages.stage import Stage, parse

COMMAND = [sys.executable, "-m", "tests.gpu"]
LOST = 3  # exit code of a process that has lost the GPU


def work(options: argparse.Namespace) -> int:
    """The process of a stage: run the parts from `--from-part` on and print rows as JSON. A failed part gives a row
    too."""
    parts = STAGES[options.stage].parts(options)
    for number, (name, part) in enumerate(parts.items()):
        if number < options.from_part:
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


def run(name: str, options: argparse.Namespace, limit: float, output: Output) -> None:
    """Run one stage for at most `limit` seconds, and record its rows, errors, duration and outcome."""
    stage, start, first, end = STAGES[name], time.perf_counter(), 0, "done"
    while True:
        ended = process(name, stage, options, first, limit - (time.perf_counter() - start), output)
        late = time.perf_counter() - start >= limit
        if ended.code and ended.part is None:
            end = "failed"
        elif ended.code and not late and ended.code != LOST:
            why = "took too long" if ended.code == -signal.SIGKILL else f"ended the process ({ended.code})"
            row = failed(ended.part["name"], f"{why}: {ended.errors[-400:]}")  # type: ignore[index]
            output.add(name, row | {"traceback": f"{why}\n{ended.errors}"})
        if ended.code and late:
            end = f"stopped after {limit:.0f} s"
        if not ended.code or late or ended.part is None or ended.part["part"] + 1 == ended.part["of"]:
            break
        first = ended.part["part"] + 1
    output.end(name, end, time.perf_counter() - start, ended.errors if end != "done" else "")


def process(name: str, stage: Stage, options: argparse.Namespace, first: int, left: float, output: Output) -> Ended:
    """Run the parts from `first` on in one process, which is killed after `left` seconds, or at a part's time limit."""
    command = [*COMMAND, "--stage", name, "--from-part", str(first), "--deadline", str(time.time() + left)]
    command += ["--data-dir", options.data_dir, "--output", str(options.output), "--runs", str(options.runs)]
    command += ["--cpu"] if options.cpu else []
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

        timer = threading.Timer(min(left, threading.TIMEOUT_MAX), end)
        timer.start()
        for line in child.stdout:  # type: ignore[union-attr]
            row = parse(line)
            if "part" in row:
                part = row
                timer.cancel()
                timer = threading.Timer(min(stage.part_seconds, deadline - time.perf_counter()), end)
                timer.start()
            elif "what" in row:
                output.add(name, row)
            else:
                print(f"  {line}", end="", flush=True)
        code = child.wait()
        timer.cancel()
        end()
        said.seek(0)
        return Ended(code, part, said.read())
