"""Everything that needs a GPU, in three commands (tests/gpu/README.md; needs CuPy; torch and timm for comparisons):

    python -m tests.gpu --first     at most 500 s: does it run, are the values right, how fast is it
    python -m tests.gpu --second    at most 180 s: tests on the GPU, more comparisons, a profile
    python -m tests.gpu --third     training runs, as many as the time allows; again: continues them

Stages and their parts are independent: tests/gpu/processes.py. Results are saved in --output after each row. --cpu runs
the stages that need no GPU, on tests/cupy_on_cpu.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from models.terminal import ArgumentParser, escape_unencodable
from tests.gpu import processes
from tests.gpu.output import Output
from tests.gpu.stages import COMMANDS, SECONDS, STAGES, longest, missing

SCRATCH = Path(tempfile.gettempdir()) / f"minigrad-gpu-{os.getuid() if hasattr(os, 'getuid') else 0}"
SHORTEST = 5.0  # a stage with fewer seconds is not started


def main() -> int:
    """Returns the exit code: 0 if every stage finished and found nothing wrong."""
    escape_unencodable()
    options = parser().parse_args()
    options.scratch = SCRATCH
    if options.stage:
        return processes.work(options)
    deadline = time.perf_counter() + (options.seconds or SECONDS[options.command])
    SCRATCH.mkdir(exist_ok=True)
    options.output = options.output or Path(f"runs/gpu-{options.command}")
    output, background = Output(options.output, f"--{options.command}"), []
    names = tuple(options.stages or COMMANDS[options.command])
    for number, name in enumerate(names, 1):
        stage = STAGES[name]
        if options.cpu and not stage.without_gpu:
            continue
        if stage.waits:
            for thread in background:
                thread.join()
        output.begin(name)
        left = deadline - time.perf_counter()
        limit = min(left, max(stage.seconds, left - longest(names[number:])))  # with what earlier stages left
        if lacks := missing(stage.needs, options):
            output.end(name, f"not run: needs {', '.join(lacks)}")
        elif limit < SHORTEST:
            output.end(name, "not run: no time left")
        elif stage.background:
            background.append(threading.Thread(target=processes.run, args=(name, options, limit, output)))
            background[-1].start()
        else:
            processes.run(name, options, limit, output)
    for thread in background:
        thread.join()
    print(f"\n{output.summary()}\nin {options.output}")
    return 1 if output.wrong() else 0


def parser() -> argparse.ArgumentParser:
    found = ArgumentParser(
        prog="python -m tests.gpu", description="Measure and check minigrad on a GPU: tests/gpu/README.md."
    )
    command = found.add_mutually_exclusive_group()
    for name, stages in COMMANDS.items():
        command.add_argument(
            f"--{name}", dest="command", action="store_const", const=name, help=f"stages: {', '.join(stages)}"
        )
    found.set_defaults(command="first")
    found.add_argument("--stages", nargs="+", choices=STAGES, metavar="STAGE", help="only these stages")
    found.add_argument("--seconds", type=float, metavar="N", help=f"stop after N seconds (by default {SECONDS})")
    found.add_argument("--cpu", action="store_true", help="run the stages that need no GPU")
    found.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder of the results (runs/gpu-first, -second, -third)"
    )
    found.add_argument(
        "--data-dir", default="data", metavar="DIR",
        help="folder of CIFAR-10, or of cifar10-jpeg.npz and unpack_cifar10.py (data)",
    )  # fmt: skip
    found.add_argument(
        "--runs", default="runs/gpu-runs", metavar="DIR", help="folder of the training runs of --third (runs/gpu-runs)"
    )
    found.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    found.add_argument("--from-part", type=int, default=0, help=argparse.SUPPRESS)
    found.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    return found


if __name__ == "__main__":
    sys.exit(main())
