"""Truth values: dtypes, NaN and infinities, reductions of no elements, comparison of tensors."""

import ml_dtypes
import numpy as np
import pytest

import minigrad
from minigrad import Tensor

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, ml_dtypes.bfloat16, np.float32])
def test_logic_of_any_dtype_is_bool(dtype, device):
    x, y = (Tensor(np.array(values).astype(dtype), device=device) for values in ([0, 0, 1, 1], [0, 1, 0, 1]))
    for result, expected in (
        (x.logical_and(y), [0, 0, 0, 1]), (x.logical_or(y), [0, 1, 1, 1]), (x.logical_xor(y), [0, 1, 1, 0]),
        (x.logical_not(), [1, 1, 0, 0]), (x.isnan(), [0] * 4), (x.isinf(), [0] * 4), (x.isfinite(), [1] * 4),
        (x.isclose(y), [1, 0, 0, 1]),
    ):  # fmt: skip
        assert result.dtype == bool and result.tolist() == list(map(bool, expected))


def test_tests_of_special_values(device):
    x = Tensor([1.0, NAN, INF, -INF], device=device)
    assert x.isnan().tolist() == [False, True, False, False]
    assert x.isinf().tolist() == [False, False, True, True]
    assert x.isfinite().tolist() == [True, False, False, False]


def test_any_and_all_over_axes(device):
    x = Tensor([[0.0, NAN], [0.0, 0.0]], device=device)
    assert x.any().item() is True and x.all().item() is False
    assert x.any(1).tolist() == [True, False] and x.any(dim=0, keepdim=True).tolist() == [[False, True]]
    assert x[:0].any().item() is False and x[:0].all(0).tolist() == [True, True]
    assert (x == 0).to(dtype=np.uint8).any(1).dtype == np.uint8 and (x > 0).all((0, 1)).dtype == bool


def test_allclose_and_equal(device):
    x = Tensor([1.0, INF, NAN], device=device)
    assert x[:2].allclose(x[:2] * (1 + 1e-6)) and not x[:2].allclose(x[:2] + 1)
    assert not x.allclose(x) and x.allclose(x, equal_nan=True)
    assert x[:2].equal(x[:2]) and not x.equal(x) and not x.equal(x[:2])
    assert isinstance(minigrad.allclose(x, x), bool) and isinstance(minigrad.equal(x, x), bool)
    assert Tensor([100.0], device=device).isclose(Tensor([101.0], device=device), rtol=0.1).item()
