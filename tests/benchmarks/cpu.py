"""Compare time and memory of training and inference with PyTorch and JAX, on the CPU.

    python -m tests.benchmarks.cpu      (needs torch and timm; --with jax: JAX)

All libraries run the same model with the same weights on the same batch, in float32 with two threads. minigrad's code
is that of a user: `create_model`, autograd and `optim.AdamW`; two threads compute the shards of a batch. A batch of 1
has one shard, so there two BLAS threads compute each product, as after `tune_cpu(1)` on two cores.

Two BLAS libraries in one process slow each other down, so each contender runs in its own process. Contenders take
turns, one step at a time, and their medians are compared. Before the measurement, the losses of two steps, or in
inference the sums of the logits, must agree.

Two threads wait for each other, so other programs slow them down, and each contender by a different factor: with a load
above 0.5 nothing is measured, except with `--busy`, which marks each row. BLAS threads suffer most: there,
OPENBLAS_NUM_THREADS=1 is faster for a batch of 1.

The column `over` shows minigrad's time over the time of its matrix products. The ratio `time` / `over` would be left if
everything but the products took no time. How fast products are depends on the processor and on the BLAS of each
library, so the GFLOP/s of both stand above the table (`tests/benchmarks/sgemm.py`).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from models.terminal import ArgumentParser, escape_unencodable
from tests.benchmarks import sgemm
from tests.benchmarks.scaling import machine

THREADS = 2
MAX_LOAD = 0.5  # average number of running processes in the last minute
PAUSE = 0.03  # seconds between two steps, until the waiting threads of the other process sleep
MODES = ("train", "infer")


class Row(NamedTuple):
    """A model of the table, its batch size, the number of steps, the number with --quick (0: none), and what to
    measure."""

    model: str
    batch: int
    steps: int
    quick_steps: int
    modes: tuple[str, ...] = MODES


ROWS = [
    Row("vit_tiny_cifar", 64, 15, 4),
    Row("vit_base_patch16_224", 8, 5, 0),
    Row("convnext_atto_cifar", 64, 15, 5),
    Row("convnext_tiny", 8, 5, 0),
    Row("swin_tiny_cifar", 64, 15, 4),
    Row("swin_tiny_patch4_window7_224", 8, 5, 0),
    Row("hybrid_cifar", 64, 9, 2),
    Row("vit_tiny_cifar", 1, 51, 15, ("infer",)),
    Row("convnext_atto_cifar", 1, 51, 15, ("infer",)),
    Row("vit_tiny_patch16_224", 1, 25, 0, ("infer",)),
    Row("convnext_tiny", 1, 25, 0, ("infer",)),
]


# Contenders: each returns a function that runs one step and returns a value that must agree ---------------------------


def minigrad(row: Row, mode: str) -> Callable[[], float]:
    import numpy as np

    from minigrad import Tensor, no_grad, optim
    from minigrad import functional as F
    from minigrad.backend import tune
    from minigrad.parallel.threads import Shards

    tune.tune_cpu(shards_of(row))
    tune.limit_blas(THREADS // shards_of(row))  # on a machine with more than two cores, too
    model = filled(row)
    images, labels = batch(row, model)
    shards = Shards(shards_of(row))

    def infer(images: np.ndarray) -> np.ndarray:
        with no_grad():
            return model(Tensor(images)).numpy()

    def train(images: np.ndarray, targets: np.ndarray) -> float:
        loss = F.cross_entropy(model(Tensor(images)), Tensor(targets)) * (len(targets) / len(labels))
        loss.backward()
        return loss.item()

    if mode == "infer":
        model.eval()
        return lambda: float(sum(logits.sum() for logits in shards.run(infer, images)))
    optimizer = optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss = sum(shards.run(train, images, labels))
        optimizer.step()
        return loss

    return step


def torch(row: Row, mode: str, *, compiled: bool = False) -> Callable[[], float]:
    import torch

    from models.compare.references import Reference

    torch.set_num_threads(THREADS)
    reference = Reference("timm", row.model)
    model = reference.network.float()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # timm's default for Swin is 0.1
    images, labels = map(torch.from_numpy, batch(row, reference.model))
    run = torch.compile(model) if compiled else model
    if mode == "infer":
        model.eval()

        def infer() -> float:
            with torch.no_grad():
                return float(run(images).sum())

        return infer
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def compiled(row: Row, mode: str) -> Callable[[], float]:
    return torch(row, mode, compiled=True)


def plain(row: Row, mode: str) -> Callable[[], float]:
    """minigrad without fast paths and tuning. Only the limit of BLAS threads stays: it avoids oversubscribed cores."""
    from minigrad import without_fast_paths
    from minigrad.backend import tune

    tune.tune_cpu = partial(tune.tune_cpu, allocator=False, kernels=False)
    step = minigrad(row, mode)

    def run() -> float:
        with without_fast_paths():
            return step()

    return run


def jax(row: Row, mode: str) -> Callable[[], float]:
    os.environ.update(JAX_PLATFORMS="cpu", NPROC=str(THREADS))  # NPROC: the threads of XLA; default: one for each core
    from jax import numpy as jnp

    from tests.benchmarks import jax_models

    model = filled(row)
    images, labels = map(jnp.asarray, batch(row, model))
    if mode == "infer":
        forward, p = jax_models.compiled_forward(model), jax_models.parameters(model)
        return lambda: float(forward(p, images).sum())
    state, train = jax_models.initial_state(model), jax_models.compiled_step(model, lr=1e-4)

    def step() -> float:
        nonlocal state
        state, loss = train(state, images, labels)
        return float(loss)

    return step


def shards_of(row: Row) -> int:
    """The number of minigrad's threads: a shard has at least one image."""
    return min(THREADS, row.batch)


def filled(row: Row) -> Any:
    """minigrad's model with formula weights."""
    import models
    from minigrad.nn import init
    from models.compare import formula

    with init.skip_init():
        return formula.fill(models.create_model(row.model)).to(dtype="float32")


def batch(row: Row, model: Any) -> Any:
    """Images and labels. Both are computed by formulas, so that all contenders get the same."""
    import numpy as np

    from models.compare import formula

    images = formula.stream("benchmark", row.batch, model.in_chans, *model.img_size).astype(np.float32)
    return images, np.arange(row.batch) * 7919 % model.num_classes


CONTENDERS = {"minigrad": minigrad, "torch": torch, "plain": plain, "compiled": compiled, "jax": jax}


# The processes --------------------------------------------------------------------------------------------------------


def serve(name: str, row: Row, mode: str) -> None:
    """The process of a contender: for each input line, run a step; print its seconds, its CPU seconds, its value, its
    peak memory, and the seconds in minigrad's matrix products, the mean over the threads."""
    from minigrad.backend import products

    step = CONTENDERS[name](row, mode)
    for _ in sys.stdin:
        with products.timed() as product_seconds:
            start, start_cpu = time.perf_counter(), time.process_time()
            value = step()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([seconds, cpu_seconds, value, peak, sum(product_seconds) / shards_of(row)]), flush=True)


class Contender:
    """Starts the process of a contender, requests steps from the main process, and collects their times."""

    def __init__(self, name: str, row: Row, mode: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.cpu", "--serve", name, str(ROWS.index(row)), mode]
        self.name, self.seconds, self.cpu_seconds, self.products, self.peak = name, [], [], [], 0
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} has ended")
        seconds, cpu_seconds, value, self.peak, products = json.loads(line)
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)
        self.products.append(products)
        return value

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cores(self) -> float:
        """The mean number of cores in use during a step."""
        return statistics.median(self.cpu_seconds) / self.median

    def forget(self) -> None:
        """Forget the times of the warm-up."""
        for times in (self.seconds, self.cpu_seconds, self.products):
            times.clear()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(row: Row, mode: str, steps: int, names: list[str]) -> dict[str, Contender]:
    """Two warm-up steps, whose values must agree; then the contenders take turns."""
    contenders = [Contender(name, row, mode) for name in names]
    for _ in range(2):
        values = [contender.step() for contender in contenders]
        if max(abs(value - values[0]) for value in values) > 1e-3 * max(1, abs(values[0])):
            raise SystemExit(f"{row.model}: {dict(zip(names, values, strict=True))} must be equal")
    for contender in contenders:
        contender.forget()
    for _ in range(steps):
        for contender in contenders:
            time.sleep(PAUSE)
            contender.step()
    for contender in contenders:
        contender.close()
        if contender.cores > THREADS + 0.5:
            raise SystemExit(
                f"{contender.name} used {contender.cores:.1f} cores, but all contenders must use {THREADS}: let Linux "
                f"assign {THREADS} cores, with taskset -c 0,1 python -m tests.benchmarks.cpu"
            )
    return {contender.name: contender for contender in contenders}


def main(arguments: Sequence[str] | None = None) -> None:
    escape_unencodable()
    parser = ArgumentParser(prog="python -m tests.benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, without the models for images of 224 x 224")
    names, batches = list(dict.fromkeys(row.model for row in ROWS)), sorted({row.batch for row in ROWS})
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="MODEL", help="only these models")
    parser.add_argument("--batch", type=int, nargs="+", choices=batches, default=batches, help="only these batch sizes")
    parser.add_argument(
        "--with", nargs="+", dest="others", default=[], choices=["plain", "compiled", "jax"], metavar="CONTENDER",
        help="also measure plain (minigrad without fast paths and tuning), compiled (torch.compile), or jax (jax.jit; "
        "ViT and ConvNeXt)",
    )  # fmt: skip
    parser.add_argument("--busy", action="store_true", help=f"measure with a load above {MAX_LOAD} too; marks each row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times of all steps to FILE")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        name, index, mode = options.serve
        return serve(name, ROWS[int(index)], mode)
    rows = selected(options.rows, options.batch, options.quick)
    if not rows:
        parser.error(f"no row{' with --quick' * options.quick}: models {options.rows}, batch sizes {options.batch}")
    libraries = ["torch", *(["jax"] if "jax" in options.others else [])]
    for library in ("timm", *libraries):
        if find_spec(library) is None:
            parser.exit(1, f"{library} is not installed: pip install {library}\n")
    load = load_of_machine()
    if load > MAX_LOAD and not options.busy:
        parser.exit(1, f"the load is {load:.2f}, above {MAX_LOAD}: wait, or measure with --busy\n")
    speeds = dict(map(sgemm.measure, ("numpy", *libraries)))
    print("\n".join(header(speeds, options.others)))
    results = []
    for row in rows:
        print(f"{row.model}, batch of {row.batch}{busy_mark(load)}")
        steps = row.quick_steps if options.quick else row.steps
        for mode in row.modes:
            contenders = measure(row, mode, steps, contenders_of(row, options.others))
            print(line(mode, contenders, options.others), flush=True)
            times = {
                name: {"seconds": c.seconds, "cpu_seconds": c.cpu_seconds, "products": c.products, "peak_bytes": c.peak}
                for name, c in contenders.items()
            }
            results.append({"model": row.model, "batch": row.batch, "work": mode, "load": load, **times})
    if options.json:
        content = {"machine": machine(), "GFLOP/s": speeds, "rows": results}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def selected(names: Sequence[str], batches: Sequence[int], quick: bool) -> list[Row]:
    """The rows of these models and batch sizes; with `quick`, those that have quick steps."""
    rows = [row for row in ROWS if row.model in names and row.batch in batches]
    return [row for row in rows if row.quick_steps or not quick]


def contenders_of(row: Row, others: Sequence[str]) -> list[str]:
    """The contenders of a row: JAX has only some models."""
    names = ["minigrad", "torch", *others]
    if "jax" in others:
        from tests.benchmarks import jax_models

        if not jax_models.supports(row.model):
            names.remove("jax")
    return names


# The table ------------------------------------------------------------------------------------------------------------


def header(speeds: dict[str, float], others: Sequence[str]) -> Iterator[str]:
    """What makes two tables comparable, the meaning of the columns, and their names."""
    yield machine()
    yield from sgemm.table(speeds)
    yield f"ms per step, {THREADS} threads, float32: median (quartiles)"
    yield "time, memory: minigrad's time and peak memory, relative to torch"
    yield "over: minigrad's time over the time of its matrix products"
    if others:
        yield f"{', '.join(others)}: time relative to torch"
    yield f"\n{'':8}{'minigrad':17}{'torch':17}{'time':>5}{'over':>6}{'memory':>7}" + "".join(
        f" {name}" for name in others
    )


def line(mode: str, contenders: dict[str, Contender], others: Sequence[str]) -> str:
    ours, theirs = contenders["minigrad"], contenders["torch"]
    cells = f"  {mode:6}{median_and_quartiles(ours.seconds):17}{median_and_quartiles(theirs.seconds):17}"
    cells += f"{ours.median / theirs.median:5.2f}{ours.median / statistics.median(ours.products):6.2f}"
    cells += f"{ours.peak / theirs.peak:7.2f}"
    for name in others:
        ratio = f"{contenders[name].median / theirs.median:.2f}" if name in contenders else "-"
        cells += f" {ratio:>{len(name)}}"
    return cells


def load_of_machine() -> float:
    """The average number of running processes in the last minute; 0 on systems without it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def busy_mark(load: float) -> str:
    return "  BUSY: not reliable" if load > MAX_LOAD else ""


def median_and_quartiles(seconds: Sequence[float]) -> str:
    """In ms, with three digits or all digits of the integer."""
    low, median, high = (
        f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}" for ms in (1e3 * s for s in statistics.quantiles(seconds, n=4))
    )
    return f"{median} ({low}-{high})"


if __name__ == "__main__":
    main()
