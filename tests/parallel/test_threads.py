"""Shards: splitting of a batch, summed gradients, generators, errors."""

import threading

import numpy as np
import pytest

from minigrad import Tensor, nn
from minigrad.backend.random import Generator, default_generator
from minigrad.parallel import Shards


def test_more_threads_than_samples():
    with Shards(4, 0) as shards:
        assert shards.run(len, np.arange(3)) == [1, 1, 1]
        assert sum(shards.run(len, np.arange(11))) == 11
        assert shards.run(len, np.arange(0)) == []


def test_all_arrays_are_split_along_axis_0():
    x = np.arange(10.0).reshape(5, 2)
    with Shards(2) as shards:
        parts = shards.run(lambda *arrays: arrays, x, np.arange(5))
    assert [[a.shape for a in part] for part in parts] == [[(2, 2), (2,)], [(3, 2), (3,)]]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), x)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_of_shards_are_summed(threads):
    layer, x = nn.Linear(3, 2).to(dtype=np.float64), np.random.default_rng(0).standard_normal((7, 3))
    with Shards(threads) as shards:
        shards.run(lambda part: layer(Tensor(part)).sum().backward(), x)
    np.testing.assert_allclose(layer.weight.grad.numpy(), np.stack([x.sum(0)] * 2), rtol=1e-12)
    np.testing.assert_array_equal(layer.bias.grad.numpy(), [7, 7])


def test_threads_have_generators_of_one_seed():
    """Each draws the numbers of its images."""
    with Shards(2, seed=5) as shards:
        found = shards.run(lambda part: default_generator().uniform((4 * len(part),), axis=0), np.arange(3))
    np.testing.assert_array_equal(np.concatenate(found), Generator(5).uniform((12,)))


def test_one_shard_runs_in_the_calling_thread():
    with Shards(1) as shards:
        assert shards.run(lambda part: threading.get_ident(), np.arange(2)) == [threading.get_ident()]


def test_errors_in_a_shard_are_raised():
    with Shards(2, 0) as shards, pytest.raises(ZeroDivisionError):
        shards.run(lambda part: 1 / 0, np.arange(4))
    with pytest.raises(ValueError, match="Shards: threads must be at least 1, got 0"):
        Shards(0)
