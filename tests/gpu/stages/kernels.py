"""Stage `kernels`: every CUDA fast path against the reference implementation in float64, on small arrays; then, in
bfloat16, on arrays of the models' sizes, with the time and the share of the bandwidth of a copy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.gpu.stages.ceilings import bandwidth
from tests.gpu.stages.device import cupy_or_stand_in, gpu_seconds
from tests.gpu.stages.stage import Options, Parts, Row


def parts(options: Options) -> Parts:
    from tests.gpu.cases import CASES

    small = {case.name: partial(on_small_arrays, case, options) for case in CASES}
    large = {f"{case.name}: large": partial(on_large_arrays, case) for case in CASES if is_large(case)}
    return small if options.cpu else small | large


def is_large(case: Any) -> bool:
    return case.dtype == "bfloat16"


def on_small_arrays(case: Any, options: Options) -> Iterator[Row]:
    """Compare with the reference implementation in NumPy."""
    arrays = case.arrays(small=True)
    with cupy_or_stand_in(options.cpu):
        found, by = outcome(case, arrays, "cuda")
        found = [to_float64(x).get() for x in found]
    yield compared(case.name, case.limit, found, exact(case, arrays, "cpu"), by)


def on_large_arrays(case: Any) -> Iterator[Row]:
    """Compare with the reference implementation on the GPU, since NumPy would take hours; then the time."""
    arrays = case.arrays(small=False, device="cuda")
    found, by = outcome(case, arrays, "cuda")
    yield compared(f"{case.name}: large", case.limit, list(map(to_float64, found)), exact(case, arrays, "cuda"), by)
    del found
    yield time_of(case, arrays)


def compared(what: str, limit: float, found: list[Any], expected: list[Any], by: type) -> Row:
    error = error_of(found, expected)
    row: Row = {"what": what, "value": error, "unit": "error", "by": by.__module__}
    return row if ".cuda." in by.__module__ and error < limit else row | {"wrong": True}


def outcome(case: Any, arrays: list[Any], device: str) -> tuple[list[Any], type]:
    """The output and the gradients, on the device, and the class of the op that ran."""
    from minigrad import Tensor
    from minigrad.autograd.node import Output
    from tests.gpu.cases import Last

    tensors = case.tensors(arrays, device)
    y = case.call(*tensors)
    op = y.grad_fn
    while isinstance(op, Last | Output):  # skip the nodes that select an output of the op
        op = op.edges[0][0]
    y.backward(Tensor(case.grad(y.data)))
    return [x.data for x in (y, *(t.grad for t in tensors))], type(op)


def exact(case: Any, arrays: list[Any], device: str) -> list[Any]:
    """`outcome` of the reference implementation in float64."""
    from minigrad import without_fast_paths

    with without_fast_paths():
        return outcome(case, [to_float64(x) for x in arrays], device)[0]


def to_float64(x: Any) -> Any:
    from minigrad.backend.dtypes import FLOAT32, cast

    return cast(x, FLOAT32).astype(np.float64)


def error_of(found: Any, exact: list[Any]) -> float:
    """The maximum error, relative to the maximum absolute value of each array; NaN if any error is NaN."""
    return max(
        (float(abs(a - b).max()) / max(float(abs(b).max()), 1e-3) for a, b in zip(found, exact, strict=True)),
        key=lambda error: np.inf if np.isnan(error) else error,
    )


def time_of(case: Any, arrays: list[Any]) -> Row:
    from minigrad import Tensor

    tensors = case.tensors(arrays, "cuda")
    y = case.call(*tensors)
    grad = Tensor(case.grad(y.data))
    size = sum(t.data.nbytes for t in tensors) + case.outputs * y.data.nbytes
    del y

    def forward_and_backward() -> None:
        for t in tensors:
            t.grad = None  # else gradients would be accumulated
        case.call(*tensors).backward(grad)

    forward, both = gpu_seconds(partial(case.call, *tensors)), gpu_seconds(forward_and_backward)
    row = {"what": f"{case.name}: time", "value": forward * 1e6, "unit": "us"}
    row |= {"backward_us": (both - forward) * 1e6, "share_of_copy": size / bandwidth() / forward}
    return row
