"""L2: fast paths: faster implementations of ops for one kind of device. Read `minigrad/ops/` first.

The op in `minigrad/ops/` is the reference implementation. A fast path is a subclass of the op with its own `forward`
or `backward`. The fast path runs where it `supports` the arguments. Tests compare each fast path with its op;
`python -m tests.benchmarks.fast_paths` measures the speed-up.
"""

from minigrad.kernels import cpu, cuda

__all__ = ["cpu", "cuda"]
