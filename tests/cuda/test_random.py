"""Random numbers made by a kernel are those that the CPU makes, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.kernels.cuda.random import uniform as make
from minigrad.random import Generator
from tests.cuda.runner import ORDERS, emulated, needs_compiler
from tests.cupy_on_cpu import in_place_of_cupy

pytestmark = needs_compiler


@given(
    st.lists(st.integers(0, 30), max_size=3), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 2),
    st.sampled_from(ORDERS),
)  # fmt: skip
def test_the_same_numbers(shape, seed, draws, order):
    expected = Generator(seed, draws).uniform(shape)
    with emulated(order):
        np.testing.assert_array_equal(make(seed, draws, shape, "cpu"), expected)


def test_on_the_device():
    """A generator that draws for the CPU, for the GPU and in float64 in turn goes on as one that draws for the CPU."""
    ours, theirs = Generator(5), Generator(5)
    with in_place_of_cupy():
        for device, dtype in (("cuda", np.float32), ("cpu", np.float32), ("cuda", np.float64), ("cuda", np.float32)):
            found = ours.uniform((1100,), dtype, device)
            assert device == "cpu" or not isinstance(found, np.ndarray)
            found = found if device == "cpu" else found.get()
            np.testing.assert_array_equal(found, theirs.uniform((1100,), dtype))
    assert ours.draws == theirs.draws


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("count", [1, 3, 4, 1023])
def test_it_stays_within_its_array(side, count):
    with emulated(guard=side):
        assert np.isfinite(make(1, 2, (count,), "cpu")).all()
