"""The scale of a loss: how small it may become. (How it falls and rises: tests/test_precision.py.)"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, optim


@given(exponent=st.integers(-14, 20), factor=st.sampled_from([0.5, 0.3, 0.9]), value=st.sampled_from([np.nan, np.inf]))
def test_a_scale_ends_where_float16_loses_digits(exponent, factor, value):
    """With it, an error says that no scale is the cure, and whoever goes on has the same scale still."""
    parameter = Tensor(np.zeros(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([parameter], lr=1.0)
    scaler, scale = optim.GradScaler(2.0**exponent, backoff_factor=factor), 2.0**exponent
    for _ in range(400):
        parameter.grad = Tensor(np.float32([1, value]))
        assert not scaler.step(optimizer)
        if scale * factor < 2.0**-14:
            with pytest.raises(FloatingPointError, match="infinite or NaN even with the smallest scale"):
                scaler.update()
        else:
            scaler.update()
            scale *= factor
        assert scaler.get_scale() == scale
    parameter.grad = Tensor(np.full(2, scale, np.float32))
    assert scaler.step(optimizer)
    scaler.update()
    np.testing.assert_allclose(parameter.numpy(), -1, rtol=1e-6)
