"""Everyday lines of PyTorch, run with torch and with minigrad under the name `torch`: the same kinds, dtypes, values.

A line may be several statements, separated by ";": the value of the last is compared. Lines that end with an error in
torch must end with an error of the same type here.
"""

import numpy as np
import pytest

import minigrad
from tests.reference.statements import STATEMENTS, value_of

torch = pytest.importorskip("torch")


def described(value):
    """A value as kind, dtype, shape and elements, in terms that do not depend on the library."""
    if isinstance(value, Exception):
        return "error"
    if isinstance(value, torch.Tensor | minigrad.Tensor):
        elements = value.detach().float().tolist() if "bfloat16" in str(value.dtype) else value.detach().tolist()
        return "Tensor", str(value.dtype).removeprefix("torch."), tuple(value.shape), value.requires_grad, elements
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, torch.dtype | np.dtype):
        return "dtype", str(value).removeprefix("torch.")
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tolist()
    if isinstance(value, tuple | list):
        return [described(item) for item in value]
    if isinstance(value, torch.device):
        return str(value)
    return value


def assert_same(ours, theirs):
    assert type(ours) is type(theirs) or {type(ours), type(theirs)} <= {tuple, list, minigrad.device, str}
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=2e-6, abs=1e-6, nan_ok=True)
    else:
        assert ours == theirs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, about torch's __array__ and __array_wrap__
@pytest.mark.parametrize("line", [line for lines in STATEMENTS.values() for line in lines])
def test_line_gives_what_torch_gives(line):
    theirs, ours = value_of(torch, line), value_of(minigrad, line)
    if isinstance(ours, Exception) and not isinstance(theirs, Exception):
        raise ours
    assert_same(described(ours), described(theirs))
    if isinstance(theirs, Exception):
        assert isinstance(ours, Exception), f"torch refuses: {theirs!r}"
