"""L5: activations as modules; the functions of the same names, in `minigrad.functional`, have the formulas.

`inplace` is accepted, and has no effect on the result: the input is not overwritten.
"""

from minigrad import functional as F
from minigrad.nn.module import Module
from minigrad.tensor import Tensor


class GELU(Module):
    """x · Φ(x), Φ the standard normal CDF; with approximate="tanh" the tanh approximation."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, self.approximate)  # type: ignore[arg-type]


class ReLU(Module):
    """max(x, 0)"""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class SiLU(Module):
    """x / (1 + e⁻ˣ)"""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Sigmoid(Module):
    """1 / (1 + e⁻ˣ)"""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Tanh(Module):
    """tanh x"""

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class _Along(Module):
    """An activation along the axis `dim`."""

    def __init__(self, dim: int | None = None) -> None:
        if dim is None:
            raise ValueError(f"{type(self).__name__}: give the axis, as in {type(self).__name__}(dim=1)")
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_Along):
    """exp xᵢ / Σⱼ exp xⱼ along `dim`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim)


class LogSoftmax(_Along):
    """xᵢ - ln Σⱼ exp xⱼ along `dim`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, self.dim)
