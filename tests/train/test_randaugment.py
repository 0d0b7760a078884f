"""RandAugment: which images get an op, its arguments, and the ops."""

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import ceil, floor, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.batch import Rows, split
from minigrad.backend.random import Generator
from tests.backend.test_random import generator_of
from tests.train.test_augment import SEEDS, made
from train.data.randaugment import (
    COLOURS,
    MATRICES,
    RandAugment,
    StratifiedAssignment,
    arguments,
    normal,
    rand_augment,
    warp,
)


def test_normal_moments():
    z = normal(Generator(0).uniform((2, 200_000)))
    assert z.dtype == np.float32
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z**4).mean() - 3) < 0.1


# StratifiedAssignment -----------------------------------------------------------------------------------------------


@given(N=st.integers(1, 40), seed=SEEDS, cuts=st.lists(st.floats(0, 1), max_size=5))
def test_intervals_partition_the_batch(N, seed, cuts):
    assignment = StratifiedAssignment(N, Generator(seed), "cpu")
    np.testing.assert_array_equal(np.sort(assignment.row), np.arange(N))
    images = np.arange(N).reshape(N, 1, 1, 1)
    np.testing.assert_array_equal(assignment.unpermute(assignment.permute(images)), images)
    bounds, owners = [0, *sorted(cuts), 1], np.zeros(N, int)
    for start, stop in pairwise(bounds):
        rows, selected = assignment.interval(start, stop)
        assert selected.sum() in (floor((stop - start) * N), ceil((stop - start) * N)), "even shares"
        owners[rows] += selected
    np.testing.assert_array_equal(owners, 1)


@given(N=st.integers(1, 40), start=st.floats(0, 1), stop=st.floats(0, 1), seed=SEEDS)
def test_rows_of_an_interval_of_the_whole_batch_are_known_in_advance(N, start, stop, seed):
    for rows in (None, Rows(N, ((0, N),))):
        found, _ = StratifiedAssignment(N, generator_of(rows, seed), "cpu").interval(start, stop)
        assert found == slice(floor(start * N), ceil(stop * N))


@given(N=st.integers(1, 40), parts=st.integers(1, 8), mirrored=st.booleans(), cut=st.floats(0, 1), seed=SEEDS)
def test_parts_assign_as_the_whole_batch(N, parts, mirrored, cut, seed):
    def assigned(images, generator):
        """Whether each image has a value below `cut`, and a uniform value of the image's row of the permuted batch."""
        assignment = StratifiedAssignment(images, generator, "cpu")
        rows, selected = assignment.interval(0, cut)
        below = np.zeros(images, bool)
        below[rows] = selected
        u = np.zeros((images, 5))
        u[rows] = assignment.uniform(2, cut, (5,))[1]
        return below[assignment.row], assignment.uniform(3)[2][assignment.row], u[assignment.row]

    expected = assigned(N, Generator(seed))
    for rows in split(N, parts, mirrored=mirrored):
        for mine, theirs in zip(assigned(len(rows), generator_of(rows, seed)), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs[rows.index])


def test_equal_random_numbers_give_a_permutation():
    class Even(Generator):
        def uniform(self, *args, **options):
            return super().uniform(*args, **options) // 0.5 / 2

    np.testing.assert_array_equal(np.sort(StratifiedAssignment(30, Even(0), "cpu").row), np.arange(30))


def test_assignment_probability_is_equal_for_all_images():
    N, hits = 3, np.zeros(3)
    for seed in range(3000):
        assignment = StratifiedAssignment(N, Generator(seed), "cpu")
        rows, selected = assignment.interval(0.3, 0.5)
        given = np.zeros(N, bool)
        given[rows] = selected
        hits += given[assignment.row]
    np.testing.assert_allclose(hits / 3000, 0.2, atol=0.03)


# RandAugment --------------------------------------------------------------------------------------------------------


def outcomes(images, m, increasing, fill):
    """The result of each op for each image and both signs: {op: two arrays}."""
    N, _, H, W = images.shape
    found = {}
    for op in (*MATRICES, *COLOURS):
        for sign in (-1.0, 1.0):
            values = arguments(op, np.full(N, m), np.full(N, sign), increasing)
            result = warp(images, MATRICES[op](*values, H, W), fill) if op in MATRICES else COLOURS[op](images, *values)
            found.setdefault(op, []).append(result)
    return found


@pytest.mark.parametrize("prob", [0.5, 1.0])
@pytest.mark.parametrize("increasing", [False, True])
def test_each_op_gets_its_share_of_the_images(prob, increasing):
    N = 157  # N · prob / 15 is not an integer
    images = made("RandAugment", N, 24, 17)  # with too few pixels, equalize is the identity
    augment = RandAugment(8, 1, prob, increasing=increasing, fill=(1, 2, 3))
    expected = outcomes(images, 0.8, increasing, (1, 2, 3))
    signs = Counter()
    for seed in range(5):
        result, counts = augment(images, Generator(seed)), Counter()
        for op, made_of_it in expected.items():
            negative, positive = ((result == x).all(axis=(1, 2, 3)) for x in made_of_it)
            counts[op] = int((negative | positive).sum())
            if (made_of_it[0] != made_of_it[1]).any():
                signs.update(negative=int(negative.sum()), positive=int(positive.sum()))
        unchanged = int((result == images).all(axis=(1, 2, 3)).sum())
        assert counts.total() + unchanged == N
        assert set(counts.values()) <= {floor(N * prob / 15), ceil(N * prob / 15)}
        assert unchanged in (floor(N * (1 - prob)), ceil(N * (1 - prob)))
    assert min(signs.values()) > 0.4 * signs.total()


def test_two_ops_are_one_op_twice():
    images, generator = made("RandAugment", 30, 8, 8), Generator(5)
    once = RandAugment(9, 1, std=1.0)
    expected = once(once(images, generator), generator)
    np.testing.assert_array_equal(replace(once, num_ops=2)(images, Generator(5)), expected)
    assert (once(images, Generator(5)) != expected).any()


@pytest.mark.parametrize(
    ("std", "mean", "deviation"),
    [(0.0, 0.9, 0.0), (0.5, 0.9, 0.05), (inf, 0.45, 0.9 / 12**0.5)],
)
def test_magnitude_has_the_given_mean_and_deviation(std, mean, deviation):
    m, sign = RandAugment(9, std=std, highest=20)._strength(Generator(0).uniform((3, 20_000)))
    assert abs(m.mean() - mean) < 0.01 and abs(m.std() - deviation) < 0.005
    assert set(sign) == {-1, 1} and abs(sign.mean()) < 0.03


@pytest.mark.parametrize(
    ("augment", "highest"), [(RandAugment(9, std=20), 1), (RandAugment(9, std=20, highest=15), 1.5)]
)
def test_magnitude_with_noise_is_clipped(augment, highest):
    m, _ = augment._strength(Generator(0).uniform((3, 1000)))
    assert m.min() == 0 and m.max() == highest


def test_notation_sets_every_field():
    assert rand_augment("rand") == RandAugment(10, 2, 0.5, 0.0, 10, False, (128, 128, 128))  # timm's defaults
    text = "rand-m9-n3-p0.25-mstd0.5-mmax15-inc1"
    assert rand_augment(text, (1, 2, 3)) == RandAugment(9, 3, 0.25, 0.5, 15, True, (1, 2, 3))
    assert rand_augment("rand-mstd101") == RandAugment(std=inf)


FACTORS, SHIFTS = ("Color", "Contrast", "Brightness", "Sharpness"), ("TranslateXRel", "TranslateYRel")


@pytest.mark.parametrize(
    ("m", "sign", "increasing", "expected"),
    [
        (0.3, -1, False, {"Posterize": 1, "Solarize": 76, "SolarizeAdd": 33, **dict.fromkeys(FACTORS, 0.64)}),
        (0.3, -1, True, {"Posterize": 3, "Solarize": 180, "SolarizeAdd": 33, **dict.fromkeys(FACTORS, 0.73)}),
        (0.3, 1, True, {"Rotate": 9, "ShearX": 0.09, "ShearY": 0.09, **dict.fromkeys(FACTORS, 1.27)}),
        (0.3, -1, True, {"Rotate": -9, "ShearX": -0.09, "ShearY": -0.09, **dict.fromkeys(SHIFTS, -0.135)}),
        (1.5, -1, False, {"Posterize": 6, "Solarize": 256, "SolarizeAdd": 128, **dict.fromkeys(FACTORS, 2.8)}),
        (1.5, -1, True, {"Posterize": 0, "Solarize": 0, "SolarizeAdd": 128, **dict.fromkeys(FACTORS, 0.1)}),
    ],
)
def test_arguments_at_a_magnitude_equal_timm(m, sign, increasing, expected):
    """The arguments are timm's; magnitude 10 is m = 1."""
    found = {op: arguments(op, np.array([m]), np.array([sign]), increasing)[0].item() for op in expected}
    assert found == pytest.approx(expected)


def test_geometric_ops_without_interpolation():
    images, fill = made("RandAugment", 1, 6, 6), (7, 8, 9)
    border = np.broadcast_to(np.array(fill, np.uint8).reshape(1, 3, 1, 1), (1, 3, 6, 12))

    def warped(op, argument):
        return warp(images, MATRICES[op](np.array([argument]), 6, 6), fill)

    wide, tall = np.concatenate([images, border], 3), np.concatenate([images, border.swapaxes(2, 3)], 2)
    np.testing.assert_array_equal(warped("Rotate", 90.0), np.rot90(images, axes=(2, 3)))
    np.testing.assert_array_equal(warped("TranslateXRel", 1 / 3), wide[..., 2:8])
    np.testing.assert_array_equal(warped("TranslateYRel", 1 / 3), tall[..., 2:8, :])
    for i, shift in enumerate((1, 3, 5, 7, 9, 11)):  # 2 · (i + ½)
        np.testing.assert_array_equal(warped("ShearX", 2.0)[..., i, :], wide[..., i, np.arange(6) + shift])
        np.testing.assert_array_equal(warped("ShearY", 2.0)[..., i], tall[..., np.arange(6) + shift, i])


def test_translations_are_shares_of_their_own_axis():
    images = made("RandAugment", 1, 4, 8)
    x, y = (warp(images, MATRICES[op](np.array([0.25]), 4, 8), (0, 0, 0)) for op in SHIFTS)
    np.testing.assert_array_equal(x[..., :6], images[..., 2:])
    np.testing.assert_array_equal(y[..., :3, :], images[..., 1:, :])


@pytest.mark.parametrize(
    ("op", "argument", "levels", "expected"),
    [
        ("Invert", None, [0, 100, 255], [255, 155, 0]),
        ("Solarize", 100, [99, 100, 101], [99, 155, 154]),
        ("SolarizeAdd", 10, [120, 127, 128], [130, 137, 128]),
        ("SolarizeAdd", 128, [0, 127, 128], [128, 255, 128]),
        ("Posterize", 3, [0b10111111, 0b00011111, 255], [0b10100000, 0, 0b11100000]),
        ("AutoContrast", None, [50, 125, 200], [0, 127, 255]),
        ("AutoContrast", None, [50, 50, 50], [50, 50, 50]),
        ("Brightness", 0.5, [0, 101, 255], [0, 50, 127]),
        ("Brightness", 2.0, [0, 101, 255], [0, 202, 255]),
        ("Contrast", 0.0, [10, 11, 10, 11], [11, 11, 11, 11]),  # the mean, 10.5, rounds to 11
        ("Contrast", 0.5, [10, 11, 10, 31], [13, 13, 13, 23]),  # the mean, 15.5, rounds to 16
        ("Color", 0.5, [10, 20, 30], [10, 20, 30]),  # gray unchanged
    ],
)
def test_colour_ops_on_gray_images(op, argument, levels, expected):
    images = np.broadcast_to(np.array(levels, np.uint8), (1, 3, 1, len(levels)))
    result = COLOURS[op](images, *([] if argument is None else [np.array([argument])]))
    np.testing.assert_array_equal(result, np.broadcast_to(np.array(expected, np.uint8), images.shape))


def test_saturation_0_is_luma():
    images = np.uint8(255) * np.eye(3, dtype=np.uint8).reshape(3, 3, 1, 1)  # red, green, blue
    luma = COLOURS["Color"](images, np.zeros(3))
    np.testing.assert_array_equal(luma[..., 0, 0], np.repeat([[76], [150], [29]], 3, axis=1))


def test_equalizing_four_levels():
    images = np.broadcast_to(np.repeat(np.uint8([10, 20, 30, 40]), 8), (1, 3, 32, 32))
    expected = np.broadcast_to(np.repeat(np.uint8([0, 85, 171, 255]), 8), (1, 3, 32, 32))
    np.testing.assert_array_equal(COLOURS["Equalize"](images), expected)


def test_sharpness_leaves_the_border_unchanged():
    images = np.zeros((1, 3, 5, 5), np.uint8)
    images[..., 2, 2], images[..., 0, :] = 130, 26
    expected = images.copy()
    expected[..., 1:4, 1:4] = [[16, 16, 16], [10, 50, 10], [10, 10, 10]]  # 3 · 26 / 13 from the row above
    np.testing.assert_array_equal(COLOURS["Sharpness"](images, np.zeros(1)), expected)
    np.testing.assert_array_equal(COLOURS["Sharpness"](images, np.ones(1)), images)


@pytest.mark.parametrize("op", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_geometric_ops_at_magnitude_0_are_the_identity(op):
    images, nothing = made("RandAugment", 4, 6, 9), np.zeros(4)
    np.testing.assert_array_equal(warp(images, MATRICES[op](nothing, 6, 9), (0, 0, 0)), images)


def test_posterize_to_0_bits_is_black():
    assert not COLOURS["Posterize"](made("RandAugment", 2, 3, 3), np.array([0, 0])).any()


@pytest.mark.parametrize("images", [np.zeros((2, 1, 4, 4), np.uint8), np.zeros((2, 3, 4, 4), np.float32)])
def test_randaugment_needs_uint8_rgb(images):
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\) uint8.*before normalisation"):
        RandAugment()(images, Generator(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'must begin with "rand", as in "rand-m9-mstd0.5-inc1", got ""'),
        ("original", 'must begin with "rand"'),
        ("rand-x3", '"x3" in "rand-x3": a part is one of m, n, p, mstd, mmax, inc with its value, as in "m9"'),
        ("rand-tweights", "a part is one of m, n,"),
        ("rand--m9", '"" in "rand--m9": a part is one of'),
        ("rand-m", '"m" in "rand-m": m must be followed by a number'),
        ("rand-n1.5", '"n1.5" in "rand-n1.5": n must be followed by a whole number'),
        ("rand-inc2", "inc must be followed by 0 or 1"),
        ("rand-m9-m8", '"rand-m9-m8" has m twice'),
        ("rand-m11", "m, the magnitude, must be from 0 to mmax, by default 10"),
        ("rand-mmax1000", "mmax must be from 0 to 100"),
        ("rand-p1.5", "p, a probability, must be from 0 to 1"),
        ("rand-n101", "n, the number of ops per image, must be from 0 to 100"),
    ],
)
def test_notation_errors(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rand_augment(text)
