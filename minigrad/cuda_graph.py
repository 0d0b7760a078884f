"""L5: a training step as one CUDA graph.

On a GPU, a step of a small model is hundreds of kernels of a few microseconds, and to launch each from Python takes as
long as it runs. A graph is a recording of them: CUDA notes the kernels, their arguments and their order once, and
afterwards the whole step is one launch.

What is recorded stays as it is: the kernels read and write the same memory every time. So

    inputs      are copied into memory that the graph reads
    memory      of everything in between comes from a pool that belongs to the graph alone
    lr and t    of the optimiser, the decay of an average, and the state of the generators are in device memory; before
                each launch the host writes the next ones there
    products    are calls of cuBLAS itself, as CuPy refuses them while it records (minigrad/backend/cublas.py)
    addresses   of the parameters and gradients, for kernels that are for all at once, are in tables, which are filled
                before the first launch
    results     are in the same memory after each launch: use or copy them before the next

and nothing in a step may wait for the device or copy from the host: `.item()`, `.numpy()`, a random draw made on the
CPU. Such calls are refused while a step is recorded.
"""

import gc
import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from minigrad.autograd import writes
from minigrad.backend import Array, cublas, device_of, empty
from minigrad.backend.random import Generator, default_generator
from minigrad.kernels.cuda.table import Tables, capturing
from minigrad.optim import AdamW


class GraphedStep:
    """`step` as a graph: a call with arrays like those of the first replays it, any other call runs it as it is.

        step = GraphedStep(step, optimizer)
        for images, labels in batches:
            loss = step(images, labels)

    Args:
        step: takes arrays on a GPU and returns an array or a tuple of them, on the GPU too. It goes all the way:
            `zero_grad`, forward, backward, `optimizer.step`.
        optimizer: whose `step` is called in it.
        generators: those that it draws from; by default the current one when it is recorded.
        warmup: so many calls first run as they are, at least one: kernels are compiled, and memory is made that lives
            longer than a step. What is recorded is of the shapes of the first: if that may be the smaller batch at the
            end of an epoch, as where a run is resumed, call `step` itself with it.
    """

    def __init__(
        self, step: Callable[..., Any], optimizer: AdamW, warmup: int = 3, generators: Sequence[Generator] = ()
    ) -> None:
        if warmup < 1:
            raise ValueError(f"GraphedStep: needs at least one call to warm up, got {warmup}")
        if not isinstance(optimizer, AdamW):
            raise TypeError(
                f"GraphedStep: is for AdamW, whose rate a graph can read anew, got {type(optimizer).__name__}"
            )
        self.step, self.optimizer, self.warmup, self.generators = step, optimizer, warmup, list(generators)
        self.graph: Any = None
        self.kinds: list[tuple[tuple[int, ...], np.dtype]] | None = None  # of the inputs of the first call

    def __call__(self, *inputs: Array) -> Any:
        kinds = [(x.shape, x.dtype) for x in inputs]
        self.kinds = self.kinds or kinds
        if self.warmup or kinds != self.kinds:
            self.warmup = max(self.warmup - 1, 0)
            return self.step(*inputs)
        if self.graph is None or self.state is not self.optimizer.state:  # another was loaded
            self._capture(inputs)
        cuda = importlib.import_module("cupy").cuda
        outside = cuda.get_current_stream()
        _wait(self.stream, outside)
        with self.stream:
            for mine, x in zip(self.inputs, inputs, strict=True):
                mine[...] = x
            self.tables.fill()
            self.random.set(np.array([[g.seed, g.draws] for g in self.drawn_from], np.uint64))
            for generator, draws in zip(self.drawn_from, self.draws, strict=True):
                generator.skip(draws)
            self.graph.launch()
        writes.note(p.data for group in self.optimizer.param_groups for p in group["params"])
        _wait(outside, self.stream)
        return self.outputs

    def _capture(self, inputs: tuple[Array, ...]) -> None:
        cuda = importlib.import_module("cupy").cuda
        device, self.graph = device_of(inputs[0]), None  # an older one is not launched again, whatever happens
        self.stream, self.pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
        self.blas = direct_blas(device, self.stream.ptr)
        self.inputs, self.state = [x.copy() for x in inputs], self.optimizer.state
        self.tables = Tables()
        self.drawn_from = self.generators or [default_generator()]
        self.random = empty((len(self.drawn_from), 2), np.uint64, device)
        _wait(self.stream, cuda.get_current_stream())
        before = [generator.draws for generator in self.drawn_from]
        for generator, state in zip(self.drawn_from, self.random, strict=True):
            generator.draws, generator.captured = 0, state
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # what is freed while a graph is recorded is not to be another's memory
        try:
            with self.stream, cuda.using_allocator(self.pool.malloc), cublas.use_blas(self.blas):
                self.stream.begin_capture()
                try:
                    with capturing(self.tables):
                        self.outputs = self.step(*self.inputs)
                except BaseException:
                    with suppress(Exception):  # which says only that something went wrong before
                        self.stream.end_capture()
                    raise
                self.graph = self.stream.end_capture()
        finally:
            if collecting:
                gc.enable()
            self.draws = [generator.draws for generator in self.drawn_from]
            for generator, draws in zip(self.drawn_from, before, strict=True):
                generator.draws, generator.captured = draws, None


def direct_blas(device: str, stream: int) -> cublas.Blas:
    """cuBLAS without CuPy, on this stream."""
    blas = cublas.CtypesBlas(cublas.load_library(), empty((cublas.WORKSPACE,), np.uint8, device))
    blas.use_stream(stream)
    return blas


def _wait(stream: Any, other: Any) -> None:
    """What comes on `stream` waits for all that is on `other` now."""
    event = importlib.import_module("cupy").cuda.Event(disable_timing=True)
    event.record(other)
    stream.wait_event(event)
