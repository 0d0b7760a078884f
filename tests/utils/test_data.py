"""Datasets and batches."""

from collections import namedtuple

import numpy as np
import pytest

import minigrad
from minigrad import Generator, Tensor
from minigrad.utils import data

X, Y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10)


def labels(loader):
    return [batch[1].tolist() for batch in loader]


def flat(batches):
    return [label for batch in batches for label in batch]


def test_batches_of_arrays_in_order():
    loader = data.DataLoader(data.TensorDataset(X, Tensor(Y)), batch_size=4)
    batches = list(loader)
    assert [type(batch) for batch in batches] == [list] * 3 and len(loader) == 3
    assert batches[1][0].tolist() == X[4:8].tolist() and labels(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    short = data.DataLoader(data.TensorDataset(X, Y), 4, drop_last=True)
    assert len(short) == 2 and labels(short) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_shuffling_draws_a_new_order_for_each_epoch():
    minigrad.manual_seed(3)
    loader = data.DataLoader(data.TensorDataset(X, Y), 5, shuffle=True)
    first, second = labels(loader), labels(loader)
    assert first != second and sorted(flat(first)) == sorted(flat(second)) == list(range(10))
    minigrad.manual_seed(3)
    assert labels(loader) == first
    own = data.DataLoader(data.TensorDataset(X, Y), 10, shuffle=True, generator=Generator(3))
    assert flat(labels(own)) == flat(first)


def test_sampler_gives_the_indices():
    loader = data.DataLoader(data.TensorDataset(X, Y), 2, sampler=[3, 1, 3])
    assert labels(loader) == [[3, 1], [3]] and len(loader) == 2


def test_samples_without_batches():
    loader = data.DataLoader(data.TensorDataset(X, Y), batch_size=None)
    assert [y.item() for _, y in loader] == list(range(10)) and len(loader) == 10


Point = namedtuple("Point", ["x", "y"])


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([(1, 2.5), (3, 4.5)], [("int64", [1, 3]), ("float64", [2.5, 4.5])]),
        ([(True, "a"), (False, "b")], [("bool", [True, False]), ["a", "b"]]),
        ([{"x": X[0]}, {"x": X[1]}], {"x": ("float32", X[:2].tolist())}),
        ([np.float32(1), np.float32(2)], ("float32", [1, 2])),
        ([Point(1, 2), Point(3, 4)], Point(("int64", [1, 3]), ("int64", [2, 4]))),
        ([(1, (Tensor([2]), 3))] * 2, [("int64", [1, 1]), [("int64", [[2], [2]]), ("int64", [3, 3])]]),
    ],
)
def test_collating_samples(samples, expected):
    def plain(x):
        if isinstance(x, Tensor):
            return x.dtype.name, x.tolist()
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        if isinstance(x, Point):
            return Point(*map(plain, x))
        return list(map(plain, x)) if isinstance(x, list) else x

    (batch,) = data.DataLoader(samples, batch_size=2)
    assert plain(batch) == expected


def test_own_collate_function_sees_the_samples():
    loader = data.DataLoader(data.TensorDataset(X, Y), 5, collate_fn=lambda samples: [int(y) for _, y in samples])
    assert list(loader) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_batches_of_a_nested_subset():
    part = data.Subset(data.Subset(data.TensorDataset(X, Y), [9, 7, 5, 3]), [3, 0])
    assert part[1][1].item() == 9 and len(part) == 2
    assert labels(data.DataLoader(part, 2)) == [[3, 9]]


@pytest.mark.parametrize(
    ("lengths", "sizes"), [([7, 3], [7, 3]), ([0.5, 0.5], [5, 5]), ([0.35, 0.35, 0.3], [4, 3, 3]), ([1.0], [10])]
)
def test_random_split(lengths, sizes):
    parts = data.random_split(data.TensorDataset(X, Y), lengths, generator=Generator(1))
    assert [len(part) for part in parts] == sizes
    found = [int(part[i][1]) for part in parts for i in range(len(part))]
    assert sorted(found) == list(range(10)) and found != list(range(10))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda d: data.DataLoader(d, num_workers=2), ValueError, "worker processes are out of scope"),
        (lambda d: data.DataLoader(d, shuffle=True, sampler=[0]), ValueError, "not both"),
        (lambda d: data.DataLoader(d, 0), ValueError, "batch_size must be at least 1"),
        (lambda d: data.TensorDataset(X, Y[:3]), ValueError, "tensors of one length"),
        (lambda d: data.random_split(d, [3, 3]), ValueError, "must sum to 10"),
        (lambda d: data.random_split(d, [1.5, -0.5]), ValueError, "fractions must be from 0 to 1"),
        (lambda d: list(data.DataLoader([len])), TypeError, "cannot batch builtin_function_or_method"),
        (lambda d: list(data.DataLoader([(1,), (1, 2)], 2)), RuntimeError, "same number of components"),
        (lambda d: data.Dataset()[0], NotImplementedError, "__getitem__"),
    ],
)
def test_invalid_use_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(data.TensorDataset(X, Y))
