"""What a case is: one public function, how to call it, and what it must then return."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor


@dataclass(frozen=True)
class Call:
    """One drawn call. Float64 arrays among the inputs are differentiable, integer and boolean ones are not."""

    inputs: tuple[np.ndarray | None, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One op in the table that the property tests, the PyTorch comparison and the goldens run over.

    Args:
        name: the public name, "conv2d".
        run: `run(*tensors, **options)`, the public function. Several outputs are put together into one Tensor, with
            distinct weights, so that each of them counts.
        calls: draws shapes, size 1 and empty ones among them where legal, values, layouts, and all options.
        oracle: `oracle(*arrays, **options)`: naive loops or textbook NumPy in float64.
        torch: `torch(torch_module, *torch_tensors, **options)`; None where PyTorch has no such function.
        differentiable: which inputs; None means every float one.
        ops: how many are applied one after another: as often a 16-bit result is rounded.
    """

    name: str
    run: Callable[..., Tensor]
    calls: st.SearchStrategy[Call]
    oracle: Callable[..., Any]
    torch: Callable[..., Any] | None
    differentiable: tuple[int, ...] | None = None
    ops: int = 1

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<case {self.name}>")  # in the report of a failing example

    def wanted(self, call: Call) -> tuple[int, ...]:
        """The inputs of this call to differentiate."""
        floats = (i for i, x in enumerate(call.inputs) if x is not None and x.dtype.kind == "f")
        return tuple(i for i in floats if self.differentiable is None or i in self.differentiable)


def combined(parts: Any, cat: Callable[[list[Any]], Any]) -> Any:
    """Several outputs as one flat row, part k times k + 1. `cat` is the library's: cat, torch.cat, np.concatenate."""
    return cat([part.reshape(-1) * (k + 1.0) for k, part in enumerate(parts)])


def calls(*inputs: Any, **options: Any) -> st.SearchStrategy[Call]:
    """Calls whose inputs and options are drawn independently; a value that is no strategy is passed unchanged."""

    def drawn(value: Any) -> st.SearchStrategy[Any]:
        return value if isinstance(value, st.SearchStrategy) else st.just(value)

    return st.builds(
        Call, st.tuples(*map(drawn, inputs)), st.fixed_dictionaries({name: drawn(c) for name, c in options.items()})
    )
