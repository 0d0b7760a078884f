"""`accurate_matmul` against float64; `timed` records every matrix product of a block, and nothing afterwards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend import products
from minigrad.backend.gemm import gemm
from minigrad.backend.meta import MetaArray
from tests.accuracy import rand, ulps


def randn(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32), requires_grad=True)


@pytest.mark.parametrize(
    ("op", "arguments", "count"),
    [
        (F.linear, [randn(8, 16), randn(4, 16)], 3),
        (F.scaled_dot_product_attention, [randn(2, 8, 16)] * 3, 6),
        (lambda x, w: F.conv2d(x, w, padding=1), [randn(2, 16, 8, 8), randn(16, 16, 3, 3)], 3),
        (F.conv2d, [randn(2, 16, 8, 8), randn(16, 16, 1, 1)], 3),
        (lambda x, w: F.conv2d(x, w, padding=3, groups=16), [randn(64, 16, 8, 8), randn(16, 1, 7, 7)], 3),
    ],
    ids=["linear", "attention", "Winograd", "pointwise", "depthwise"],
)
def test_forward_and_backward_products_are_timed(op, arguments, count):
    with products.timed() as seconds:
        op(*arguments).sum().backward()
    assert len(seconds) == count and min(seconds) >= 0
    assert products.matmul is np.matmul


def test_time_grows_with_the_size_of_the_product():
    a = np.ones((400, 400), np.float32)
    with products.timed() as seconds:
        for size in (4, 400):
            products.matmul(a[:size], a)
            products.matmul(a[:size], a)
    assert seconds[3] > seconds[1]


def test_timing_ends_after_an_error():
    with pytest.raises(ValueError, match="mismatch"), products.timed():
        products.matmul(np.ones((2, 3)), np.ones((2, 3)))
    assert products.matmul is np.matmul


@given(
    lead=st.sampled_from([((), ()), ((3,), ()), ((), (3,)), ((2, 1), (1, 3)), ((2, 3), (2, 3))]),
    M=st.sampled_from([1, 2, 9]),
    N=st.sampled_from([1, 3, 8]),
    K=st.integers(products.MANY + 1, 20 * products.CHUNK),
    transposed=st.tuples(st.booleans(), st.booleans()),
)
def test_products_over_many_terms_are_accurate(lead, M, N, K, transposed):
    a, b = rand(0, *lead[0], M, K), rand(1, *lead[1], K, N)
    a, b = (
        np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2) if other else x
        for x, other in zip((a, b), transposed, strict=True)
    )
    assert ulps(products.accurate_matmul(a, b), a.astype(np.float64) @ b.astype(np.float64)) <= 8


@pytest.mark.parametrize("shapes", [((1, 400_000), (400_000, 3)), ((3, 400_000), (400_000, 1))])
@pytest.mark.parametrize("order", ["C", "F"])
def test_long_matrix_vector_products_are_accurate(shapes, order):
    """BLAS has an error of 50 to 150 ulps here, for at least one layout of each."""
    a, b = (np.asarray(rand(seed, *shape), order=order) for seed, shape in enumerate(shapes))
    assert ulps(products.accurate_matmul(a, b), a.astype(np.float64) @ b.astype(np.float64)) <= 1


@pytest.mark.parametrize("K", [4, products.MANY + 1])
def test_products_with_vectors_have_the_shapes_of_numpy(K):
    v = rand(1, K)
    for a, b in [(v, v), (rand(0, 3, K), v), (rand(0, 2, 3, K), v), (v, rand(0, K, 3)), (v, rand(0, 2, K, 3))]:
        y, expected = products.accurate_matmul(a, b), a.astype(np.float64) @ b.astype(np.float64)
        assert np.shape(y) == expected.shape and ulps(y, expected) <= 8
        assert gemm(MetaArray(a.shape, a.dtype), MetaArray(b.shape, b.dtype)).shape == expected.shape


def test_few_terms_large_matrices_and_other_dtypes_are_one_product():
    long = products.MANY + 1
    for a, b in [
        (rand(0, 4, products.MANY), rand(1, products.MANY, 4)),
        (rand(0, 50, long), rand(1, long, 50)),
        (rand(0, 4, long).astype(np.float64), rand(1, long, 4).astype(np.float64)),
    ]:
        with products.timed() as seconds:
            np.testing.assert_array_equal(products.accurate_matmul(a, b), a @ b)
        assert len(seconds) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [5, -1], ids=["in a chunk", "in the remaining terms"])
def test_nan_and_infinity_reach_only_their_own_column(value, row):
    a, b = rand(0, 2, products.MANY + 1), rand(1, products.MANY + 1, 3)
    b[row, 1] = value
    np.testing.assert_array_equal(np.isfinite(gemm(a, b)), [[True, False, True]] * 2)


def test_meta_arrays_of_many_terms_have_a_product():
    y = gemm(MetaArray((2, 4, 900), np.float32), MetaArray((900, 3), np.float32))
    assert isinstance(y, MetaArray) and y.shape == (2, 4, 3) and y.dtype == np.float32
