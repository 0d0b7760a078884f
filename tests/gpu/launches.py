"""Launches and bytes of a training step in mixed precision, counted without a GPU, and recorded in launches.json:

    python -m tests.gpu.launches              the table, and what differs from the recorded one
    python -m tests.gpu.launches --record     record the table anew, after an intended change

A step runs on tests/cupy_on_cpu, whose kernels and matrix products are counted here, not executed. The number of
launches does not depend on the batch: two small batches must agree. Since bytes = a + b · batch, they also give the
bytes at the model's batch. Bytes are those of the arrays of a launch, each once.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt, prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from minigrad.backend import cublas, cublas_lt
from minigrad.kernels.cuda.launch import Dim3, Kernel, use_device
from minigrad.kernels.cuda.table import Table
from models.terminal import ArgumentParser, escape_unencodable
from tests.cupy_on_cpu import in_place_of_cupy
from tests.cupy_on_cpu.api import OPERATORS
from tests.cupy_on_cpu.array import ndarray
from tests.cupy_on_cpu.capture import observed_by
from tests.gpu.stages.contenders import Workload, ours

FILE = Path(__file__).with_suffix(".json")
MODELS = {  # and the batches of the table
    "vit_tiny_cifar": (128, 512), "swin_tiny_cifar": (512,), "convnext_atto_cifar": (512,), "hybrid_cifar": (512,),
    "vit_base_patch16_224": (128,), "swin_tiny_patch4_window7_224": (128,), "convnext_tiny": (128,),
}  # fmt: skip
BATCHES = (2, 3)
ALLOCATIONS = (np.empty, np.empty_like)
IN_PLACE = ("setitem", "at", "fill", *(f"i{name}" for name in OPERATORS))


class Count:
    """Counts the launches of one step, by name, and their bytes; `work` has the bytes and FLOPs of each in order."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.work: list[tuple[int, int]] = []
        self.bytes = 0

    def add(self, name: str, nbytes: int, flops: int = 0) -> None:
        self.launches[name] += 1
        self.work.append((nbytes, flops))
        self.bytes += nbytes

    # the device of minigrad's kernels

    def owns(self, x: Any) -> bool:
        return isinstance(x, ndarray)

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        arrays = {id(x): x for x in args if isinstance(x, ndarray)}.values()
        self.add(f"kernel {kernel.name}", sum(getattr(x, "rows_nbytes", 0) + x.nbytes for x in arrays))

    # cuBLAS and cublasLt

    def gemm(self, m: int, n: int, k: int, A: Any, B: Any, C: Any, batch: int, data: int, compute: int) -> None:
        self.product("product", (m * k, k * n, m * n), (A, B, C), batch)

    def matmul(self, epilogue: int, m: int, n: int, k: int, A: Any, B: Any, C: Any, *rest: Any) -> bool:
        name = "product with bias" if epilogue == cublas_lt.BIAS else "product with sums"
        self.product(name, (m * k, k * n, m * n), (A, B, C), 1)
        return True

    def product(self, name: str, sizes: Sequence[int], operands: Sequence[Any], batch: int) -> None:
        nbytes = batch * sum(size * x.array.itemsize for size, x in zip(sizes, operands, strict=True))
        self.add(name, nbytes, 2 * batch * isqrt(prod(sizes)))  # 2 m n k

    # CuPy's own kernels and copies

    def operation(self, function: Any, inputs: Any, options: dict[str, Any], result: Any) -> None:
        if function in ALLOCATIONS:
            return
        out = options.get("out")
        (out,) = out if isinstance(out, tuple) else (out,)
        name = function.__name__
        pieces = inputs[0] if name in ("concatenate", "stack") else ()
        read = [x for x in (getattr(function, "__self__", None), *inputs, *pieces) if isinstance(x, np.ndarray)]
        if name in IN_PLACE or out is not None:
            written = read[0] if out is None else out
            if name == "setitem" and any(_same(written[inputs[1]], x) for x in read[1:]):
                return  # the end of `x[i] += y`: CuPy skips the copy, too
        elif not isinstance(result, np.ndarray) or any(np.may_share_memory(result, x) for x in read):
            return  # a view, or no array
        else:
            written = result
        arrays = {id(x): x for x in (*read, written)}.values()
        for _ in pieces or [written] if written.size else []:  # (`concatenate` copies its inputs one by one)
            self.add(f"CuPy {name} -> {written.dtype.name}", sum(x.nbytes for x in arrays) // max(len(pieces), 1))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """True if a and b are the same elements of one array."""
    return a.__array_interface__["data"] == b.__array_interface__["data"] and a.strides == b.strides


@contextmanager
def counting() -> Iterator[Count]:
    """Within the block, launches on the stand-in are counted; kernels and matrix products are not executed."""
    count, create = Count(), Table.__init__

    def noted(self: Table, *columns: Any, **options: Any) -> None:
        create(self, *columns, **options)
        if isinstance(self.memory, ndarray):
            self.memory.rows_nbytes = sum(x.nbytes for column in columns for x in column)

    with (
        in_place_of_cupy(), use_device(count), cublas.use_blas(count), patch.object(Table, "__init__", noted),
        patch("minigrad.backend.cublas_lt.shared", lambda: count), observed_by(count.operation),
        np.errstate(all="ignore"),
    ):  # fmt: skip
        yield count


def counted(model: str, batch: int) -> Count:
    """One training step in mixed precision, after a first step, which creates the optimizer's state."""
    with counting() as count:
        step = ours(Workload(model, batch, 1, 1), amp=True, graphed=False)
        step()
        count.launches.clear()
        count.work.clear()
        count.bytes = 0
        step()
    return count


def row(model: str) -> dict[str, Any]:
    """The entry of launches.json for a model."""
    low, high = BATCHES
    first, second = counted(model, low), counted(model, high)
    if first.launches != second.launches:
        raise ValueError(f"{model}: launches depend on the batch: {differences(first.launches, second.launches)}")
    image = (second.bytes - first.bytes) / (high - low)
    gigabytes = {str(batch): round((first.bytes + (batch - low) * image) / 1e9, 3) for batch in MODELS[model]}
    names = dict(sorted(first.launches.items()))
    return {"launches": sum(names.values()), "GB by batch": gigabytes, "launches by name": names}


def compared(model: str, recorded: dict[str, Any], found: dict[str, Any]) -> str:
    """The differences between a step and the record, and how to record anew; an empty string without differences."""
    if recorded == found:
        return ""
    more = differences(recorded.get("launches by name", {}), found["launches by name"])
    was = " ".join(f"{recorded.get(key)}" for key in ("launches", "GB by batch"))
    return (
        f"{model}: {found['launches']} launches, {found['GB by batch']} GB by batch; recorded: {was}. {more}\n"
        "If this is intended, record the table anew: python -m tests.gpu.launches --record"
    )


def differences(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Such as `gelu_forward 9 -> 10`."""
    names = sorted({*before, *after})
    return "; ".join(
        f"{name} {before.get(name, 0)} -> {after.get(name, 0)}"
        for name in names
        if before.get(name, 0) != after.get(name, 0)
    )


def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def main() -> int:
    escape_unencodable()
    parser = ArgumentParser(prog="python -m tests.gpu.launches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write launches.json")
    options = parser.parse_args()
    found, before = {}, recorded()
    for model in MODELS:
        found[model] = row(model)
        print(
            f"{model:30} {found[model]['launches']:5} launches   {found[model]['GB by batch']} GB by batch", flush=True
        )
    differing = [text for model in before if (text := compared(model, before[model], found[model]))]
    print("\n".join(differing))
    if options.record:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if options.record or not differing else 1


if __name__ == "__main__":
    sys.exit(main())
