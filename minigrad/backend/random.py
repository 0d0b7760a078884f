"""L0: counter-based random numbers, the same on CPU and GPU.

An ordinary generator updates a hidden state for each number. A counter-based generator is a pure function: the 32-bit
words 4k to 4k + 3 of draw d with seed s are `philox(counter=(k, d), key=s)`, on any device and in any order. `uniform`
makes a float64 value from two words, other values from one. So every GPU thread can compute its own numbers, the state
in a checkpoint is two integers, a dropout mask can be recomputed (the op `Dropout` saves its mask; `nn/checkpoint.py`
recomputes), and a process can draw for its part of a batch alone (`Generator.rows`).

Random words and uniform float32 values for a GPU are computed on the GPU (`minigrad/kernels/cuda/random.py`); all other
values are computed on the CPU, in this file, and copied to the device.

Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32 with 10 rounds.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from minigrad.backend.arrays import Array, array_module, to_device
from minigrad.backend.batch import Rows
from minigrad.backend.dtypes import is_floating
from minigrad.backend.fast_paths import fast_path

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and √3 - 1, as 32-bit fractions
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Four random 32-bit words for each 128-bit counter of four words; all words are stored in uint64 arrays.

    One of the ten rounds, for words (c0, c1, c2, c3), key (k0, k1), constants M0, M1, and halves hi, lo of a product:

        (c0, c1, c2, c3) <- (hi(M1·c2) ⊕ c1 ⊕ k0,  lo(M1·c2),  hi(M0·c0) ⊕ c3 ⊕ k1,  lo(M0·c0))
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


class Generator:
    """A random number generator. Its state consists of `seed` and `draws`, the number of arrays drawn so far.

    Each call draws one array and increments `draws`, so the values depend only on the seed and the order of calls.
    `device` is PyTorch's argument, without effect: one generator serves all devices.

    During the capture of a CUDA graph, `captured` is a device array (seed, draws), (2,) uint64, which belongs to the
    graph: the graph's kernels read the state from this array (minigrad/cuda_graph.py).
    """

    captured: Array | None = None
    rows: Rows | None = None
    """If set, `uniform`, `normal` and `integers` draw for these images of a batch: the values that they have in a draw
    for the whole batch. `words` and `permutation` have no image axis: all parts draw the same values."""

    def __init__(self, seed: int = 0, draws: int = 0, *, device: str = "cpu") -> None:
        if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**64):
            raise ValueError(f"the seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
        self.seed, self.draws = int(seed), draws
        self._lock = threading.Lock()

    def manual_seed(self, seed: int) -> "Generator":
        """Start again from `seed`; returns the generator."""
        self.__init__(seed)  # type: ignore[misc]
        return self

    def skip(self, draws: int) -> None:
        """Advance the state as if `draws` arrays had been drawn."""
        with self._lock:
            self.draws += draws

    @contextmanager
    def drawing(self, rows: Rows) -> Iterator[None]:
        """Within the block, draws with an image axis are for the images `rows` of a batch."""
        self.rows = rows if len(rows) < rows.count else None
        try:
            yield
        finally:
            self.rows = None

    def next_draw(self, count: int = 1) -> int:
        """Return the number of the next draw, and advance the state by `count` draws."""
        with self._lock:
            draw, self.draws = self.draws, self.draws + count
        return draw

    def words(self, count: int, device: str = "cpu") -> Array:
        """`count` random 32-bit words, (count,) uint32."""
        fast = fast_path(Generator.words, self, count, device)
        return to_device(self._words(self.next_draw(), 0, count), device) if fast is None else fast(self, count, device)

    def _words(self, draw: int, start: int, stop: int) -> np.ndarray:
        """The words `start` to `stop` - 1 of a draw, (stop - start,) uint32. Word i is in block i // 4."""
        first, end = start // 4, -(-stop // 4)
        words = np.empty((end - first, 4), np.uint32)
        for low in range(first, end, 1 << 14):  # chunks that stay in the cache for all ten rounds
            block = np.arange(low, min(low + (1 << 14), end), dtype=np.uint64)
            counter = (block & _LOW, block >> _HALF, np.uint64(draw & 0xFFFFFFFF), np.uint64(draw >> 32))
            for column, word in enumerate(philox(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32))):
                words[low - first : low - first + len(block), column] = word
        return words.reshape(-1)[start - 4 * first : stop - 4 * first]

    def uniform(
        self, shape: Sequence[int] = (), dtype: Any = np.float32, device: str = "cpu", *, axis: int | None = None
    ) -> Array:
        """Uniform values in [0, 1), with as many random bits as the dtype has significant bits: 8 in bfloat16, 11 in
        float16, 24 in float32, 53 in float64.

        `axis`: the image axis, for draws by `rows`, with k ≥ 1 entries for each image; None: all parts draw the same.
        """
        count, ranges = _count(shape, dtype), self._ranges(shape, axis)
        fast = fast_path(Generator.uniform, self, shape, dtype, device, axis=axis)
        if fast is not None:
            return fast(self, shape, dtype, device, axis=axis)
        draw, size = self.next_draw(), 2 if np.dtype(dtype) == np.float64 else 1  # words of a value
        words = _concatenate([self._words(draw, size * start, size * stop) for start, stop in ranges])
        if size == 2:
            high, low = words.astype(np.uint64).reshape(count, 2).T
            values = (((high << _HALF) | low) >> np.uint64(11)) * 2.0**-53
        else:
            bits = {"bfloat16": 8, "float16": 11}.get(np.dtype(dtype).name, 24)
            values = ((words >> np.uint32(32 - bits)) * np.float32(2.0**-bits)).astype(dtype, copy=False)
        return to_device(values.reshape(shape), device)

    def _ranges(self, shape: Sequence[int], axis: int | None) -> list[tuple[int, int]]:
        """The flat indices to draw: the whole array, or the images `rows` in an array of the whole batch."""
        return [(0, prod(shape))] if self.rows is None or axis is None else self.rows.elements(shape, axis)

    def normal(
        self, shape: Sequence[int] = (), dtype: Any = np.float32, device: str = "cpu", *, axis: int | None = None
    ) -> Array:
        """Standard normal values, by Box and Muller 1958: r cos 2πu₂ and r sin 2πu₂, r = √(-2 ln u₁), u₁ in (0, 1].

        `axis` is as in `uniform`. With `rows`, the values of the whole batch are computed.
        """
        count, ranges = _count(shape, dtype), self._ranges(shape, axis)
        if self.rows is not None and axis is not None:
            count = count * self.rows.count // max(len(self.rows), 1)
        u = self.uniform((2, -(-count // 2)), np.float64)
        radius, angle = np.sqrt(-2 * np.log(1 - u[0])), 2 * np.pi * u[1]
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        values = _concatenate([values[start:stop] for start, stop in ranges])
        return to_device(values.reshape(shape).astype(dtype), device)

    def integers(
        self, low: int, high: int, shape: Sequence[int] = (), device: str = "cpu", *, axis: int | None = None
    ) -> Array:
        """Uniform integers from low to high - 1, int64. `axis` is as in `uniform`."""
        if not low < high <= low + 2**53:
            raise RuntimeError(f"random integers: need low < high <= low + 2**53, got low {low} and high {high}")
        u = self.uniform(shape, np.float64, axis=axis)
        values = low + np.minimum(u * (high - low), high - low - 1).astype(np.int64)  # u · (high - low) may round up
        return to_device(values, device)

    def permutation(self, count: int, device: str = "cpu") -> Array:
        """A random permutation of 0 to count - 1, (count,) int64."""
        keys = self.words(2 * count, device).view(np.uint64)  # 64 bits: n keys collide with probability n² / 2⁶⁵
        return array_module(keys).argsort(keys, kind="stable")


def _concatenate(chunks: Sequence[np.ndarray]) -> np.ndarray:
    """The chunks in one array, without a copy of a single chunk; an empty array if there are none."""
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks or [np.empty(0, np.uint32)])


def _count(shape: Sequence[int], dtype: Any) -> int:
    if min(shape, default=0) < 0:
        raise ValueError(f"random numbers: the shape must not have negative sizes, got {tuple(shape)}")
    if not is_floating(np.dtype(dtype)):
        raise TypeError(f"random numbers: dtype must be floating-point, got {np.dtype(dtype)}")
    return prod(shape)


class _Current(threading.local):
    generator: Generator | None = None


_current = _Current()
_default = Generator(0)


def default_generator() -> Generator:
    """The generator of dropout and initialisers: set by `use_generator` in this thread, else the global generator."""
    return _current.generator or _default


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, reset its draws, and return it. A seed gives the same numbers on every device."""
    generator, fresh = default_generator(), Generator(seed)
    generator.seed, generator.draws = fresh.seed, fresh.draws
    return generator


@contextmanager
def use_generator(generator: Generator) -> Iterator[Generator]:
    """Within the block, `generator` is the default generator of this thread, so that each thread can have its own."""
    previous, _current.generator = _current.generator, generator
    try:
        yield generator
    finally:
        _current.generator = previous
