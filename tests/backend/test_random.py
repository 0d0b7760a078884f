"""Random numbers: Philox's published test vectors, distributions, state, threads."""

import threading

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.backend.random import Generator, default_generator, manual_seed, philox, use_generator


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
