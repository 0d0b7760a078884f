"""L2: fast paths for the CPU, in float32. Importing this package registers them.

Most of an op's time on a CPU is memory traffic. NumPy reads and writes a whole array for each operation, so the first
elements of an array of a million have left the cache before the next operation reads them. Here arrays are processed in
chunks that stay in the cache for all operations on them. Chunks are large: a second thread gets Python's lock only
between two calls of NumPy. Sums are products with ones, by BLAS.
"""

from minigrad.kernels.cpu import activation, attention, conv, norm, window_attention

__all__ = ["activation", "attention", "conv", "norm", "window_attention"]
