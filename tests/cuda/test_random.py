"""The CUDA kernels generate the same random numbers as the CPU, bit for bit."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.random import Generator
from minigrad.kernels.cuda.random import uniform, words
from tests.cuda.runner import ORDERS, emulated, needs_compiler
from tests.cupy_on_cpu import in_place_of_cupy

pytestmark = needs_compiler


@given(
    st.lists(st.integers(0, 30), max_size=3), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 2),
    st.sampled_from(ORDERS),
)  # fmt: skip
def test_draws_equal_the_cpu_bit_for_bit(shape, seed, draws, order):
    expected = Generator(seed, draws).uniform(shape), Generator(seed, draws).words(np.prod(shape, dtype=int))
    with emulated(order):
        np.testing.assert_array_equal(uniform(Generator(seed, draws), shape, np.float32, "cpu"), expected[0])
        found = words(Generator(seed, draws), prod(shape), "cpu")
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, expected[1])


@given(st.integers(0, 3000), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1001), st.integers(0, 1000))
def test_in_a_graph_the_state_is_read_from_memory(count, seed, before, draw):
    """The array `captured` holds the seed, and an offset that is added to the draw number."""
    captured = [Generator(1, draw) for _ in range(2)]
    for generator in captured:
        generator.captured = np.array([seed, before], np.uint64)
    with emulated():
        found = uniform(captured[0], (count,), np.float32, "cpu"), words(captured[1], count, "cpu")
    np.testing.assert_array_equal(found[0], Generator(seed, before + draw).uniform((count,)))
    np.testing.assert_array_equal(found[1], Generator(seed, before + draw).words(count))


DRAWS = {
    "uniform": lambda generator, device: generator.uniform((1100,), device=device),
    "uniform in float64": lambda generator, device: generator.uniform((1100,), np.float64, device=device),
    "words": lambda generator, device: generator.words(1100, device),
    "permutation": lambda generator, device: generator.permutation(1100, device),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(DRAWS)), st.sampled_from(["cpu", "cuda"])), max_size=6))
def test_cpu_and_gpu_draws_share_one_sequence(calls):
    """A generator that draws on the CPU and the GPU in turn equals one that draws on the CPU only."""
    ours, theirs = Generator(5), Generator(5)
    with in_place_of_cupy():
        for name, device in calls:
            found = DRAWS[name](ours, device)
            assert isinstance(found, np.ndarray) == (device == "cpu")
            found, expected = found if device == "cpu" else found.get(), DRAWS[name](theirs, "cpu")
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert ours.draws == theirs.draws


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("count", [1, 3, 4, 1023])
def test_draws_stay_within_their_array(side, count):
    with emulated(guard=side):
        assert np.isfinite(uniform(Generator(1, 2), (count,), np.float32, "cpu")).all()
        words(Generator(1, 2), count, "cpu")
