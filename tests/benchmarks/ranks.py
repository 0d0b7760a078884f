"""Times a training step on threads and on ranks of this machine, with the step of
`python -m train`.

    python -m tests.benchmarks.ranks [--model vit_tiny_cifar] [--batch-size 64]
                                     [--rounds 5]

Every configuration runs in processes of its own, all in turn in each round.
Gradients are clipped; no augmentation. Prints the median of the rounds, their
spread, and the ratio to one process with two threads.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from models.terminal import ArgumentParser, escape_unencodable
from tests.benchmarks.scaling import machine
from tests.benchmarks.scaling_mpi import mpiexec

CONFIGURATIONS = {
    "1 process, 1 thread": (1, ["--threads", "1"]),
    "1 process, 2 threads": (1, ["--threads", "2"]),
    "2 ranks": (2, ["--threads", "1"]),
    "2 ranks, no overlap": (2, ["--threads", "1", "--no-overlap"]),
    "2 ranks, --zero": (2, ["--threads", "1", "--zero"]),
    "4 ranks": (4, ["--threads", "1"]),
}
REFERENCE = "1 process, 2 threads"


def serve(arguments: argparse.Namespace, flags: list[str]) -> None:
    """A rank: rank 0 prints the seconds of a step, and the largest memory of a rank in MiB."""
    import models
    from minigrad import manual_seed, tune_cpu
    from minigrad.parallel import world
    from train.__main__ import parse
    from train.create import create_trainer
    from train.data import shapes

    overlap = "--no-overlap" not in flags
    flags = [flag for flag in flags if flag != "--no-overlap"]
    settings = parse([*flags, "--batch-size", str(arguments.batch_size), "--no-aug"])
    manual_seed(0)
    dataset = shapes.load(max(arguments.batch_size, 500), 20)
    ranks = world()
    trainer = create_trainer(replace(settings, lr=1e-6), models.create_model(arguments.model), dataset, ranks)
    tune_cpu(os.cpu_count() or 1)  # one BLAS thread for each thread or rank
    step = trainer.step
    if not overlap:
        step.gradients.megabytes = 1e6  # type: ignore[union-attr]  # one bucket, which is complete when backward ends
    index, taken = np.arange(arguments.batch_size), []
    with step.shards:
        for _ in range(arguments.steps + 2):
            ranks.barrier()
            start = time.perf_counter()
            step(index)
            taken.append(time.perf_counter() - start)
    result = np.array([median(taken[2:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])
    ranks.all_reduce(result, op="max")
    if ranks.rank == 0:
        print(json.dumps(result.tolist()))


def measured(arguments: argparse.Namespace, name: str) -> tuple[float, float]:
    """Seconds of a step and MiB of a rank, in new processes."""
    count, flags = CONFIGURATIONS[name]
    command = [sys.executable, "-m", "tests.benchmarks.ranks", "--model", arguments.model, "--serve", json.dumps(flags)]
    command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
    launch = [mpiexec(), "-n", str(count)] if count > 1 else []
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run([*launch, *command], env=environment, stdout=subprocess.PIPE, text=True, timeout=600)
    if result.returncode:
        raise SystemExit(f"{name}: a rank has failed")
    seconds, memory = json.loads(result.stdout)
    return seconds, memory


def main() -> None:
    escape_unencodable()
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_cifar", help="default: vit_tiny_cifar")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a batch, on all ranks together (64)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each configuration is started (5)")
    parser.add_argument("--steps", type=int, default=7, help="steps of each start, besides 2 to warm up (7)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments, json.loads(arguments.serve))
        return
    print(f"{machine()}\n{arguments.model}, batch {arguments.batch_size}, float32; load {os.getloadavg()[0]:.1f}\n")
    found: dict[str, list[Any]] = {name: [] for name in CONFIGURATIONS}
    for _ in range(arguments.rounds):
        for name in CONFIGURATIONS:
            found[name].append(measured(arguments, name))
    reference = median(seconds for seconds, _ in found[REFERENCE])
    print(f"{'':22}{'ms':>8}{'min - max':>18}{'ratio':>8}{'MiB a rank':>12}")
    for name, rows in found.items():
        times = sorted(seconds * 1e3 for seconds, _ in rows)
        spread = f"{times[0]:.1f} - {times[-1]:.1f}"
        memory = max(mib for _, mib in rows)
        print(f"{name:22}{median(times):8.1f}{spread:>18}{median(times) / reference / 1e3:8.3f}{memory:12.0f}")


if __name__ == "__main__":
    main()
