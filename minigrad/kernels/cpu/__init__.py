"""L2: fast paths for the CPU, in float32. Importing this package registers them.

Most of an op's time on a CPU is memory traffic. Each NumPy operation reads and writes entire arrays, so the first
elements of a large array have left the cache when the next operation reads them. Here arrays are processed in chunks
that stay in the cache for all operations on them. The chunks are still large, since threads wait for Python's GIL
between two calls of NumPy. Sums are products with vectors of ones, by BLAS.
"""

from minigrad.kernels.cpu import activation, attention, conv, norm, optim, window_attention

__all__ = ["activation", "attention", "conv", "norm", "optim", "window_attention"]
