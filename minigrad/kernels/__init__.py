"""L2: fast paths: faster implementations for one kind of device. Read `minigrad/ops/` first.

The reference implementation is an op in `minigrad/ops/`, or a function. A fast path is a subclass of the op with its
own `forward` or `backward`, or another function. The fast path runs if its `supports` returns True. Tests compare each
fast path with the reference implementation; `python -m tests.benchmarks.fast_paths` measures the speed-up.
"""

from minigrad.kernels import cpu, cuda

__all__ = ["cpu", "cuda"]
