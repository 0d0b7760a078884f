"""The part of `tests.benchmarks.scaling` that measures here, with MPI: all-reduces, and steps of several ranks."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from math import ceil, inf, log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.scaling import Link, all_reduce, described, machine, parts_of, volume

SIZES = [2**n for n in (12, 16, 20, 22, 24, 26)]  # bytes
STEPS = 9


def mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError:
        raise SystemExit("mpi4py is missing: pip install mpi4py mpich") from None
    return MPI


def seconds(function: Callable[[], Any], runs: int) -> float:
    """The median of `runs`, after a warm-up call."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def training(
    model: str, batch: int, seed: int = 0, average: Callable[[np.ndarray], None] | None = None
) -> Callable[[], np.ndarray]:
    """A function that runs a training step with one thread and returns the gradients. `average` makes them the mean of
    all ranks, in place."""
    import models
    from minigrad import Tensor, optim, tune_cpu
    from minigrad import functional as F
    from minigrad.nn import init
    from models.compare import formula

    tune_cpu(os.cpu_count() or 1)  # with all cores as threads of minigrad, BLAS gets one thread
    with init.skip_init():
        network = formula.fill(models.create_model(model)).to(dtype=np.float32)
    parameters = list(network.parameters())
    optimizer = optim.AdamW(parameters, lr=1e-4)
    rng = np.random.default_rng(seed)
    images = Tensor(rng.standard_normal((batch, network.in_chans, *network.img_size), np.float32))
    labels = Tensor(rng.integers(network.num_classes, size=batch))
    flat = np.empty(sum(p.data.size for p in parameters), np.float32)

    def step() -> np.ndarray:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        np.concatenate([p.grad.data.reshape(-1) for p in parameters], out=flat)
        if average is not None:
            average(flat)
        end = 0
        for p in parameters:
            start, end = end, end + p.data.size
            p.grad.data[...] = flat[start:end].reshape(p.shape)
        optimizer.step()
        return flat

    return step


def mpi_times(runs: int = 9) -> dict[int, float]:
    """Seconds of an all-reduce by its bytes: the median, after a warm-up, of the slowest rank."""
    MPI, times = mpi(), {}
    for size in SIZES:
        x, taken = np.zeros(size // 4, np.float32), []
        for _ in range(runs + 1):
            MPI.COMM_WORLD.Barrier()
            start = time.perf_counter()
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, x)
            taken.append(MPI.COMM_WORLD.allreduce(time.perf_counter() - start, MPI.MAX))
        times[size] = statistics.median(taken[1:])
    return times


def fitted(times: dict[int, float], N: int, S: float) -> Link:
    """α from the smallest all-reduce. B from the one whose size is nearest to S: in shared memory, B depends on what
    fits in the caches."""
    if N == 1:
        return Link("MPI", inf, 0.0, True, "One rank.")
    small, near = min(times), min(times, key=lambda size: abs(log2(size / S)))
    B = volume(near - small, N) / (times[near] - times[small])
    return Link("MPI", B, times[small] / (2 * ceil(log2(N))), True, f"Measured here, B at {near / 1e6:.1f} MB.")


class Measured(NamedTuple):
    link: Link
    wall: float  # seconds of a step: the slowest rank, median over steps
    cpu: float  # CPU seconds of a step, likewise


def serve(model: str, batch: int) -> None:
    """A rank of --check. The first rank prints the times of all-reduces and of a step."""
    MPI = mpi()
    world = MPI.COMM_WORLD

    def average(flat: np.ndarray) -> None:
        world.Allreduce(MPI.IN_PLACE, flat)
        flat /= world.size

    times, step = mpi_times(), training(model, batch, world.rank, average)
    step()
    taken = []
    for _ in range(STEPS):
        world.Barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        flat = step()
        spent = np.array([time.perf_counter() - wall, time.process_time() - cpu])
        world.Allreduce(MPI.IN_PLACE, spent, MPI.MAX)
        taken.append(spent)
    if any(other != flat.tobytes() for other in world.allgather(flat.tobytes())):
        raise SystemExit("the ranks have different gradients")
    if world.rank == 0:
        print(json.dumps([times, *np.median(taken, axis=0)]))


def mpiexec() -> str:
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if (path := shutil.which("mpiexec", path=os.pathsep.join(folders))) is None:
        raise SystemExit("mpiexec is missing: pip install mpi4py mpich")
    return path


def measured(ranks: int, model: str, batch: int, S: float) -> Measured:
    """The link between `ranks` processes on this machine, and their step."""
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "tests.benchmarks.scaling"]
    command += ["--serve", model, str(batch)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=600)
    if result.returncode:
        raise SystemExit(f"a step of {ranks} ranks has failed")
    times, wall, cpu = json.loads(result.stdout)
    return Measured(fitted({int(size): t for size, t in times.items()}, ranks, S), wall, cpu)


def check(model: str, batch: int, ranks: Sequence[int] = (1, 2, 4)) -> None:
    """With more ranks than cores, the ranks take turns:  step = C max(1, N / cores) + T(S)"""
    S, cores, C = sum(4 * part.parameters for part in parts_of(model)), os.cpu_count() or 1, 0.0
    text = f"{model}, {S / 1e6:.1f} MB of gradients; a rank: batch {batch}, one thread. Times in ms, median of "
    text += (
        f"{STEPS} steps. C: the step of one rank, times ranks / cores if this is above 1. T: from α and B, measured "
    )
    text += "with as many ranks; no overlap. CPU: CPU time of a rank in a step. If measured is far above CPU with one "
    text += "rank, other processes were computing: run again."
    print(f"\n{textwrap.fill(text, 79)}\n")
    print(f"{'ranks':>5}{'α µs':>8}{'B GB/s':>7}{'C':>9}{'T':>7}{'predicted':>10}", end="")
    print(f"{'measured':>9}{'error':>8}{'CPU':>8}{'load':>6}")
    for N in ranks:
        link, wall, cpu = measured(N, model, batch, S)
        C = C or wall
        turns, T = C * max(1, N / cores), all_reduce(S, N, link)
        line = f"{N:5}{link.α * 1e6:8.1f}{link.B / 1e9:7.2f}{turns * 1e3:9.1f}{T * 1e3:7.1f}{(turns + T) * 1e3:10.1f}"
        line += f"{wall * 1e3:9.1f}{100 * ((turns + T) / wall - 1):7.1f}%{cpu * 1e3:8.1f}{os.getloadavg()[0]:6.1f}"
        print(line, flush=True)


def measure() -> None:
    """The table of --measure, printed by the first rank."""
    world, times = mpi().COMM_WORLD, mpi_times()
    if world.rank == 0:
        print(f"{machine()}\n{mpi().Get_library_version().splitlines()[0]}, all-reduce of {world.size} ranks\n")
        print(f"{'bytes':>10}{'ms':>10}{'bus GB/s':>10}")
        for size, t in times.items():
            print(f"{size:10}{t * 1e3:10.3f}{volume(size, world.size) / t / 1e9:10.2f}")
        print(f"\n{described(fitted(times, world.size, max(times)))}")
