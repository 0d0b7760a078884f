"""Compare time and memory of training and inference with PyTorch, on the CPU.

    python -m tests.benchmarks.cpu      (needs torch and timm)

Both libraries run the same model with the same weights on the same batch, in float32 with two threads. minigrad's code
is that of a user: `create_model`, autograd and `optim.AdamW`. Two BLAS libraries in one process slow each other down,
so each contender runs in its own process. Contenders take turns, one step at a time, and their medians are compared.
Before the measurement, their losses, or in inference the sums of their logits, must agree.

Two threads wait for each other, so other programs slow them down, and each contender by a different factor: with a load
above 0.5 nothing is measured, except with `--busy`, which marks each row.

The table also shows the share of minigrad's time spent in matrix products, and minigrad's time over that time: the
speedup that would be left if everything but the products took no time.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from models.terminal import ArgumentParser, escape_unencodable

THREADS = 2
MAX_LOAD = 0.5  # average number of running processes in the last minute
PAUSE = 0.03  # seconds between two steps, until the waiting threads of the other process sleep


class Row(NamedTuple):
    """A row of the table: a model, its batch size, the number of steps, and the number with --quick (0: no row)."""

    model: str
    batch: int
    steps: int
    quick_steps: int


ROWS = [
    Row("vit_tiny_cifar", 64, 15, 4),
    Row("vit_base_patch16_224", 8, 5, 0),
    Row("convnext_atto_cifar", 64, 15, 5),
    Row("convnext_tiny", 8, 5, 0),
    Row("swin_tiny_cifar", 64, 15, 4),
    Row("swin_tiny_patch4_window7_224", 8, 5, 0),
    Row("hybrid_cifar", 64, 9, 2),
]
MODES = ("train", "infer")


# Contenders: each returns a function that runs one step and returns a value that must agree ---------------------------


def minigrad(row: Row, mode: str) -> Callable[[], float]:
    import numpy as np

    import models
    from minigrad import Tensor, no_grad, optim
    from minigrad import functional as F
    from minigrad.backend import tune
    from minigrad.nn import init
    from minigrad.parallel.threads import Shards
    from models.compare import formula

    tune.tune_cpu(THREADS)
    with init.skip_init():
        model = formula.fill(models.create_model(row.model)).to(dtype=np.float32)
    images, labels = batch(row, model)
    shards = Shards(THREADS)

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


def batch(row: Row, model: Any) -> Any:
    """Images and labels. Both are computed by formulas, so that all contenders get the same."""
    import numpy as np

    from models.compare import formula

    images = formula.stream("benchmark", row.batch, model.in_chans, *model.img_size).astype(np.float32)
    return images, np.arange(row.batch) * 7919 % model.num_classes


CONTENDERS = {"minigrad": minigrad, "torch": torch, "plain": plain, "compiled": compiled}


# The processes --------------------------------------------------------------------------------------------------------


def serve(name: str, row: Row, mode: str) -> None:
    """The process of a contender: for each input line, run a step; print its seconds, its value, its peak memory, and
    the seconds in minigrad's matrix products, the mean over the threads."""
    from minigrad.backend import products

    step = CONTENDERS[name](row, mode)
    for _ in sys.stdin:
        with products.timed() as product_seconds:
            start = time.perf_counter()
            value = step()
            seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([seconds, value, peak, sum(product_seconds) / THREADS]), flush=True)


class Contender:
    """Starts the process of a contender, requests steps from the main process, and collects their times."""

    def __init__(self, name: str, row: Row, mode: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.cpu", "--serve", name, row.model, mode]
        self.name, self.seconds, self.products, self.peak = name, [], [], 0
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} has ended")
        seconds, value, self.peak, products = json.loads(line)
        self.seconds.append(seconds)
        self.products.append(products)
        return value

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def products_share(self) -> float:
        """The share of the time that matrix products take."""
        return statistics.median(self.products) / self.median

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(row: Row, mode: str, steps: int, names: list[str]) -> dict[str, Contender]:
    """Two warm-up steps, with a check that the values of the first agree; then the contenders take turns."""
    contenders = [Contender(name, row, mode) for name in names]
    values = [contender.step() for contender in contenders]
    if max(abs(value - values[0]) for value in values) > 1e-3 * max(1, abs(values[0])):
        raise SystemExit(f"{row.model}: {dict(zip(names, values, strict=True))} must be equal")
    for contender in contenders:
        contender.step()
        contender.seconds.clear()
        contender.products.clear()
    for _ in range(steps):
        for contender in contenders:
            time.sleep(PAUSE)
            contender.step()
    for contender in contenders:
        contender.close()
    return {contender.name: contender for contender in contenders}


def main() -> None:
    escape_unencodable()
    parser = ArgumentParser(prog="python -m tests.benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, without the models for images of 224 x 224")
    parser.add_argument("--rows", nargs="+", metavar="MODEL", help="only these models")
    parser.add_argument(
        "--with", nargs="+", dest="others", default=[], choices=["plain", "compiled"], metavar="CONTENDER",
        help="also measure plain (minigrad without fast paths and tuning) or compiled (torch.compile)",
    )  # fmt: skip
    parser.add_argument("--busy", action="store_true", help=f"measure with a load above {MAX_LOAD} too; marks each row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times of all steps to FILE")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, model, mode = options.serve
        return serve(name, next(row for row in ROWS if row.model == model), mode)
    load = load_of_machine()
    if load > MAX_LOAD and not options.busy:
        parser.exit(1, f"the load is {load:.2f}, above {MAX_LOAD}: wait, or measure with --busy\n")
    names, results = ["minigrad", "torch", *options.others], []
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores. Seconds per step: median (quartiles)")
    print(f"load before the measurement: {load:.2f}" + busy_mark(load))
    print("time, memory: minigrad's time and peak memory, relative to torch")
    print("products: share of minigrad's time in matrix products; over: minigrad's time over the products' time")
    if options.others:
        print(f"{', '.join(options.others)}: time relative to torch")
    others = "".join(f" {name}" for name in options.others)
    print(f"\n{'':8}{'minigrad':22}{'torch':22}{'time':>5}{'memory':>7}{'products':>9}{'over':>6}{others}")
    for row in ROWS:
        steps = row.quick_steps if options.quick else row.steps
        if not steps or (options.rows and row.model not in options.rows):
            continue
        print(f"{row.model}, batch of {row.batch}")
        for mode in MODES:
            contenders = measure(row, mode, steps, names)
            ours, theirs = contenders["minigrad"], contenders["torch"]
            line = f"  {mode:6}{median_and_quartiles(ours):22}{median_and_quartiles(theirs):22}"
            line += f"{ours.median / theirs.median:5.2f}{ours.peak / theirs.peak:7.2f}"
            line += f"{ours.products_share:9.0%}{1 / ours.products_share:6.2f}"
            for name in options.others:
                line += f"{contenders[name].median / theirs.median:{len(name) + 1}.2f}"
            print(line + busy_mark(load), flush=True)
            times = {
                name: {"seconds": c.seconds, "products": c.products, "peak_bytes": c.peak}
                for name, c in contenders.items()
            }
            results.append({"model": row.model, "batch": row.batch, "work": mode, "load": load, **times})
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def load_of_machine() -> float:
    """The average number of running processes in the last minute; 0 on systems without it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def busy_mark(load: float) -> str:
    return "  BUSY: not reliable" if load > MAX_LOAD else ""


def median_and_quartiles(contender: Contender) -> str:
    low, median, high = statistics.quantiles(contender.seconds, n=4)
    return f"{median:.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    main()
