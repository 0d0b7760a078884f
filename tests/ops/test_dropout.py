"""Dropout and drop_path: statistics, random seed, p = 0 and 1, and error messages."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor

ONES = Tensor(np.ones((100, 100), np.float32))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_a_fraction_p_and_scales_the_rest(p):
    y = F.dropout(ONES, p).data
    scale = 1 / (1 - p)
    np.testing.assert_allclose(y[y != 0], scale, rtol=1e-6)
    assert abs((y == 0).mean() - p) < 5 * (p * (1 - p) / y.size) ** 0.5  # five standard deviations


def test_drop_path_zeroes_entire_images():
    y = F.drop_path(Tensor(np.ones((1000, 2, 3))), 0.25).data
    rows = y.reshape(1000, -1)
    assert (rows == rows[:, :1]).all()
    assert set(np.unique(rows)) == {0.0, 1 / 0.75}
    assert abs((rows[:, 0] == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / 1000) ** 0.5


def test_the_seed_fixes_the_masks_and_calls_differ():
    minigrad.manual_seed(5)
    first, second = F.dropout(ONES).data, F.dropout(ONES).data
    minigrad.manual_seed(5)
    np.testing.assert_array_equal(F.dropout(ONES).data, first)
    assert (first != second).any()


def test_the_dtype_does_not_change_the_mask():
    masks = []
    for dtype in (np.float16, np.float32, np.float64):
        minigrad.manual_seed(5)
        masks.append(F.dropout(ONES.to(dtype)).data != 0)
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[1], masks[2])


def test_probabilities_0_and_1_evaluation_and_errors():
    for drop in (F.dropout, F.drop_path):
        assert drop(ONES, 0.0) is ONES
        assert drop(ONES, 0.5, training=False) is ONES
        assert not drop(ONES, 1.0).data.any()
        with pytest.raises(ValueError, match=f"{drop.__name__}: a probability must be from 0 to 1, got -0.5"):
            drop(ONES, -0.5)
    with pytest.raises(TypeError, match="dropout: needs floating-point numbers"):
        F.dropout(Tensor(np.arange(3)))
