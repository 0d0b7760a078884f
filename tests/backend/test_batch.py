"""Parts of a batch: how images are divided, and where their elements are in an array of the whole batch."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.batch import Rows, split

COUNTS, PARTS = st.integers(0, 40), st.integers(1, 8)


def elements(index, k=1):
    """The entries of the image axis that belong to these images, with k entries for each."""
    return (index[:, None] * k + np.arange(k)).reshape(-1)


@given(COUNTS, PARTS)
def test_parts_are_contiguous_and_of_equal_size(count, parts):
    divided = split(count, parts)
    np.testing.assert_array_equal(np.concatenate([part.index for part in divided]), np.arange(count))
    sizes = [len(part) for part in divided]
    assert len(divided) == parts and max(sizes) - min(sizes) <= 1
    assert all(len(part.ranges) == (len(part) > 0) and part.count == count for part in divided)


@given(COUNTS, PARTS)
def test_mirrored_parts_pair_image_i_with_count_minus_1_minus_i(count, parts):
    divided = split(count, parts, mirrored=True)
    np.testing.assert_array_equal(np.sort(np.concatenate([part.index for part in divided])), np.arange(count))
    for part in divided:
        np.testing.assert_array_equal(part.index + part.index[::-1], count - 1)
        assert part.mirrored and len(part.ranges) <= 2 and part.count == count
        assert all(start < stop for start, stop in part.ranges) and list(part.index) == sorted(part.index)
    sizes = [len(part) for part in divided]
    assert len(divided) == parts and max(sizes) - min(sizes) <= 2


def test_mirrored_is_false_if_a_partner_is_missing_or_elsewhere():
    assert Rows(6, ((2, 4),)).mirrored and Rows(6, ((0, 1), (5, 6))).mirrored and Rows(6, ()).mirrored
    for ranges in [((0, 2),), ((0, 2), (3, 5)), ((0, 1), (4, 6))]:
        assert not Rows(6, ranges).mirrored


@given(COUNTS, PARTS, st.booleans(), st.data())
def test_a_part_of_a_part_has_a_slice_of_its_images(count, parts, mirrored, data):
    rows = data.draw(st.sampled_from(split(count, parts, mirrored=mirrored)))
    start, stop = sorted((data.draw(st.integers(0, len(rows))), data.draw(st.integers(0, len(rows)))))
    part = rows.part(start, stop)
    np.testing.assert_array_equal(part.index, rows.index[start:stop])
    assert part.count == count and len(part) == stop - start and all(low < high for low, high in part.ranges)


SIZES = st.lists(st.integers(0, 4), max_size=2)


@given(COUNTS, PARTS, st.booleans(), SIZES, st.integers(0, 3), SIZES, st.data())
def test_elements_are_flat_indices_in_the_whole_array(count, parts, mirrored, before, k, after, data):
    rows = data.draw(st.sampled_from(split(count, parts, mirrored=mirrored)))
    whole = np.arange(np.prod([*before, k * count, *after], dtype=int)).reshape(*before, k * count, *after)
    shape, axis = (*before, k * len(rows), *after), len(before)
    found = rows.elements(shape, data.draw(st.sampled_from([axis, axis - len(shape)])))
    indices = [i for start, stop in found for i in range(start, stop)]
    np.testing.assert_array_equal(indices, whole.take(elements(rows.index, k), axis=axis).reshape(-1))


@pytest.mark.parametrize(
    ("ranges", "shape", "axis", "message"),
    [
        (((2, 5),), (4, 3), 0, "3 images, a part of a batch that threads or processes share: axis 0 must be"),
        (((2, 5),), (3, 4), 1, "axis 1 must be that of the images, with a multiple of 3 entries, got shape (3, 4)"),
        (((2, 5),), (3, 4), -1, "axis -1 must be that of the images, with a multiple of 3 entries, got shape (3, 4)"),
        (((2, 5),), (3, 3), 2, "axis 2 must be that of the images"),
        (((2, 5),), (3, 3), -3, "axis -3 must be that of the images"),
        (((2, 5),), (), 0, "got shape (). Put the images first, or use one thread and one process"),
        ((), (2,), 0, "0 images, a part of a batch that threads or processes share: axis 0 must be"),
    ],
)
def test_shapes_without_an_axis_of_these_images_are_refused(ranges, shape, axis, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Rows(8, ranges).elements(shape, axis)
