"""L5: a training step as one CUDA graph.

On a GPU, the step of a small model is hundreds of kernels of a few microseconds, and launching a kernel from Python
takes as long as running it. CUDA can capture a step as a graph: it records the kernels, their arguments and their
order once. Afterwards one launch replays the whole step.

A replay has the arguments of the capture: the same addresses, shapes and Python numbers. Therefore

    inputs          are copied into memory that the graph reads
    intermediates   are in memory from a separate pool, which only the graph uses (`_graph_pool`)
    scalars         (learning rate and step count of the optimizer, decay of an EMA, seed and draw number of the
                    generators) are in device memory: before each launch the host copies the next ones there
    parts           of a batch (`Generator.rows`) are constants of the graph
    tables          of addresses of parameters and gradients, for kernels that process all parameters at once, are
                    filled before the first launch (minigrad/backend/capture.py)
    products        call cuBLAS directly: CuPy refuses matrix products during capture (minigrad/backend/cublas.py)
    outputs         are in the same memory after each launch: use or copy them before the next

A step that is captured must not synchronize with the device or copy from the host: `.item()`, `.numpy()` and random
draws on the CPU raise an error.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from minigrad.autograd import writes
from minigrad.backend import Array, cublas, cupy_module, device_of, empty
from minigrad.backend.batch import Rows
from minigrad.backend.capture import Tables, capturing
from minigrad.backend.random import Generator, default_generator
from minigrad.optim import AdamW, Optimizer


class GraphedStep:
    """A training step that is captured as a CUDA graph and replayed.

        step = GraphedStep(step, optimizer)
        for images, labels in batches:
            loss = step(images, labels)

    The graph is captured for inputs with the shapes and dtypes of the first call, and for `rows` of the generators. A
    call with other inputs or rows runs `step` eagerly.

    Args:
        step: takes arrays on a GPU and returns an array or a tuple of arrays on the GPU. It contains the whole training
            step: `zero_grad`, forward, backward, `optimizer.step`.
        optimizer: the AdamW whose `step` is called in `step`.
        warmup: the number of eager calls before the capture, at least 1: they compile kernels, and create memory that
            outlives a step. If the first batch may be the smaller last batch of an epoch, as in a resumed run, call
            `step` itself with it.
        generators: those that `step` draws from; by default the current one at the time of the capture.
    """

    def __init__(
        self, step: Callable[..., Any], optimizer: Optimizer, warmup: int = 3, generators: Sequence[Generator] = ()
    ) -> None:
        if warmup < 1:
            raise ValueError(f"GraphedStep: warmup must be at least 1, got {warmup}")
        if not isinstance(optimizer, AdamW):
            raise TypeError(
                "GraphedStep: optimizer must be AdamW, whose kernel reads the learning rate from device memory, "
                f"got {type(optimizer).__name__}"
            )
        self.step, self.optimizer, self.warmup, self.generators = step, optimizer, warmup, list(generators)
        self.graph: Any = None
        self.kinds: list[tuple[tuple[int, ...], np.dtype]] | None = None  # shapes and dtypes of the first inputs
        self.rows: list[Rows | None] = []  # of the generators, at the first call

    def __call__(self, *inputs: Array) -> Any:
        kinds = [(x.shape, x.dtype) for x in inputs]
        rows = [generator.rows for generator in self.generators or [default_generator()]]
        if self.kinds is None:
            self.kinds, self.rows = kinds, rows
        if self.warmup or kinds != self.kinds or rows != self.rows:
            self.warmup = max(self.warmup - 1, 0)
            return self.step(*inputs)
        if self.graph is None or self.state is not self.optimizer.state:  # load_state_dict replaced it
            self._capture(inputs)
        outside = self.cuda.get_current_stream()
        _wait(self.stream, outside, self.event)
        with self.stream:
            for copy, x in zip(self.inputs, inputs, strict=True):
                copy[...] = x
            self.tables.fill()
            self.random.set(np.array([[g.seed, g.draws] for g in self.drawn_from], np.uint64))
            for generator, draws in zip(self.drawn_from, self.draws, strict=True):
                generator.skip(draws)
            self.graph.launch()
        writes.note_again(self.keys)
        _wait(outside, self.stream, self.event)
        return self.outputs

    def _capture(self, inputs: tuple[Array, ...]) -> None:
        cupy = cupy_module()
        cuda, device = cupy.cuda, device_of(inputs[0])
        self.graph = None  # if this capture fails, the next call must not launch an earlier graph
        self.cuda, self.event = cuda, cuda.Event(disable_timing=True)
        self.stream, self.pool = cuda.Stream(non_blocking=True), _graph_pool(cuda)
        self.blas = direct_blas(device, self.stream.ptr)
        self.inputs, self.state = [x.copy() for x in inputs], self.optimizer.state
        # The graph writes to these arrays: they must exist as long as the graph.
        self.written = [p.data for group in self.optimizer.param_groups for p in group["params"]]
        self.keys = writes.note(self.written)
        self.tables = Tables()
        self.drawn_from = self.generators or [default_generator()]
        self.random = empty((len(self.drawn_from), 2), np.uint64, device)
        _wait(self.stream, cuda.get_current_stream(), self.event)
        before = [generator.draws for generator in self.drawn_from]
        for generator, state in zip(self.drawn_from, self.random, strict=True):
            generator.draws, generator.captured = 0, state
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # a collection during the capture would free memory for reuse within the graph
        cupy.get_default_memory_pool().free_all_blocks()  # of the eager steps: another pool cannot use this memory
        try:
            with self.stream, cuda.using_allocator(self.pool.malloc), cublas.use_blas(self.blas):
                self.stream.begin_capture()
                try:
                    with capturing(self.tables):
                        self.outputs = self.step(*self.inputs)
                except BaseException:
                    with suppress(Exception):  # a consequence of the first exception
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


def _graph_pool(cuda: Any) -> Any:
    """A pool that never returns memory to the GPU while it exists.

    If an allocation fails, CuPy's pool frees its unused memory and tries again. But the captured kernels use this
    memory, although the arrays no longer exist. So the allocator raises an exception after which CuPy does not try
    again, and CuPy's own limit, for which the pool would free memory too, does not apply.
    """

    def allocate(size: int) -> Any:
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except cuda.runtime.CUDARuntimeError as error:
            raise MemoryError(
                "the GPU has too little memory to capture a step as a CUDA graph, whose intermediate results have "
                "memory of their own: use a smaller batch, or run the step without a graph"
            ) from error

    pool = cuda.MemoryPool(allocate)
    pool.set_limit(size=0)  # no limit
    return pool


def _wait(stream: Any, other: Any, event: Any) -> None:
    """Work that is launched on `stream` later waits for the work that is on `other` now. `event` may be reused."""
    event.record(other)
    stream.wait_event(event)
