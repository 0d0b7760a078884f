"""Half precision: bfloat16, casts, and float32 accumulation."""

import sys

import ml_dtypes
import numpy as np
import pytest

from minigrad import Tensor
from minigrad.backend import to_device
from minigrad.backend.dtypes import as_dtype, cast, is_floating, is_half

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def test_dtype_predicates():
    assert as_dtype("bfloat16") == BFLOAT16 and as_dtype("float16") == np.float16 and as_dtype(BFLOAT16) == BFLOAT16
    assert [is_floating(d) for d in (BFLOAT16, np.dtype("f4"), np.dtype("i2"), np.dtype("V2"), np.dtype(bool))] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert [is_half(np.dtype(d)) for d in ("f2", "f4", "i2", "V2")] == [True, False, False, False]


def test_bfloat16_needs_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(RuntimeError, match="pip install ml_dtypes"):
        Tensor([1.0]).bfloat16()


def test_casts_overflow_without_warnings():
    x = np.array([1e6, -1e6, 1e39, np.nan])
    np.testing.assert_array_equal(cast(x, np.dtype(np.float16)), [np.inf, -np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(cast(x, BFLOAT16).astype(np.float64)[2:], [np.inf, np.nan])


def test_bfloat16_tensors(device):
    x = Tensor([1.0, 2.0, 257.0], device=device).bfloat16()
    assert x.dtype == BFLOAT16 and x.tolist() == [1.0, 2.0, 256.0]
    assert x[2].item() == 256.0 and type(x[2].item()) is float and "bfloat16" in repr(x)
    assert (x * 2).dtype == (x + x).dtype == x.tanh().dtype == x.float().bfloat16().dtype == BFLOAT16
    assert (x + Tensor([1.0], device=device)).dtype == np.float32
    assert (x + x.half()).dtype == np.float32  # as in PyTorch


def test_half_precision_sums_accumulate_in_float32():
    """In bfloat16, 256 + 1 = 256."""
    x = Tensor(np.ones(1000, np.float32), requires_grad=True)
    y = x.bfloat16().sum()
    assert y.item() == 1000 and y.dtype == BFLOAT16
    np.testing.assert_array_equal(Tensor(np.ones((1, 1000))).bfloat16() @ Tensor(np.ones((1000, 1))).bfloat16(), 1000)
    row = Tensor(np.ones(1), requires_grad=True)
    row.bfloat16()[np.zeros(1000, int)].sum().backward()
    assert row.grad.item() == 1000


def test_bfloat16_copies_between_devices(device):
    x = np.array([1, -2.5, 1e38]).astype(BFLOAT16)
    np.testing.assert_array_equal(Tensor(to_device(x, device)).numpy(), x)
