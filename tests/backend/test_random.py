"""Random numbers: Philox's published test vectors, distributions, state, threads, parts of a batch."""

import threading
from contextlib import contextmanager
from math import prod

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.backend import random, to_device
from minigrad.backend.batch import Rows, split
from minigrad.backend.random import Generator, default_generator, manual_seed, philox, use_generator
from tests.backend.test_batch import COUNTS, PARTS, SIZES, elements


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known-answer tests of Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_philox_matches_published_test_vectors(counter, key, words):
    assert tuple(int(w) for w in philox(tuple(np.uint64(c) for c in counter), key)) == words


def test_values_depend_on_seed_draw_and_position():
    long, short = Generator(7).words(100_003), Generator(7).words(10)
    np.testing.assert_array_equal(long[:10], short)
    generator = Generator(7)
    generator.words(1)
    assert not np.array_equal(generator.words(10), short)
    np.testing.assert_array_equal(Generator(7, draws=1).words(10), Generator(7, generator.draws - 1).words(10))


def test_seed_and_draws_are_the_complete_state():
    generator = Generator(2**64 - 1)
    generator.normal((3,))
    later = Generator(generator.seed, generator.draws)
    np.testing.assert_array_equal(generator.uniform((5,)), later.uniform((5,)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_moments_of_uniform_and_normal_samples(dtype):
    generator = Generator(3)
    u, z = generator.uniform((200, 1000), dtype), generator.normal((200, 1001), dtype)
    assert u.dtype == z.dtype == dtype and u.shape == (200, 1000) and z.shape == (200, 1001)
    assert u.min() >= 0 and (dtype == np.float16 or u.max() < 1)
    u, z = u.astype(np.float64), z.astype(np.float64)
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / u.size) ** 0.5 + (1e-3 if dtype == np.float16 else 0)
    assert abs(np.histogram(u, 16, (0, 1))[0] / u.size - 1 / 16).max() < 4 * (1 / 16 / u.size) ** 0.5 + 1e-3
    assert abs(z.mean()) < 4 / z.size**0.5 + 1e-4 and abs(z.std() - 1) < 4 / (2 * z.size) ** 0.5 + 1e-3
    assert abs((z**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.01


def test_uniform_float64_has_53_random_bits():
    scaled = Generator(0).uniform((1000,), np.float64) * 2.0**53
    np.testing.assert_array_equal(scaled, np.floor(scaled))
    assert (scaled % 2).any()


def test_permutation_has_every_index_once():
    order = Generator(1).permutation(1000)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15
    assert len(Generator(1).permutation(0)) == 0


def test_manual_seed_reproduces_values():
    manual_seed(5)
    first = minigrad.randn(3, 4)
    manual_seed(5)
    np.testing.assert_array_equal(minigrad.randn(3, 4).numpy(), first.numpy())


def test_threads_may_have_their_own_generators():
    outer = default_generator()
    results = {}

    def work(seed: int) -> None:
        with use_generator(Generator(seed)):
            results[seed] = minigrad.rand(4).numpy()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[1], Generator(1).uniform((4,)))
    assert not np.array_equal(results[1], results[2])
    assert default_generator() is outer


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0"])
def test_invalid_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="the seed must be an integer"):
        Generator(seed)


def test_dropout_is_the_same_on_every_device(device):
    minigrad.manual_seed(3)
    expected = F.dropout(Tensor(np.ones((4, 5), np.float32)), 0.5).numpy()
    minigrad.manual_seed(3)
    np.testing.assert_array_equal(F.dropout(Tensor(np.ones((4, 5), np.float32), device=device), 0.5).numpy(), expected)


# Parts of a batch ---------------------------------------------------------------------------------------------------

DRAWS = {
    "uniform": lambda generator, shape, axis: generator.uniform(shape, axis=axis),
    "uniform in float64": lambda generator, shape, axis: generator.uniform(shape, np.float64, axis=axis),
    "uniform in float16": lambda generator, shape, axis: generator.uniform(shape, np.float16, axis=axis),
    "uniform in bfloat16": lambda generator, shape, axis: generator.uniform(shape, ml_dtypes.bfloat16, axis=axis),
    "normal": lambda generator, shape, axis: generator.normal(shape, axis=axis),
    "integers": lambda generator, shape, axis: generator.integers(-5, 2**40, shape, axis=axis),
}


def generator_of(rows, seed=0, draws=0):
    generator = Generator(seed, draws)
    generator.rows = rows
    return generator


@pytest.mark.parametrize("name", DRAWS)
@given(
    count=COUNTS, parts=PARTS, mirrored=st.booleans(), before=SIZES, k=st.integers(1, 3), after=SIZES,
    seed=st.integers(0, 2**64 - 1), draws=st.integers(0, 2**64 - 3), negative=st.booleans(),
)  # fmt: skip
def test_parts_of_a_draw_equal_the_draw_for_the_whole_batch(
    name, count, parts, mirrored, before, k, after, seed, draws, negative
):
    axis, whole = len(before), Generator(seed, draws)
    expected = DRAWS[name](whole, (*before, k * count, *after), axis)
    divided = split(count, parts, mirrored=mirrored)
    generators = [generator_of(rows, seed, draws) for rows in divided]
    found = [
        DRAWS[name](generator, (*before, k * len(generator.rows), *after), axis - negative * (axis + 1 + len(after)))
        for generator in generators
    ]
    images = np.concatenate([rows.index for rows in divided])
    np.testing.assert_array_equal(np.concatenate(found, axis), expected.take(elements(images, k), axis))
    assert all(x.dtype == expected.dtype for x in found)
    assert {generator.draws for generator in generators} == {whole.draws}
    assert all(generator.rows is rows for generator, rows in zip(generators, divided, strict=True))


@given(count=COUNTS, parts=PARTS, mirrored=st.booleans(), seed=st.integers(0, 2**64 - 1))
def test_draws_without_an_image_axis_are_equal_for_all_parts(count, parts, mirrored, seed):
    def drawn(generator):
        draws = [draw(generator, (3, 5), None) for draw in DRAWS.values()]
        return [*draws, generator.uniform(axis=None), generator.words(7), generator.permutation(9), generator.draws]

    expected = drawn(Generator(seed))
    for rows in split(count, parts, mirrored=mirrored):
        for mine, theirs in zip(drawn(generator_of(rows, seed)), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("dtype", "words"), [(np.float32, 1), (np.float16, 1), (np.float64, 2)])
@given(count=st.integers(1, 40), parts=PARTS, mirrored=st.booleans(), before=SIZES, size=st.integers(0, 3000))
def test_a_part_computes_only_the_blocks_of_its_images(dtype, words, count, parts, mirrored, before, size):
    """The words of the part's elements, four a block, and one more block where a range begins within a block."""
    for rows in split(count, parts, mirrored=mirrored):
        with counted_blocks() as blocks:
            generator_of(rows).uniform((*before, len(rows), size), dtype, axis=len(before))
        ranges = prod(before) * len(rows.ranges)
        assert sum(blocks) <= words * prod(before) * len(rows) * size / 4 + 2 * ranges
        assert max(blocks, default=0) <= 1 << 14


@contextmanager
def counted_blocks():
    """The number of blocks of each call of `philox`."""
    blocks = []

    def counting(counter, key):
        blocks.append(len(counter[0]))
        return philox(counter, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "philox", counting)
        yield blocks


@pytest.mark.parametrize("start", [0, 2**34 - 3, 2**40 + 1])
def test_a_part_of_a_batch_of_any_size(start):
    """The number of a block has two words of the counter."""
    found = generator_of(Rows(2**41, ((start, start + 5),)), 3).uniform((5,), axis=0)
    expected = []
    for i in range(start, start + 5):
        counter = tuple(np.uint64(word) for word in (i // 4 % 2**32, i // 4 >> 32, 0, 0))
        expected.append((int(philox(counter, (3, 0))[i % 4]) >> 8) * 2.0**-24)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_needs_k_entries_for_each_image(draw):
    generator = generator_of(Rows(8, ((2, 5),)))
    with pytest.raises(ValueError, match="axis 0 must be that of the images, with a multiple of 3 entries, got shape"):
        draw(generator, (4, 3), 0)
    assert generator.draws == 0


def test_dropout_of_parts_equals_dropout_of_the_batch(device):
    x = np.arange(1, 61, dtype=np.float32).reshape(6, 10)
    expected = minigrad.manual_seed(3) and F.dropout(Tensor(x), 0.5).numpy()
    for rows in split(6, 4, mirrored=True):
        with use_generator(generator_of(rows, 3)):
            found = F.dropout(Tensor(x[rows.index], device=device), 0.5)
        np.testing.assert_array_equal(to_device(found.data, "cpu"), expected[rows.index])
