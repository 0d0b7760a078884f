"""What the engine adds to NumPy's own time, for one op: `python -m tests.benchmarks.engine`.

A chain of 1,000 operations on arrays of four numbers, where the arithmetic costs next to nothing; NumPy's time for the
same forward and backward arithmetic is taken off. NumPy and minigrad take turns, round by round. The clock is the CPU
time of this thread; where the processor itself is shared, the best round says most about the code.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from minigrad import Tensor
from models.terminal import escape_unencodable

LENGTH = 1000


def add_numpy(x: np.ndarray, y: np.ndarray) -> None:
    for _ in range(LENGTH):
        x = x + y


def add_minigrad(x: Tensor, y: Tensor) -> None:
    for _ in range(LENGTH):
        x = x + y
    x.backward(x.detach())


def mul_numpy(x: np.ndarray, y: np.ndarray) -> None:
    saved = []
    for _ in range(LENGTH):
        saved.append(x)
        x = x * y
    for _ in range(LENGTH):
        x = x * y


def mul_minigrad(x: Tensor, y: Tensor) -> None:
    for _ in range(LENGTH):
        x = x * y
    x.backward(x.detach())


def microseconds(function: Callable[..., None], *arguments: object) -> float:
    start = time.thread_time()
    function(*arguments)
    return (time.thread_time() - start) / LENGTH * 1e6


def main() -> None:
    escape_unencodable()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print("forward + backward, µs an op    minigrad   NumPy's own   the engine's share: best round, median, quartiles")
    for name, plain, tracked in (("add", add_numpy, add_minigrad), ("mul", mul_numpy, mul_minigrad)):
        x, y = np.ones(4, np.float32), np.ones(4, np.float32)
        times = []
        for _ in range(rounds):
            own = microseconds(plain, x, y)
            times.append((microseconds(tracked, Tensor(x, requires_grad=True), Tensor(y)), own))
        ours, own = (min(column) for column in zip(*times, strict=True))
        low, middle, high = statistics.quantiles([a - b for a, b in times])
        print(f"{name:31} {ours:8.2f} {own:13.2f} {ours - own:9.2f} {middle:10.2f}   {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
