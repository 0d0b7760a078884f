"""PyTorch's answers, recorded, so that a machine without PyTorch can compare with them.

`calls.json` has a list of calls: the case, the options, and the shapes and dtypes of the arrays; `values.npz` has all
the arrays' numbers, one behind the other, as one float64 array. `python -m tests.goldens.record` writes both.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tests.cases.case import Call

_CALLS, _VALUES = (Path(__file__).parent / name for name in ("calls.json", "values.npz"))


@dataclass(frozen=True)
class Golden:
    """One call of a case, and what PyTorch made of it."""

    case: str
    call: Call
    grad_output: np.ndarray
    answers: list[np.ndarray]  # the output, and the gradients of the inputs that have one


def save(goldens: list[Golden]) -> None:
    table, values = [], []
    for golden in goldens:
        arrays = [*golden.call.inputs, golden.grad_output, *golden.answers]
        kinds = [None if x is None else [x.dtype.str, *x.shape] for x in arrays]
        values += [x.astype(np.float64).ravel() for x in arrays if x is not None]
        options = {name: _encoded(choice) for name, choice in golden.call.options.items()}
        table.append({"case": golden.case, "options": options, "inputs": len(golden.call.inputs), "arrays": kinds})
    _CALLS.write_text("[\n" + ",\n".join(map(json.dumps, table)) + "\n]\n")
    np.savez_compressed(_VALUES, values=np.concatenate(values))


def load() -> list[Golden]:
    with np.load(_VALUES) as file:
        values, start, goldens = file["values"], 0, []
    for entry in json.loads(_CALLS.read_text()):
        arrays: list[np.ndarray | None] = []
        for kind in entry["arrays"]:
            if kind is None:
                arrays.append(None)
                continue
            dtype, *shape = kind
            stop = start + prod(shape)
            arrays.append(values[start:stop].reshape(shape).astype(dtype))
            start = stop
        inputs, (grad_output, *answers) = arrays[: entry["inputs"]], arrays[entry["inputs"] :]
        options = {name: _decoded(choice) for name, choice in entry["options"].items()}
        goldens.append(Golden(entry["case"], Call(tuple(inputs), options), grad_output, answers))
    return goldens


def _encoded(choice: Any) -> Any:
    """A choice in JSON's words, and a few more for what JSON has no word for."""
    if isinstance(choice, slice):
        return {"slice": [choice.start, choice.stop, choice.step]}
    if choice is ...:
        return {"ellipsis": 0}
    if isinstance(choice, tuple):
        return {"tuple": [_encoded(part) for part in choice]}
    if isinstance(choice, list):
        return [_encoded(part) for part in choice]
    return choice.item() if isinstance(choice, np.generic) else choice


def _decoded(choice: Any) -> Any:
    if isinstance(choice, list):
        return [_decoded(part) for part in choice]
    if not isinstance(choice, dict):
        return choice
    ((kind, value),) = choice.items()
    return ... if kind == "ellipsis" else slice(*value) if kind == "slice" else tuple(map(_decoded, value))
