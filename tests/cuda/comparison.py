"""Compare CUDA fast paths, run on the CPU, with the reference implementations in float64.

    assert_matches_reference(F.gelu, random_array(0, 4, 5), fast_path=activation.CUDAGELU)

The reference gets the same inputs, upcast, and the same gradient of the output. So a float32 result differs only by the
rounding errors of float32 sums; a 16-bit result has the rounding error of one cast in addition.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.backend.batch import Rows, split
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import Launch
from tests.cuda.runner import ORDERS, KernelError, emulated, guarded, recorded

Array = np.ndarray

FLOAT32, BFLOAT16, FLOAT16 = map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16))
HALF_PRECISION = [BFLOAT16, FLOAT16]
DTYPES = [FLOAT32, *HALF_PRECISION]
DIGITS = {FLOAT32: 24, BFLOAT16: 8, FLOAT16: 11}  # binary digits of the significand
UNIT_ROUNDOFF = {dtype: 2.0**-digits for dtype, digits in DIGITS.items()}  # the maximum relative error of a cast


# Parts of a batch ---------------------------------------------------------------------------------------------------


@st.composite
def parts(draw: st.DrawFn, most: int = 20, *, mirrored: bool | None = None) -> Rows:
    """The images of a process, or of a thread of a process, in a batch of 1 to `most` images: one or two index ranges.
    With `mirrored`, the images of a process that mixes image i with image count - 1 - i."""
    count, paired = draw(st.integers(1, most)), draw(st.booleans()) if mirrored is None else mirrored
    rows = draw(st.sampled_from([part for part in split(count, draw(st.integers(1, 4)), mirrored=paired) if len(part)]))
    if mirrored or draw(st.booleans()):
        return rows
    start = draw(st.integers(0, len(rows) - 1))
    return rows.part(start, draw(st.integers(start + 1, len(rows))))


def generator_of(rows: Rows | None, seed: int = 0, draws: int = 0) -> Generator:
    """A generator that draws for these images."""
    generator = Generator(seed, draws)
    generator.rows = rows
    return generator


# Inputs -------------------------------------------------------------------------------------------------------------


def random_array(
    seed: int, *shape: int, dtype: Any = FLOAT32, layout: str = "C", scale: float = 3.0, offset: float = 0.0
) -> Array:
    """Normal values of standard deviation `scale` and mean `offset`, with a memory layout of `with_layout`."""
    x = (np.random.default_rng(seed).standard_normal(shape) * scale + offset).astype(dtype)
    return x if layout == "C" else with_layout(x, layout)


def normal(seed: int, *shape: int, **options: Any) -> Array:
    """Standard normal values; options as for `random_array`."""
    return random_array(seed, *shape, scale=1.0, **options)


def random_qkv(
    lead: Sequence[int], L: int, S: int, E: int, V: int, dtype: Any = FLOAT32, layouts: Sequence[str] = ("C", "C", "C")
) -> list[Array]:
    """Queries (*lead, L, E), keys (*lead, S, E) and values (*lead, S, V), standard normal."""
    shapes = (L, E), (S, E), (S, V)
    return [
        normal(i, *lead, *shape, dtype=dtype, layout=layout)
        for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True))
    ]


def with_layout(x: Array, layout: str) -> Array:
    """A copy of x with another memory layout.

    layout               memory
    "F"                  axes in reverse order
    "channels-last"      (N, C, ...) as (N, ..., C)
    "rows first"         (..., rows, columns) as (rows, ..., columns)
    "backwards"          rows with a negative stride
    "strided"            a gap after each element
    "packed"             (..., heads, rows, columns) as k in the packed qkv (..., rows, 3, heads, columns)
    """
    match layout:
        case "F":
            return np.asfortranarray(x)
        case "channels-last":
            return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        case "rows first":
            return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -2, 0)), 0, -2)
        case "backwards":
            return np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :]
        case "strided":
            return np.stack([x, x], axis=-1)[..., 0]
        case "packed":
            return np.stack([x.swapaxes(-2, -3)] * 3, axis=-3)[..., 1, :, :].swapaxes(-2, -3)
    raise ValueError(f"unknown layout {layout!r}")


def unaligned(x: Array, elements: int = 1) -> Array:
    """A contiguous copy of x, at an address that is a multiple of 32 bytes plus `elements` elements."""
    memory = guarded(x.size + elements, x.dtype, aligned=32)
    copy = memory[elements:].reshape(x.shape)
    copy[...] = x
    return copy


def guarded_copy(x: Array, side: str = "after", *, aligned: int = 1) -> Array:
    """A contiguous copy of x beside a protected page: see `guarded`."""
    copy = guarded(x.shape, x.dtype, side, aligned=aligned)
    copy[...] = x
    return copy


def as_float64(x: Array | None) -> Array | None:
    """x in float64; class indices, masks of booleans and None unchanged."""
    return x if x is None or x.dtype.kind in "iub" else x.astype(np.float64)


# Running an op ------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Forward and backward of an op."""

    node: Any  # the op that computed the output: its grad_fn
    results: list[Array | None]  # the output, and the gradient of each input, None without a gradient
    grad_y: Array  # the gradient of the output


def run_op(
    op: Callable[..., Tensor], *arrays: Array | None,
    wanted: Sequence[Any] | None = None, grad_y: Array | None = None, grad_layout: str = "C",
) -> Run:  # fmt: skip
    """Forward and backward of op(*arrays).

    Args:
        wanted: which floating-point inputs require a gradient; all by default.
        grad_y: the gradient of the output; random by default, with the memory layout `grad_layout`.
    """
    tensors = [
        None if x is None else Tensor(x, requires_grad=bool(want) and x.dtype.kind not in "iub")
        for x, want in zip(arrays, wanted or [True] * len(arrays), strict=True)
    ]
    minigrad.manual_seed(3)
    y = op(*tensors)
    node = y.grad_fn
    if grad_y is None:
        grad_y = random_array(9, *y.shape, dtype=y.dtype, layout=grad_layout)
    y.backward(Tensor(grad_y))
    return Run(node, [y.numpy(), *(None if t is None or t.grad is None else t.grad.numpy() for t in tensors)], grad_y)


def run_reference(op: Callable[..., Tensor], *arrays: Array | None, grad_y: Array, wanted: Any = None) -> list[Any]:
    """The results of the reference implementation in float64."""
    with minigrad.without_fast_paths():
        run = run_op(op, *map(as_float64, arrays), grad_y=as_float64(grad_y), wanted=wanted)
    assert type(run.node).__module__.startswith("minigrad.ops.")
    return run.results


# Comparing ----------------------------------------------------------------------------------------------------------


def max_error(found: Sequence[Array | None], exact: Sequence[Array | None]) -> float:
    """The maximum difference, relative to the maximum absolute value (at least 1) of each array.

    The error is ∞ if the NaNs or infinities of the two arrays differ. Pairs of None are ignored.
    """
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if a is not None or b is not None]
    return max((error_of(ours, theirs) for ours, theirs in pairs), default=0.0)


def error_of(found: Any, exact: Any) -> float:
    """`max_error` of one pair."""
    assert found.shape == exact.shape
    ours, finite = found.astype(np.float64), np.isfinite(exact)
    if not np.array_equal(np.where(finite, 0, ours), np.where(finite, 0, exact), equal_nan=True):
        return np.inf
    error = abs(ours - exact)[finite].max(initial=0) / max(abs(exact[finite]).max(initial=0), 1)
    return float(error) if np.isfinite(error) else np.inf


def assert_matches_reference(
    op: Callable[..., Tensor], *arrays: Array | None, fast_path: type, tolerance: float = 1e-5,
    wanted: Sequence[Any] | None = None, grad_y: Array | None = None, grad_layout: str = "C",
    order: str = ORDERS[0], guard: str | None = None,
) -> tuple[Run, list[Launch]]:  # fmt: skip
    """Check the output and all gradients of the fast path against the reference. Returns the run, and its launches.

    The output has the dtype of the first input, a gradient the dtype of its input. `tolerance` bounds
    `max_error`; for a 16-bit result the bound includes the relative error of a cast in addition.
    """
    with recorded(order, guard=guard) as launches:
        run = run_op(op, *arrays, wanted=wanted, grad_y=grad_y, grad_layout=grad_layout)
    assert type(run.node) is fast_path
    expected = run_reference(op, *arrays, wanted=wanted, grad_y=run.grad_y)
    for found, exact, x in zip(run.results, expected, (arrays[0], *arrays), strict=True):
        if found is None or x is None:
            assert found is exact is None
            continue
        error, limit = error_of(found, exact), tolerance + (UNIT_ROUNDOFF[x.dtype] if x.dtype in HALF_PRECISION else 0)
        assert found.dtype == x.dtype and error <= limit, f"dtype {found.dtype}, error {error:.2g} of {limit:.2g}"
    return run, launches


def same_bits(found: Sequence[Array | None], expected: Sequence[Array | None]) -> bool:
    """True if dtypes, shapes and all bits are equal."""
    as_bytes = lambda arrays: [None if x is None else (x.dtype, x.shape, x.tobytes()) for x in arrays]  # noqa: E731
    return as_bytes(found) == as_bytes(expected)


def results_in(order: str, run: Callable[[], Sequence[Array | None]], **options: Any) -> Sequence[Array | None]:
    """The results of `run` in a thread order of `ORDERS`."""
    with emulated(order, **options):
        return run()


def assert_thread_order_changes_no_bit(run: Callable[[], Sequence[Array | None]]) -> None:
    """Check that `run` returns arrays with the same bits in every thread order."""
    expected = results_in(ORDERS[0], run)
    for order in (*ORDERS[1:], ORDERS[0]):
        assert same_bits(results_in(order, run), expected), order


def barrier_is_needed(barrier: str, run: Callable[[], Sequence[Array | None]]) -> bool:
    """True if a kernel fails or the results of `run` change without this barrier, in some thread order."""
    expected = results_in(ORDERS[0], run)
    for order in ORDERS:
        try:
            found = results_in(order, run, barrier=barrier)
        except KernelError:
            return True
        if not same_bits(found, expected):
            return True
    return False


def packs(launches: Iterable[Launch]) -> list[int]:
    """The constant PACK of each launched kernel: the number of elements per load."""
    return [dict(launch.kernel.constants)["PACK"] for launch in launches]


def kernel_names(launches: Iterable[Launch]) -> list[str]:
    return [launch.kernel.name for launch in launches]
