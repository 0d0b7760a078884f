"""Measure the overhead of the autograd engine for one op, compared with NumPy alone.

    python -m tests.benchmarks.engine

A round is a chain of 1,000 ops on arrays of four elements, where the arithmetic itself costs little. The overhead is
the CPU time of minigrad's forward and backward minus NumPy's time for the same arithmetic. minigrad and NumPy take
turns, round by round. On a shared processor, the best round is the most reliable.
"""

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from minigrad import Tensor
from models.terminal import ArgumentParser, escape_unencodable

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
    parser = ArgumentParser(prog="python -m tests.benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41, metavar="N", help="number of rounds (default: 41)")
    rounds = parser.parse_args().rounds
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"µs per op, forward and backward, best of {rounds} rounds; overhead = minigrad - NumPy\n")
    print(f"{'op':6}{'minigrad':>10}{'NumPy':>10}{'overhead: best':>17}{'median':>9}   quartiles")
    for name, with_numpy, with_minigrad in (("add", add_numpy, add_minigrad), ("mul", mul_numpy, mul_minigrad)):
        x, y = np.ones(4, np.float32), np.ones(4, np.float32)
        times = []
        for _ in range(rounds):
            numpy_time = microseconds(with_numpy, x, y)
            times.append((microseconds(with_minigrad, Tensor(x, requires_grad=True), Tensor(y)), numpy_time))
        best, numpy_best = (min(column) for column in zip(*times, strict=True))
        low, median, high = statistics.quantiles([a - b for a, b in times])
        overhead = f"{best - numpy_best:17.2f}{median:9.2f}   {low:.2f} to {high:.2f}"
        print(f"{name:6}{best:10.2f}{numpy_best:10.2f}{overhead}")


if __name__ == "__main__":
    main()
