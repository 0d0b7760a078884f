"""The CUDA kernels generate the same random numbers as the CPU, bit for bit."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.batch import Rows, split
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.random import can_draw, uniform, words
from tests.cuda.comparison import generator_of, kernel_names, parts
from tests.cuda.runner import ORDERS, emulated, needs_compiler, recorded
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


SIZES = st.lists(st.integers(0, 30), max_size=2)


@given(
    parts(), SIZES, st.integers(1, 3), SIZES, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 2),
    st.sampled_from(ORDERS), st.sampled_from([None, "before", "after"]),
)  # fmt: skip
def test_parts_are_rows_of_the_draw_for_the_whole_batch(rows, before, k, after, seed, draws, order, guard):
    whole = Generator(seed, draws).uniform((*before, k * rows.count, *after))
    index = (rows.index[:, None] * k + np.arange(k)).reshape(-1)
    shape, (ours, theirs) = (*before, k * len(rows), *after), (generator_of(rows, seed, draws) for _ in range(2))
    with recorded(order, guard=guard) as launches:
        found = uniform(ours, shape, np.float32, "cpu", axis=len(before))
    name = "uniform" if len(rows) == rows.count else "uniform_of_rows"
    assert kernel_names(launches) == [name] * (found.size > 0) and found.dtype == np.float32
    np.testing.assert_array_equal(found, whole.take(index, axis=len(before)))
    np.testing.assert_array_equal(found, theirs.uniform(shape, axis=len(before)))
    assert ours.draws == theirs.draws == draws + 1


@pytest.mark.parametrize("values", [1000, 1001, 1002, 1003])
def test_large_parts_are_rows_of_the_draw_for_the_whole_batch(values):
    """Several blocks, and ranges that begin at each offset within the four words of a Philox call."""
    for rows in split(9, 2, mirrored=True) + split(9, 2):
        with emulated():
            found = uniform(generator_of(rows, 5), (len(rows), values), np.float32, "cpu", axis=0)
        np.testing.assert_array_equal(found, Generator(5).uniform((9, values))[rows.index])


@given(parts(), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1001), st.integers(0, 1000))
def test_parts_in_a_graph_read_the_state_from_memory(rows, seed, before, draw):
    captured = generator_of(rows, 1, draw)
    captured.captured = np.array([seed, before], np.uint64)
    with emulated():
        found = uniform(captured, (len(rows), 3), np.float32, "cpu", axis=0)
    np.testing.assert_array_equal(found, Generator(seed, before + draw).uniform((rows.count, 3))[rows.index])


@given(parts(), st.integers(0, 2**64 - 1))
def test_draws_without_an_image_axis_are_equal_for_all_parts(rows, seed):
    with recorded() as launches:
        found = uniform(generator_of(rows, seed), (7,), np.float32, "cpu", axis=None)
    assert kernel_names(launches) == ["uniform"]
    np.testing.assert_array_equal(found, Generator(seed).uniform((7,)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ranges", [((2, 4),), ((0, 1), (3, 5)), ((0, 1), (2, 3), (5, 6))])
def test_parts_drawn_on_a_gpu_equal_the_cpu(ranges, dtype):
    """The CPU draws parts that the kernel does not support: other dtypes, and more than two ranges."""
    ours, theirs = generator_of(Rows(6, ranges), 3), generator_of(Rows(6, ranges), 3)
    shape = (2, len(Rows(6, ranges)), 5)
    with in_place_of_cupy():
        found = ours.uniform(shape, dtype, "cuda", axis=1).get()
    np.testing.assert_array_equal(found, theirs.uniform(shape, dtype, axis=1))
    supported = can_draw(ours, shape, dtype, "cuda", axis=1)
    assert supported == (dtype == np.float32 and len(ranges) < 3) and ours.draws == theirs.draws


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
        part = generator_of(Rows(count + 5, ((1, 2), (6, count + 5))))
        assert np.isfinite(uniform(part, (count,), np.float32, "cpu", axis=0)).all()
