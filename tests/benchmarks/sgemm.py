"""Measure sgemm, the matrix product of BLAS in float32, with one thread: GFLOP/s of NumPy, torch and JAX.

    python -m tests.benchmarks.sgemm [--libraries numpy torch jax]

Most of a model's time is matrix products, so a ratio between two libraries depends on their BLAS and on the processor.
Each library runs in its own process. The clock is CPU time, which other programs hardly change; the fastest of 30
products of two matrices of 1024 x 1024 counts.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from models.terminal import ArgumentParser, escape_unencodable

N, ROUNDS = 1024, 30
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC"), "1"
)
PREFIXES = ("OPENBLAS_", "OMP_", "MKL_", "XLA_")  # of environment variables that change the speed


# Each returns the library and its BLAS, with their versions, and a function that computes a product -------------------


def numpy() -> tuple[str, Callable[[], Any]]:
    """NumPy after `tune_cpu`, as in minigrad."""
    import numpy as np

    from minigrad.backend import tune

    tune.tune_cpu()
    openblas = tune._openblas()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    x = np.ones((N, N), np.float32)
    name = f"NumPy {np.__version__}, {blas['name']} {blas['version']}"
    name += f", {tune._kernels(openblas)} kernels" if openblas else ""
    return name, lambda: x @ x


def torch() -> tuple[str, Callable[[], Any]]:
    import torch

    config = torch.__config__.show()
    mkl, blas = re.search(r"Math Kernel Library Version ([\d.]+)", config), re.search(r"BLAS_INFO=(\w+)", config)
    x = torch.ones(N, N)
    return (
        f"torch {torch.__version__}, {f'MKL {mkl[1]}' if mkl else blas[1] if blas else 'unknown BLAS'}",
        lambda: x @ x,
    )


def jax() -> tuple[str, Callable[[], Any]]:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax import numpy as jnp

    x, product = jnp.ones((N, N)), jax.jit(jnp.matmul)
    return f"jax {jax.__version__}, XLA", lambda: product(x, x).block_until_ready()


LIBRARIES = {"numpy": numpy, "torch": torch, "jax": jax}


def serve(library: str) -> None:
    """The process of a library: print its name and its GFLOP/s."""
    name, product = LIBRARIES[library]()
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        product()
        seconds.append(time.process_time() - start)
    print(json.dumps([name, 2 * N**3 / min(seconds) / 1e9]))


def measure(library: str) -> tuple[str, float]:
    """The name of the library and its GFLOP/s, measured in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.sgemm", "--serve", library]
    result = subprocess.run(command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"the product of {library} has failed")
    name, speed = json.loads(result.stdout)
    return name, speed


def table(speeds: dict[str, float]) -> Iterator[str]:
    """The speeds, and the environment variables that change them."""
    yield f"sgemm, {N} x {N} x {N}, one thread, in GFLOP/s:"
    for name, speed in speeds.items():
        yield f"{speed:5.0f}  {name}"
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)]
    if variables:
        yield textwrap.fill(f"environment: {' '.join(variables)}", 79)


def main(arguments: Sequence[str] | None = None) -> None:
    from tests.benchmarks.scaling import machine

    escape_unencodable()
    parser = ArgumentParser(prog="python -m tests.benchmarks.sgemm", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--libraries", nargs="+", choices=LIBRARIES, default=["numpy", "torch"], metavar="LIBRARY",
        help="numpy, torch or jax (default: numpy torch)",
    )  # fmt: skip
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve(options.serve)
    print(machine())
    print("\n".join(table(dict(map(measure, options.libraries)))))


if __name__ == "__main__":
    main()
