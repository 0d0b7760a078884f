"""Training and inference against PyTorch eager, on the CPU:  python -m tests.benchmarks.cpu  (needs torch and timm)

Both run the same model with the same weights on the same batch, in float32, on two threads: here as a user writes it,
with `create_model`, autograd and `optim.AdamW`. Each contender is a process of its own, as two BLAS libraries in one
process disturb each other; they take turns, one step at a time, and the medians are compared. Before that, their
first loss, or the sum of their logits, must agree.
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

from models.terminal import escape_unencodable

THREADS = 2
REST = 0.03  # seconds between two steps, in which the other's threads come to rest


class Row(NamedTuple):
    """A line of the table: a model and its batch; steps to be taken, and taken with --quick."""

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
WORK = ("train", "infer")


# Contenders: each makes a function that takes one step and returns a number that must agree ---------------------------


def minigrad(row: Row, work: str) -> Callable[[], float]:
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

    def train(images: np.ndarray, part: np.ndarray) -> float:
        loss = F.cross_entropy(model(Tensor(images)), Tensor(part)) * (len(part) / len(labels))
        loss.backward()
        return loss.item()

    if work == "infer":
        model.eval()
        return lambda: float(sum(logits.sum() for logits in shards.run(infer, images)))
    optimizer = optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss = sum(shards.run(train, images, labels))
        optimizer.step()
        return loss

    return step


def torch(row: Row, work: str, *, compiled: bool = False) -> Callable[[], float]:
    import torch

    from models.compare.references import Reference

    torch.set_num_threads(THREADS)
    reference = Reference("timm", row.model)
    model = reference.network.float()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # timm's default for Swin is not
    images, labels = map(torch.from_numpy, batch(row, reference.model))
    run = torch.compile(model) if compiled else model
    if work == "infer":
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


def compiled(row: Row, work: str) -> Callable[[], float]:
    return torch(row, work, compiled=True)


def plain(row: Row, work: str) -> Callable[[], float]:
    """minigrad without fast paths and tuning, but with BLAS threads limited so that they do not oversubscribe cores."""
    from minigrad import without_fast_paths
    from minigrad.backend import tune

    tune.tune_cpu = partial(tune.tune_cpu, allocator=False, kernels=False)
    step = minigrad(row, work)

    def run() -> float:
        with without_fast_paths():
            return step()

    return run


def batch(row: Row, model: Any) -> Any:
    """Images and labels, computed from names."""
    import numpy as np

    from models.compare import formula

    images = formula.stream("benchmark", row.batch, model.in_chans, *model.img_size).astype(np.float32)
    return images, np.arange(row.batch) * 7919 % model.num_classes


CONTENDERS = {"minigrad": minigrad, "torch": torch, "plain": plain, "compiled": compiled}


# The processes --------------------------------------------------------------------------------------------------------


def serve(name: str, row: Row, work: str) -> None:
    """A contender: takes a step for each line it reads, and answers with seconds and the number that must agree."""
    step = CONTENDERS[name](row, work)
    for _ in sys.stdin:
        start = time.perf_counter()
        value = step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([seconds, value, peak]), flush=True)


class Contender:
    """The other end."""

    def __init__(self, name: str, row: Row, work: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.cpu", "--serve", name, row.model, work]
        self.name, self.seconds, self.peak = name, [], 0
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended")
        seconds, value, self.peak = json.loads(line)
        self.seconds.append(seconds)
        return value

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(row: Row, work: str, steps: int, names: list[str]) -> dict[str, Contender]:
    """Two steps to warm up, of which the first shows that all compute the same; then turn by turn."""
    contenders = [Contender(name, row, work) for name in names]
    values = [contender.step() for contender in contenders]
    if max(abs(value - values[0]) for value in values) > 1e-3 * max(1, abs(values[0])):
        raise SystemExit(f"{row.model}: {dict(zip(names, values, strict=True))} should be equal")
    for contender in contenders:
        contender.step()
        contender.seconds.clear()
    for _ in range(steps):
        for contender in contenders:
            time.sleep(REST)
            contender.step()
    for contender in contenders:
        contender.close()
    return {contender.name: contender for contender in contenders}


def main() -> None:
    escape_unencodable()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, and no images of 224 x 224")
    parser.add_argument("--rows", nargs="+", metavar="MODEL", help="only these")
    parser.add_argument("--with", nargs="+", dest="others", default=[], choices=["plain", "compiled"], help="besides")
    parser.add_argument("--json", type=Path, help="write all times there")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, model, work = options.serve
        return serve(name, next(row for row in ROWS if row.model == model), work)
    names, results = ["minigrad", "torch", *options.others], []
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; seconds a step, median (quartiles)\n")
    print(
        f"{'':38}{'minigrad':>20}{'torch':>22}   ratio   peak memory of torch's"
        + "".join(f"{o:>12}" for o in names[2:])
    )
    for row in ROWS:
        steps = row.quick_steps if options.quick else row.steps
        if not steps or (options.rows and row.model not in options.rows):
            continue
        for work in WORK:
            found = measure(row, work, steps, names)
            ours, theirs = found["minigrad"], found["torch"]
            ratio = statistics.median(ours.seconds) / statistics.median(theirs.seconds)
            others = [statistics.median(found[name].seconds) / statistics.median(theirs.seconds) for name in names[2:]]
            print(
                f"{row.model:30}{work:>6}{row.batch:>3} {spread(ours)} {spread(theirs)}   {ratio:5.2f}"
                f"   {ours.peak / theirs.peak:8.2f}" + " " * 14 + "".join(f"{other:12.2f}" for other in others),
                flush=True,
            )
            times = {name: {"seconds": c.seconds, "peak_bytes": c.peak} for name, c in found.items()}
            results.append({"model": row.model, "batch": row.batch, "work": work, **times})
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def spread(contender: Contender) -> str:
    low, middle, high = statistics.quantiles(contender.seconds, n=4)
    return f"{middle:8.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    main()
