"""Recorded results of PyTorch (goldens), so that tests without PyTorch compare with them.

`calls.json` is a list of calls: the case, the options, and the shapes and dtypes of the arrays. `values.npz` holds the
elements of all arrays, concatenated as one float64 array. `python -m tests.goldens.record` writes both files.
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
    """One call of a case, and PyTorch's results."""

    case: str
    call: Call
    grad_output: np.ndarray
    results: list[np.ndarray]  # the output, and the gradients of the differentiable inputs


def save(goldens: list[Golden]) -> None:
    table, values = [], []
    for golden in goldens:
        arrays = [*golden.call.inputs, golden.grad_output, *golden.results]
        dtypes_and_shapes = [None if x is None else [x.dtype.str, *x.shape] for x in arrays]
        values += [x.astype(np.float64).ravel() for x in arrays if x is not None]
        options = {name: _encoded(value) for name, value in golden.call.options.items()}
        table.append(
            {"case": golden.case, "options": options, "inputs": len(golden.call.inputs), "arrays": dtypes_and_shapes}
        )
    _CALLS.write_text("[\n" + ",\n".join(map(json.dumps, table)) + "\n]\n")
    np.savez_compressed(_VALUES, values=np.concatenate(values))


def load() -> list[Golden]:
    with np.load(_VALUES) as file:
        values, start, goldens = file["values"], 0, []
    for entry in json.loads(_CALLS.read_text()):
        arrays: list[np.ndarray | None] = []
        for dtype_and_shape in entry["arrays"]:
            if dtype_and_shape is None:
                arrays.append(None)
                continue
            dtype, *shape = dtype_and_shape
            stop = start + prod(shape)
            arrays.append(values[start:stop].reshape(shape).astype(dtype))
            start = stop
        inputs, (grad_output, *results) = arrays[: entry["inputs"]], arrays[entry["inputs"] :]
        options = {name: _decoded(value) for name, value in entry["options"].items()}
        goldens.append(Golden(entry["case"], Call(tuple(inputs), options), grad_output, results))
    return goldens


def _encoded(value: Any) -> Any:
    """A JSON value for an option. Slices, Ellipsis and tuples, which JSON lacks, become one-entry dicts."""
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if value is ...:
        return {"ellipsis": 0}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(part) for part in value]}
    if isinstance(value, list):
        return [_encoded(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, value),) = value.items()
    return ... if kind == "ellipsis" else slice(*value) if kind == "slice" else tuple(map(_decoded, value))
