"""Stage `kernels`: every CUDA fast path against the reference implementation in float64, its time, and its share of the
bandwidth of a copy."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from tests.gpu.stages.ceilings import bandwidth
from tests.gpu.stages.device import gpu_seconds
from tests.gpu.stages.stage import Options, Parts, Row


def parts(options: Options) -> Parts:
    from tests.gpu.cases import CASES

    return {case.name: partial(kernel, case, options) for case in CASES}


def kernel(case: Any, options: Options) -> Iterator[Row]:
    """Compare with the reference implementation: small arrays in NumPy; on a GPU, also large arrays, with the reference
    on the GPU, since NumPy would take hours."""
    from tests.cupy_on_cpu import in_place_of_cupy

    arrays = case.arrays(small=True)
    with in_place_of_cupy() if options.cpu else nullcontext():
        found, by = outcome(case, arrays, "cuda")
        found = [to_float64(x).get() for x in found]
    errors = {"small": error_of(found, exact(case, arrays, "cpu"))}
    if not options.cpu:
        arrays = case.arrays(small=False)
        found, by = outcome(case, arrays, "cuda")
        errors["large"] = error_of(map(to_float64, found), exact(case, arrays, "cuda"))
    row: Row = {"what": case.name, "value": max(errors.values()), "unit": "error", **errors, "by": by.__module__}
    if not (".cuda." in by.__module__ and all(error < case.limit for error in errors.values())):
        row["wrong"] = True
    yield row
    if not options.cpu:
        del found
        yield from time_of(case, arrays)


def outcome(case: Any, arrays: list[np.ndarray], device: str) -> tuple[list[Any], type]:
    """The output and the gradients, on the device, and the class of the op that ran."""
    from minigrad import Tensor
    from minigrad.autograd.node import Output
    from tests.gpu.cases import Last

    tensors = case.tensors(arrays, device)
    y = case.call(*tensors)
    op = y.grad_fn
    while isinstance(op, Last | Output):  # skip the nodes that select an output of the op
        op = op.edges[0][0]
    grad = np.resize(case.rounded(np.cos(np.arange(1009.0))), y.shape)
    y.backward(Tensor(grad.astype(arrays[0].dtype), device=device))
    return [x.data for x in (y, *(t.grad for t in tensors))], type(op)


def exact(case: Any, arrays: list[np.ndarray], device: str) -> list[Any]:
    """`outcome` of the reference implementation in float64."""
    from minigrad import without_fast_paths

    with without_fast_paths():
        return outcome(case, [x.astype(np.float64) for x in arrays], device)[0]


def to_float64(x: Any) -> Any:
    from minigrad.backend.dtypes import FLOAT32, cast

    return cast(x, FLOAT32).astype(np.float64)


def error_of(found: Any, exact: list[Any]) -> float:
    """The maximum error, relative to the maximum absolute value of each array; NaN if any error is NaN."""
    return max(
        (float(abs(a - b).max()) / max(float(abs(b).max()), 1e-3) for a, b in zip(found, exact, strict=True)),
        key=lambda error: np.inf if np.isnan(error) else error,
    )


def time_of(case: Any, arrays: list[np.ndarray]) -> Iterator[Row]:
    from minigrad import Tensor

    tensors = case.tensors(arrays, "cuda")
    y = case.call(*tensors)
    grad = Tensor(np.ones(y.shape, y.dtype), device="cuda")
    size = sum(t.data.nbytes for t in tensors) + case.outputs * y.data.nbytes
    del y

    def forward_and_backward() -> None:
        for t in tensors:
            t.grad = None  # else gradients would be accumulated
        case.call(*tensors).backward(grad)

    forward, both = gpu_seconds(partial(case.call, *tensors)), gpu_seconds(forward_and_backward)
    row = {"what": f"{case.name}: time", "value": forward * 1e6, "unit": "us"}
    row |= {"backward_us": (both - forward) * 1e6, "share_of_copy": size / bandwidth() / forward}
    yield row
