"""L2: twins for the CPU, in float32. Importing this package puts them in place.

Most of an op's time on a CPU is memory: NumPy walks through a whole array for every operation, and the beginning of an
array of a million numbers has left the cache before the next operation begins. So here arrays are worked on in pieces,
which stay in the cache for all the passes over them; but in large ones, as a second thread gets Python's lock only
between two calls of NumPy. Sums go through BLAS, as products with ones.
"""

from minigrad.kernels.cpu import activation, attention, conv, norm, window_attention

__all__ = ["activation", "attention", "conv", "norm", "window_attention"]
