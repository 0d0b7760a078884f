"""Initialisers: distributions, invalid arguments, skip_init."""

import numpy as np
import pytest

import minigrad
from minigrad import nn
from minigrad.nn import init


def test_moments_and_bounds_of_initial_values():
    minigrad.manual_seed(0)
    w = nn.Parameter(np.empty((400, 300), np.float32))
    assert abs(init.xavier_uniform_(w).data.std() - (2 / 700) ** 0.5) < 1e-3
    assert abs(w.data).max() <= (6 / 700) ** 0.5
    assert abs(init.kaiming_normal_(w, mode="fan_out").data.std() - (2 / 400) ** 0.5) < 1e-3
    assert abs(init.lecun_normal_(w).data.std() - (1 / 300) ** 0.5) < 1e-3
    assert abs(w.data).max() <= 2 * (1 / 300) ** 0.5 / 0.8796256610342398 * (1 + 1e-6)
    assert abs(init.trunc_normal_(w, 1, 2, 0, 2).data.mean() - 1) < 0.02 and 0 <= w.data.min() <= w.data.max() <= 2
    b = nn.Parameter(np.empty(400, np.float32))
    init.torch_default_(w, b)
    for x in (w, b):
        assert 0.98 < x.data.max() * 300**0.5 <= 1 and -1 <= x.data.min() * 300**0.5 < -0.98


def test_invalid_arguments_are_refused():
    w = nn.Parameter(np.empty((4, 4), np.float32))
    with pytest.raises(ValueError, match="a < b"):
        init.trunc_normal_(w, a=1, b=1)
    with pytest.raises(ValueError, match="widen the bounds"):
        init.trunc_normal_(w, std=0.1, a=5, b=6)
    with pytest.raises(ValueError, match="two axes"):
        init.xavier_uniform_(nn.Parameter(np.empty(4, np.float32)))


def test_skip_init_draws_no_random_numbers():
    minigrad.manual_seed(0)
    with init.skip_init():
        nn.Linear(1000, 1000)
    assert minigrad.backend.random.default_generator().draws == 0
    nn.Linear(2, 2)
    assert minigrad.backend.random.default_generator().draws == 2


def test_initialisers_follow_the_gain_of_the_nonlinearity():
    minigrad.manual_seed(0)
    w = nn.Parameter(np.empty((400, 300), np.float32))
    assert (
        init.zeros_(w) is w
        and not w.data.any()
        and (init.ones_(w).data == 1).all()
        and (init.constant_(w, 0.25).data == 0.25).all()
    )
    assert abs(init.xavier_normal_(w, gain=2).data.std() - 2 * (2 / 700) ** 0.5) < 1e-3
    for fill in (init.kaiming_normal_, init.kaiming_uniform_):
        assert abs(fill(w).data.std() - (2 / 300) ** 0.5) < 1e-3
        assert abs(fill(w, a=1.0, mode="fan_out").data.std() - (1 / 400) ** 0.5) < 1e-3
        assert abs(fill(w, nonlinearity="linear").data.std() - (1 / 300) ** 0.5) < 1e-3
    assert abs(w.data).max() <= (3 / 300) ** 0.5
    with pytest.raises(ValueError, match="unknown nonlinearity 'gelu'"):
        init.kaiming_normal_(w, nonlinearity="gelu")
