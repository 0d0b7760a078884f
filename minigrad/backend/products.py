"""L0: matrix products by NumPy: with accurate sums over many terms, and with their time measured.

A step on a CPU takes at least the time of its matrix products. All products of `gemm` and of the CPU fast paths call
`products.matmul`, which is `np.matmul` itself: only within `timed` does a call cost more.

A product over K terms, as a weight gradient over all rows of a batch, is as accurate as its BLAS kernel: with naive
summation, the error of positive terms grows with K. OpenBLAS adds a few hundred terms at a time, with two exceptions
that use naive summation: products of at most `SMALL` multiplications on a processor with AVX-512, and products of a
matrix and a vector. `accurate_matmul` divides the terms of such products, with k = ⌊K / CHUNK⌋ and float64 for the sum:

    Y = Σⱼ AⱼBⱼ + A'B',   Aⱼ (M, CHUNK), Bⱼ (CHUNK, N), j < k;   A', B': the remaining terms

Maximum errors of uniform random values, in units in the last place (EPYC Zen 5, OpenBLAS of NumPy 2.4, float32):

    M, K, N                    `matmul`, AVX2    `matmul`, AVX-512    `accurate_matmul`
    6, 20 000, 8               3                 48                   1
    32, 900, 32                8                 23                   6
    3, 333 333, 1              151               151                  1

Such a product takes 7 µs more, and up to 1.4 times as long for a matrix and a vector.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

CHUNK = 256  # terms that one product adds
MANY = 3 * CHUNK  # terms, up to which one product is accurate enough
SMALL = 10**6  # multiplications, up to which OpenBLAS has kernels for small matrices

matmul: Callable[..., Any] = np.matmul


def accurate_matmul(a: Any, b: Any) -> Any:
    """`a @ b` of NumPy arrays; a sum over many terms is computed in chunks."""
    if b.ndim == 1:
        return accurate_matmul(a, b[:, None])[..., 0]
    if a.ndim == 1:
        return accurate_matmul(a[None], b)[..., 0, :]
    *_, M, K = a.shape
    N = b.shape[-1]
    if K <= MANY or a.dtype != np.float32 or (M * K * N > SMALL and min(M, N) > 1):
        return matmul(a, b)
    k = K // CHUNK
    chunks_of_a = a[..., : k * CHUNK].reshape(*a.shape[:-1], k, CHUNK).swapaxes(-2, -3)
    chunks_of_b = b[..., : k * CHUNK, :].reshape(*b.shape[:-2], k, CHUNK, N)
    y = matmul(chunks_of_a, chunks_of_b).sum(axis=-3, dtype=np.float64)  # (..., k, M, N) -> (..., M, N)
    if K % CHUNK:
        y += matmul(a[..., k * CHUNK :], b[..., k * CHUNK :, :])
    return y.astype(np.float32)


@contextmanager
def timed() -> Iterator[list[float]]:
    """Within the block, the CPU seconds of each matrix product, of all threads, are appended to the list.

    with products.timed() as seconds:
        model(x)
    print(sum(seconds))
    """
    global matmul
    seconds: list[float] = []

    def timed_matmul(*arrays: Any, **options: Any) -> Any:
        start = time.thread_time()
        y = np.matmul(*arrays, **options)
        seconds.append(time.thread_time() - start)
        return y

    before, matmul = matmul, timed_matmul
    try:
        yield seconds
    finally:
        matmul = before
