"""`Case`: a public function, random calls of it, and reference implementations to compare with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor


@dataclass(frozen=True)
class Call:
    """One random call. float64 inputs are differentiable; integer and boolean inputs are not."""

    inputs: tuple[np.ndarray | None, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One op of the table. The property tests, the comparison with PyTorch and the goldens run over the table.

    Args:
        name: the public name, "conv2d".
        run: `run(*tensors, **options)`, the public function. Several outputs are concatenated to one Tensor, each with
            a factor of its own, so that a permutation of the outputs fails.
        calls: a strategy for shapes (also empty ones and axes of size 1), values, memory layouts, and all options.
        oracle: `oracle(*arrays, **options)`, the expected output: naive loops or textbook NumPy in float64.
        torch: `torch(torch_module, *torch_tensors, **options)`; None if PyTorch has no equivalent function.
        differentiable: the indices of the differentiable inputs; None means all floating-point inputs.
        ops: the number of ops in sequence: in half precision, each rounds its output.
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

    def differentiable_inputs(self, call: Call) -> tuple[int, ...]:
        """The indices of the inputs that get a gradient in this call."""
        floats = (i for i, x in enumerate(call.inputs) if x is not None and x.dtype.kind == "f")
        return tuple(i for i in floats if self.differentiable is None or i in self.differentiable)


def concatenated(parts: Any, cat: Callable[[list[Any]], Any]) -> Any:
    """Outputs joined to one 1-D array, output k scaled by k + 1. `cat`: minigrad.cat, torch.cat or np.concatenate."""
    return cat([part.reshape(-1) * (k + 1.0) for k, part in enumerate(parts)])


def torch_functional(name: str) -> Callable[..., Any]:
    """`Case.torch` for a function of torch.nn.functional."""
    return lambda torch, *xs, **options: getattr(torch.nn.functional, name)(*xs, **options)


def calls(*inputs: Any, **options: Any) -> st.SearchStrategy[Call]:
    """Calls with independent inputs and options. A value that is not a strategy is passed unchanged."""

    def strategy(value: Any) -> st.SearchStrategy[Any]:
        return value if isinstance(value, st.SearchStrategy) else st.just(value)

    return st.builds(
        Call,
        st.tuples(*map(strategy, inputs)),
        st.fixed_dictionaries({name: strategy(c) for name, c in options.items()}),
    )
