"""Stages `precompile`, `precompile_cases`, `unpack`, in the background: fill CuPy's cache of kernels, unpack CIFAR-10.

The cache is on disk and shared by all processes. NVRTC takes about a second for a module, and a process compiles one
module at a time. So models and cases run here without their kernels: a launch only sends its module to a pool of
processes, which compile. CuPy's own kernels do run, and are compiled by this process.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from typing import Any

from minigrad.kernels.cuda.launch import CuPyDevice, Dim3, Kernel, use_device
from tests.gpu.stages import smoke
from tests.gpu.stages.device import release
from tests.gpu.stages.stage import Options, Parts, Row, cifar10, failed, packed_cifar10
from tests.gpu.stages.steps import LARGE

WORKERS = min(8, os.cpu_count() or 1)  # of each of the two stages


def parts(options: Options) -> Parts:
    models = [*smoke.FAMILIES, *(w.model for w in LARGE)]
    return {"models": partial(precompile, {name: partial(one_step, name) for name in models})}


def cases_parts(options: Options) -> Parts:
    return {"cases": lambda: precompile(cases())}


def one_step(model: str) -> None:
    for amp in (False, True) if model in smoke.FAMILIES else (True,):
        smoke.prepared(model, {}, "cuda", amp=amp, graphed=False)()


def cases() -> dict[str, Callable[[], Any]]:
    from tests.gpu.cases import CASES
    from tests.gpu.stages.kernels import exact, is_large, outcome

    def large(case: Any) -> None:
        arrays = case.arrays(small=False, device="cuda")
        outcome(case, arrays, "cuda")
        exact(case, arrays, "cuda")

    small = {case.name: partial(outcome, case, case.arrays(small=True), "cuda") for case in CASES}
    return small | {f"{case.name}: large": partial(large, case) for case in CASES if is_large(case)}


class Compiler(CuPyDevice):
    """A device that launches nothing: each module is compiled, once, by a process of `pool`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        super().__init__()
        self.pool = pool
        self.modules: dict[tuple[Any, ...], tuple[Kernel, Future[None]]] = {}

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        key = kernel.file, kernel.constants
        if key not in self.modules:
            self.modules[key] = kernel, self.pool.submit(compile_module, kernel)


def compile_module(kernel: Kernel) -> None:
    CuPyDevice()._compiled(kernel)


def precompile(works: dict[str, Callable[[], Any]]) -> Iterator[Row]:
    """Compile the modules that `works` launch. A work that fails, as a later stage will, does not stop the others."""
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        device = Compiler(pool)
        with use_device(device):
            for name, work in works.items():
                try:
                    work()
                except Exception as error:
                    yield failed(name, error)
                release()
        for kernel, compiled in device.modules.values():
            if error := compiled.exception():
                yield failed(f"{kernel.file} {' '.join(kernel.macros)}", error)
    yield {"what": "modules compiled", "value": len(device.modules), "processes": WORKERS}


def unpack_parts(options: Options) -> Parts:
    return {"CIFAR-10": partial(unpack, options)}


def unpack(options: Options) -> Iterator[Row]:
    if cifar10(options) is None:
        command = [sys.executable, str(packed_cifar10(options)), str(options.scratch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
    yield {"what": "CIFAR-10", "value": str(cifar10(options))}
