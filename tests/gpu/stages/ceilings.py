"""Stage `ceilings`: the bandwidth of a copy, the speed of large matrix products, and the gain of fused epilogues."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.gpu.stages.device import gpu_seconds, normal
from tests.gpu.stages.stage import Options, Parts, Row

EPILOGUES = ("bfloat16", "float16", "float32")


def parts(options: Options) -> Parts:
    products = {
        f"gemm, {name}{', TF32' if tf32 else ''}": partial(product, name, tf32)
        for name, tf32 in (("bfloat16", False), ("float16", False), ("float32", True), ("float32", False))
    }
    return {"copy": copy} | products | {f"epilogues, {name}": partial(epilogues, name) for name in EPILOGUES}


@cache
def bandwidth() -> float:
    """Bytes per second that a copy reads and writes."""
    import cupy

    x = cupy.empty(1 << 28, np.float32)
    y = cupy.empty_like(x)
    return 2 * x.nbytes / gpu_seconds(partial(cupy.copyto, y, x))


def copy() -> Iterator[Row]:
    yield {"what": "copy, 1 GiB", "value": bandwidth() / 1e12, "unit": "TB/s"}


def product(name: str, tf32: bool, n: int = 8192) -> Iterator[Row]:
    from minigrad.backend import cublas
    from minigrad.backend.dtypes import as_dtype, cast

    a = cast(normal(n, n), as_dtype(name))  # (not zeros: they take less power, so a GPU multiplies them faster)
    cublas.allow_tf32(tf32)
    seconds = gpu_seconds(lambda: cublas.matmul(a, a))
    cublas.allow_tf32(False)
    what = f"gemm {n}, {name}{', TF32' if tf32 else ''}"
    yield {"what": what, "value": 2 * n**3 / seconds / 1e12, "unit": "TFLOP/s"}


def epilogues(name: str, B: int = 25216, D: int = 768, O: int = 3072) -> Iterator[Row]:  # noqa: E741
    """The speedup of a matrix product with an epilogue over two calls, for a linear layer of D input and O output
    features on B rows. The default is ViT-Base's widest with 128 images. The row is `wrong` if cublasLt has no
    algorithm, or another result.
    """
    from minigrad.backend import cublas_lt, gemm
    from minigrad.backend.dtypes import FLOAT32, as_dtype, cast
    from minigrad.ops.matmul import sum_of_rows

    dtype, shapes = as_dtype(name), ((B, D), (O, D), (O,), (B, O))
    x, weight, bias, grad_y = (cast(normal(*shape, offset=i), dtype) for i, shape in enumerate(shapes))
    with_bias = partial(cublas_lt.matmul_with_bias, x, weight.T, bias, dtype)
    and_sums = partial(cublas_lt.matmul_and_sums, grad_y.T, x, FLOAT32)

    def separate_bias(x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
        return gemm(x, weight.T, bias=bias)

    def separate_sums(x: Any = x, grad_y: Any = grad_y) -> Any:
        return gemm(grad_y.T, x, dtype=FLOAT32), sum_of_rows(grad_y, FLOAT32)

    for what, fused, separate in (("bias", with_bias, separate_bias), ("sums", and_sums, separate_sums)):
        row: Row = {"what": f"product with {what}, {dtype.name}", "value": "no such product", "wrong": True}
        found, fused_seconds = fused(), gpu_seconds(fused)
        with patch("minigrad.backend.cublas_lt.shared", lambda: None):
            exact, separate_seconds = separate(), gpu_seconds(separate)
        if found is not None:
            pairs = [(found, exact)] if what == "bias" else zip(found, exact, strict=True)
            pairs = [(cast(a, FLOAT32), cast(b, FLOAT32)) for a, b in pairs]
            row["error"] = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
            row |= {"value": separate_seconds / fused_seconds, "unit": "x", "wrong": not row["error"] <= 1e-2}
        yield row
