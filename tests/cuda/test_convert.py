"""Casts in CUDA, run on the CPU, against NumPy: any layout, partial packs, rounding, overflow and NaN."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.dtypes import cast, cast_all
from minigrad.kernels.cuda.convert import convert, supports
from minigrad.kernels.cuda.launch import PACK, STORED, Kernel
from tests.cuda.comparison import DTYPES, HALF_PRECISION, guarded_copy, kernel_names, random_array
from tests.cuda.runner import ORDERS, barriers, emulated, guarded, needs_compiler, recorded

pytestmark = needs_compiler

PAIRS = list(permutations(DTYPES, 2))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from(DTYPES),
    st.sampled_from(DTYPES), st.booleans(), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_casts_match_numpy(shape, old, new, transposed, order, seed):
    x = random_array(seed, *shape, dtype=old)
    x = x.T if transposed else x
    with recorded(order) as launches:
        y = convert(x, new)
    assert kernel_names(launches) == ["convert"] and y.dtype == new
    assert (y.T if transposed else y).flags.c_contiguous
    np.testing.assert_array_equal(y, cast(x, new))


@pytest.mark.parametrize(("side", "shift"), list(product(["after", "before"], [0, 1])))
def test_casts_stay_within_their_arrays(side, shift):
    for old, new in PAIRS:
        x = guarded_copy(random_array(0, 77, dtype=old), side)
        part = x[: 77 - shift] if side == "before" else x[shift:]
        with emulated(guard=side):
            y = convert(part, new)
        np.testing.assert_array_equal(y, cast(part, new))


def test_other_dtypes_and_gaps_are_not_supported():
    with emulated():
        assert supports(random_array(0, 4), DTYPES[1])
        for x, dtype in (
            (np.arange(4), np.float32),
            (random_array(0, 4), np.float64),
            (random_array(0, 8)[::2], DTYPES[1]),
        ):
            assert not supports(x, np.dtype(dtype))


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=str)
@pytest.mark.parametrize("count", [1, 7, 1023, 2047, 2049])
def test_partial_last_pack_writes_nothing_beyond(old, new, count):
    """If the last pack is partial, the memory after the array is not written."""
    x, y = guarded_copy(random_array(0, 2056, dtype=old), "before"), guarded(2056, new, "before")
    pack = 16 // max(old.itemsize, new.itemsize)
    with emulated():
        Kernel("convert.cu", "convert", FROM=STORED[old.name], TO=STORED[new.name], PACK=pack)(
            -(-count // (256 * pack)), 256, x[:count], y[:count], np.int64(count)
        )
    np.testing.assert_array_equal(y[:count], cast(x[:count], new))
    assert (y[count:].view(np.uint8) == 0xFF).all()


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=str)
def test_rounding_overflow_and_nan(old, new):
    """Inputs include ties, values below the smallest and above the largest of a dtype, infinities and NaN."""
    odd = [0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0]
    x = np.array([*odd, 2.0**-24, 2.0**-25, 3 * 2.0**-26, 3e38, 3.4e38, -7e4], np.float32)
    nans = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)  # NaN
    x = cast(np.concatenate([x, nans]), old)
    with emulated():
        y = convert(x, new)
    assert y.dtype == new
    exact = cast(x, new).astype(np.float32)  # in float32, where NumPy compares NaN as equal
    np.testing.assert_array_equal(y.astype(np.float32), exact)
    np.testing.assert_array_equal(np.signbit(y[:4]), np.signbit(x[:4]))


def test_there_are_no_barriers():
    assert barriers("convert.cu") == []


# Many arrays in one launch ------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.sampled_from([0, 1, 3, 8, 65, 4099]), max_size=2), max_size=8),
    st.sampled_from(HALF_PRECISION), st.sampled_from([None, "before", "after"]),
    st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_many_casts_in_one_launch(shapes, new, guard, order, seed):
    """Contiguous float32 views at any address are cast in one launch; other layouts and dtypes one by one."""
    shapes = [shape[:1] + [min(n, 70) for n in shape[1:]] for shape in shapes]
    xs = [random_array(seed + i, *shape, scale=1e5) for i, shape in enumerate(shapes)]  # some values overflow float16
    xs = [guarded_copy(x, guard or "after") for x in xs]
    xs += [x.reshape(-1)[1:] for x in xs]
    xs += [random_array(seed, 3, 5).T, random_array(seed, 3, dtype=new), random_array(seed, 3, dtype=np.float64)]
    with recorded(order, guard=guard) as launches:
        found = cast_all(xs, new)
    assert kernel_names(launches) == ["convert_all"] * any(x.size for x in xs[:-3])
    for x, y in zip(xs, found, strict=True):
        assert y.dtype == new and y.shape == x.shape
        np.testing.assert_array_equal(y, cast(x, new))
        if guard is None and x.flags.c_contiguous and x.dtype == np.float32:
            assert y.ctypes.data % PACK == 0  # for loads in packs


def test_cast_all_to_float64_launches_nothing():
    with recorded() as launches:
        (y,) = cast_all([random_array(0, 4)], np.dtype(np.float64))
    assert y.dtype == np.float64 and not launches
