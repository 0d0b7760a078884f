"""L2: ops of `minigrad/ops/` once more, faster on one kind of machine, and not for reading first.

The op in `minigrad/ops/` is the specification. Its twin is a subclass with another `forward` or `backward`, and takes
its place for the arrays that it `takes`. It comes with a test that both agree, and with the gain that was measured:
`python -m tests.benchmarks.twins`.
"""

from minigrad.kernels import cpu, cuda
from minigrad.kernels.twins import TWINS, without_twins

__all__ = ["TWINS", "cpu", "cuda", "without_twins"]
