"""Flip, crop, cutout, random erasing and mixing in CUDA, run on the CPU, equal the reference implementations.

Bit for bit, except for what depends on log, exp, pow and cos, which may differ in the last bits: the noise of erasing.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.batch import Rows
from minigrad.backend.fast_paths import fast_path
from minigrad.backend.random import Generator
from tests.cuda import comparison
from tests.cuda.comparison import generator_of, guarded_copy, kernel_names, normal, parts
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, recorded, sampled
from train.data.augment import Cutout, Flip, Mix, RandomErasing, ShiftedCrop, one_hot
from train.data.cuda import randaugment
from train.data.cuda.augment import ERASE, FILE, MIX

pytestmark = needs_compiler

SIDES = st.integers(1, 9) | st.sampled_from([16, 32, 33, 70])
SEEDS = st.integers(0, 2**64 - 1)
PIXELS = {
    "flip": Flip(0.4), "crop": ShiftedCrop(4), "wide crop": ShiftedCrop(40),
    "reflecting crop": ShiftedCrop(3, "reflect"),
}  # fmt: skip
NORMALISED = {
    "cutout": Cutout(5), "large cutout": Cutout(200), "erasing by pixels": RandomErasing(0.6),
    "erasing by channels": RandomErasing(1.0, "rand"), "erasing by zeros": RandomErasing(0.3, "const"),
    "no erasing": RandomErasing(0.0),
}  # fmt: skip
ALL = PIXELS | NORMALISED
NOISE = ("erasing by pixels", "erasing by channels")


def made(name, seed, *shape):
    if name in NORMALISED:
        return normal(seed % 2**32, *shape)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def assert_equals_reference(name, images, seed, order=ORDERS[0], **options):
    generators = Generator(seed), Generator(seed)
    with recorded(order, **options) as launches:
        found = ALL[name](images, generators[0])
    assert kernel_names(launches) == [name.split()[-1] if name in PIXELS else "cutout" if "cutout" in name else "erase"]
    expected = ALL[name](images, generators[1])  # on the CPU
    assert found.dtype == expected.dtype and generators[0].draws == generators[1].draws
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if name in NOISE else 0)


@pytest.mark.parametrize("name", ALL)
@given(
    N=st.integers(1, 20), C=st.sampled_from([3, 1, 4]), H=SIDES, W=SIDES, seed=SEEDS, order=st.sampled_from(ORDERS)
)  # fmt: skip
def test_results_equal_the_reference(name, N, C, H, W, seed, order):
    if name == "reflecting crop":
        H, W = H + 3, W + 3  # larger than the padding
    assert_equals_reference(name, made(name, seed, N, C, H, W), seed, order)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", ["F", "channels-last", "backwards", "strided"])
def test_any_memory_layout(name, layout):
    assert_equals_reference(name, comparison.with_layout(made(name, 0, 9, 3, 8, 7), layout), 1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", ["before", "after"])
def test_memory_beside_the_arrays_is_not_touched(name, side):
    for H, W in ((4, 4), (17, 31)):
        images = guarded_copy(made(name, 1, 12, 3, H, W), side)
        before = images.copy()
        assert_equals_reference(name, images, 5, guard=side)
        np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", ALL)
def test_thread_order_changes_no_bit(name):
    images = made(name, 2, 12, 3, 10, 9)
    comparison.assert_thread_order_changes_no_bit(lambda: [ALL[name](images, Generator(6))])


@pytest.mark.parametrize("barrier", sampled([b for b in barriers(str(FILE)) if b.startswith("common.cuh")][:1]))
def test_every_barrier_is_needed(barrier):
    """`erase` calls block_sum once, whose second barrier separates two calls."""
    assert [b for b in barriers(str(FILE)) if not b.startswith("common.cuh")] == []
    images = normal(0, 40, 3, 6, 6)
    assert comparison.barrier_is_needed(barrier, lambda: [RandomErasing(0.5, "const")(images, Generator(0))])


@pytest.mark.parametrize("seed", sampled([9, 27]))
def test_images_with_equal_random_numbers_rank_by_index(seed):
    N = 2000
    assert len(np.unique(Generator(seed).uniform((N + 1,))[:N])) < N
    images, erasing = normal(0, N, 1, 5, 5), RandomErasing(1.0, "const")
    with emulated():
        found = erasing(images, Generator(seed))
    np.testing.assert_array_equal(found, erasing(images, Generator(seed)))


def test_sums_and_products_are_rounded_separately():
    """Products are not contracted with sums to fused multiply-adds, whose results are not NumPy's."""
    assert all("--fmad=false" in kernel.options for kernel in (randaugment.KERNEL, ERASE, MIX))


@pytest.mark.parametrize("name", ALL)
@given(seed=SEEDS, before=st.integers(0, 2**63), draw=st.integers(0, 1000))
def test_in_a_graph_the_state_is_read_from_memory(name, seed, before, draw):
    captured, images = Generator(1, draw), made(name, 0, 9, 3, 8, 8)
    captured.captured = np.array([seed, before], np.uint64)
    with emulated():
        found = ALL[name](images, captured)
        expected = ALL[name](images, Generator(seed, before + draw))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ALL)
@given(rows=parts(), C=st.sampled_from([3, 1]), H=SIDES, W=SIDES, seed=SEEDS, order=st.sampled_from(ORDERS))
def test_parts_are_images_of_the_whole_batch(name, rows, C, H, W, seed, order):
    if name == "reflecting crop":
        H, W = H + 3, W + 3  # larger than the padding
    images, part, whole = made(name, seed, rows.count, C, H, W), generator_of(rows, seed), Generator(seed)
    with recorded(order) as launches:
        found = ALL[name](images[rows.index], part)
        assert len(launches) == 1
        np.testing.assert_array_equal(found, ALL[name](images, whole)[rows.index])
    expected = ALL[name](images[rows.index], generator_of(rows, seed))  # on the CPU
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if name in NOISE else 0)
    assert part.draws == whole.draws


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rows", [Rows(5, ((0, 1), (2, 3), (4, 5))), Rows(5, ((0, 2),))], ids=str)
def test_other_parts_are_not_supported(name, rows):
    """Three index ranges, and two random numbers for three images."""
    with emulated():
        assert fast_path(type(ALL[name]).__call__, ALL[name], made(name, 0, 3, 3, 8, 8), generator_of(rows)) is None


@pytest.mark.parametrize("name", ALL)
def test_other_images_are_not_supported(name):
    images = made(name, 0, 2, 3, 8, 8)
    with emulated():
        assert supported(ALL[name], images)
        for other in (images.astype(np.float64), images[0], images[:0], images[:, :, :0]):
            assert not supported(ALL[name], other)
        assert not supported(ShiftedCrop(8, "reflect"), images) and not supported(ShiftedCrop(2, "edge"), images)


def supported(transform, *arrays):
    return fast_path(type(transform).__call__, transform, *arrays, Generator(0)) is not None


# Mixup and CutMix ---------------------------------------------------------------------------------------------------

MIXES = st.sampled_from([Mix(0.8, 1.0, 0.5), Mix(0.2), Mix(cutmix=1.0), Mix(1e-4, 3.0, 1.0, 0.3), Mix(0.8, 1.0, 0.0)])


@given(
    mix=MIXES, N=st.integers(1, 9), C=st.sampled_from([3, 1]), H=SIDES, W=SIDES, K=st.integers(1, 12), seed=SEEDS,
    order=st.sampled_from(ORDERS), guard=st.sampled_from([None, "before", "after"]), turned=st.booleans(),
)  # fmt: skip
def test_mixed_images_and_targets_equal_the_reference(mix, N, C, H, W, K, seed, order, guard, turned):
    images, targets = normal(seed % 2**32, N, C, H, W), one_hot(np.arange(N) % K, K, 0.1)
    images, targets = (guarded_copy(x, guard or "after") for x in (images, targets))
    if turned:
        images, targets = images[..., ::-1], targets[::-1]
    generators = Generator(seed), Generator(seed)
    for _ in range(10):  # some batches get mixup, some CutMix, some are not mixed
        with recorded(order, guard=guard) as launches:
            found = mix(images, targets, generators[0])
        assert kernel_names(launches) == ["mix_weights", "mix"]
        assert comparison.same_bits(found, mix(images, targets, generators[1]))
    assert generators[0].draws == generators[1].draws


@given(mix=MIXES, rows=parts(mirrored=True), H=SIDES, K=st.integers(1, 9), seed=SEEDS, order=st.sampled_from(ORDERS))
def test_mixed_parts_are_images_of_the_whole_batch(mix, rows, H, K, seed, order):
    images, targets = normal(seed % 2**32, rows.count, 3, H, 5), one_hot(np.arange(rows.count) % K, K, 0.1)
    part, whole = generator_of(rows, seed), Generator(seed)
    for _ in range(5):  # some batches get mixup, some CutMix, some are not mixed
        with recorded(order) as launches:
            found = mix(images[rows.index], targets[rows.index], part)
        assert kernel_names(launches) == ["mix_weights", "mix"]
        assert comparison.same_bits(found, [x[rows.index] for x in mix(images, targets, whole)])
    assert part.draws == whole.draws


@pytest.mark.parametrize("ranges", [((0, 4),), ((0, 2), (5, 7)), ((1, 3), (6, 8))], ids=str)
def test_parts_without_partners_raise_the_error_of_the_reference(ranges):
    images, targets = normal(0, 4, 3, 8, 8), one_hot(np.arange(4), 4)
    with emulated(), pytest.raises(ValueError, match="mirrored=True"):
        Mix(1.0)(images, targets, generator_of(Rows(8, ranges)))


@given(mix=MIXES, seed=SEEDS, before=st.integers(0, 2**63), draw=st.integers(0, 1000))
def test_mixing_in_a_graph_reads_the_state_from_memory(mix, seed, before, draw):
    captured, arrays = Generator(1, draw), (normal(0, 4, 3, 8, 8), one_hot(np.arange(4), 4))
    captured.captured = np.array([seed, before], np.uint64)
    with emulated():
        assert comparison.same_bits(mix(*arrays, captured), mix(*arrays, Generator(seed, before + draw)))


def test_other_arrays_are_not_mixed_by_the_kernel():
    images, targets = normal(0, 4, 3, 8, 8), one_hot(np.arange(4), 4)
    with emulated():
        assert supported(Mix(1.0), images, targets)
        assert not supported(Mix(1.0), images.astype(np.float64), targets)
        assert not supported(Mix(1.0), images, targets.astype(np.float64))
        assert not supported(Mix(1.0), images[:2], targets)
