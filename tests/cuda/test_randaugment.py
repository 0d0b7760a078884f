"""RandAugment in CUDA, run on the CPU, equals the reference implementation bit for bit."""

from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.batch import Rows
from minigrad.backend.random import Generator
from tests.cuda import comparison
from tests.cuda.comparison import generator_of, guarded_copy, kernel_names, parts
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, recorded, sampled
from train.data.cuda.randaugment import KERNEL, MAX_PIXELS, OPS, supports
from train.data.randaugment import RandAugment, StratifiedAssignment

pytestmark = needs_compiler

SIDES = st.integers(1, 9) | st.sampled_from([16, 32, 33, 70])
FILL = (17, 130, 250)


def pictures(seed, N, H, W):
    """Images (N, 3, H, W) uint8: noise, a ramp, two levels, a small range, one level."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (N, 3, H, W), np.uint8)
    kind = np.arange(N) % 5
    images[kind == 1] = (np.arange(H)[:, None] * 7 + np.arange(W)) % 256
    images[kind == 2] = np.where(images[kind == 2] < 128, 3, 200)
    images[kind == 3] = 90 + images[kind == 3] % 20
    images[kind == 4] = rng.integers(0, 256, (N, 3, 1, 1), np.uint8)[kind == 4]
    return images


def both(augment, images, seed, order=ORDERS[0], **options):
    """The results of the kernel and of the reference."""
    generators = Generator(seed), Generator(seed)
    with recorded(order, **options) as launches:
        found = augment(images, generators[0])
    assert kernel_names(launches) == ["randaugment"]
    expected = augment(images, generators[1])  # on the CPU
    assert found.dtype == np.uint8 and found.shape == images.shape and generators[0].draws == generators[1].draws
    return found, expected


@given(
    augment=st.builds(
        RandAugment,
        magnitude=st.integers(0, 10) | st.floats(0, 30), num_ops=st.integers(1, 4), prob=st.sampled_from([0.5, 1.0, 0]),
        std=st.sampled_from([0.0, 0.5, 20.0, inf]), highest=st.sampled_from([10, 30, 100]), increasing=st.booleans(),
        fill=st.just(FILL),
    ),
    N=st.integers(1, 40), H=SIDES, W=SIDES, seed=st.integers(0, 2**64 - 1), order=st.sampled_from(ORDERS),
)  # fmt: skip
def test_results_equal_the_reference(augment, N, H, W, seed, order):
    found, expected = both(augment, pictures(seed, N, H, W), seed, order)
    np.testing.assert_array_equal(found, expected)


@given(
    augment=st.builds(RandAugment, num_ops=st.integers(1, 3), prob=st.sampled_from([1.0, 0.5]), std=st.just(0.5)),
    rows=parts(40), H=SIDES, W=SIDES, seed=st.integers(0, 2**64 - 1), order=st.sampled_from(ORDERS),
)  # fmt: skip
def test_parts_are_images_of_the_whole_batch(augment, rows, H, W, seed, order):
    images, part = pictures(seed, rows.count, H, W), generator_of(rows, seed)
    with recorded(order) as launches:
        found = augment(images[rows.index], part)
    assert kernel_names(launches) == ["randaugment"] and part.draws == 2 * augment.num_ops
    np.testing.assert_array_equal(found, augment(images, Generator(seed))[rows.index])
    np.testing.assert_array_equal(found, augment(images[rows.index], generator_of(rows, seed)))  # on the CPU


@pytest.mark.parametrize("rows", [Rows(5, ((0, 1), (2, 3), (4, 5))), Rows(5, ((0, 2),))], ids=str)
def test_other_parts_are_not_supported(rows):
    """Three index ranges, and two random numbers for three images."""
    with emulated():
        assert not supports(RandAugment(), pictures(0, 3, 4, 4), generator_of(rows))


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_each_op_equals_the_reference(op, increasing):
    """Magnitudes up to the largest; each op gets two of thirty images for each seed.

    A rotation maps the central pixel of odd sizes to itself, so rounding errors decide between two levels."""
    N, k = 30, OPS.index(op)
    cases = [(0, 9, 9), (3, 32, 32), (9, 24, 17), (10, 5, 70), (65, 13, 13), (100, 6, 6)]
    cases += [(magnitude, 7, 7) for magnitude in range(1, 30)]
    for seed, (magnitude, H, W) in enumerate(cases):
        images = pictures(seed, N, H, W)
        rows, selected = (assignment := StratifiedAssignment(N, Generator(seed), "cpu")).interval(k / 15, (k + 1) / 15)
        changed = np.isin(assignment.row, np.arange(N)[rows][selected])
        assert changed.sum() == 2
        found, expected = both(RandAugment(magnitude, 1, 1.0, 0.0, 100, increasing, FILL), images, seed)
        np.testing.assert_array_equal(found[changed], expected[changed])


def test_the_order_and_levels_of_the_ops_are_the_references():
    constants = dict(KERNEL.constants)
    assert constants["OPS"].split(",") == list(OPS) and len(OPS) == 15
    assert len(constants["LEVELS"].split(",")) == len(OPS)


@pytest.mark.parametrize("layout", ["F", "channels-last", "backwards", "strided"])
def test_any_memory_layout(layout):
    images = pictures(0, 20, 12, 10)
    augment = RandAugment(9, 2, 1.0)
    found, _ = both(augment, comparison.with_layout(images, layout), 3)
    np.testing.assert_array_equal(found, augment(images, Generator(3)))


@pytest.mark.parametrize("side", ["before", "after"])
def test_memory_beside_the_arrays_is_not_touched(side):
    for seed, (H, W) in enumerate([(1, 1), (7, 5), (17, 31), *[(4, 4)] * 12]):
        images = guarded_copy(pictures(1, 5, H, W), side)
        before = images.copy()
        found, expected = both(RandAugment(9, 1 + seed % 3, 1.0, 0.5), images, seed, guard=side)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(images, before)


def results(seed=0):
    """Two rounds, in which all ops occur."""
    return [RandAugment(9, 2, 1.0, 0.5)(pictures(seed, 30, 20, 19), Generator(seed))]


def test_thread_order_changes_no_bit():
    comparison.assert_thread_order_changes_no_bit(results)


FILE = Path(KERNEL.file)
OURS = [place for place in barriers(KERNEL.file) if place.startswith(FILE.name)]
# The second barrier of block_sum separates two calls, between which randaugment.cu has its own.
BLOCK_SUM = [place for place in barriers(KERNEL.file) if place.startswith("common.cuh")][:1]


@pytest.mark.parametrize("barrier", sampled(OURS + BLOCK_SUM))
def test_every_barrier_is_needed(barrier):
    assert any(comparison.barrier_is_needed(barrier, lambda seed=seed: results(seed)) for seed in range(3))


@given(seed=st.integers(0, 2**64 - 1), before=st.integers(0, 2**63), draw=st.integers(0, 1000))
def test_in_a_graph_the_state_is_read_from_memory(seed, before, draw):
    captured, images, augment = Generator(1, draw), pictures(0, 17, 6, 6), RandAugment(9, 2, 1.0, 0.5)
    captured.captured = np.array([seed, before], np.uint64)
    with emulated():
        found = augment(images, captured)
    np.testing.assert_array_equal(found, augment(images, Generator(seed, before + draw)))
    assert captured.draws == draw + 4


@pytest.mark.parametrize(
    ("images", "num_ops"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), 1),
        (np.zeros((2, 1, 4, 4), np.uint8), 1),
        (np.zeros((3, 4, 4), np.uint8), 1),
        (np.zeros((0, 3, 4, 4), np.uint8), 1),
        (np.zeros((2, 3, 0, 4), np.uint8), 1),
        (np.zeros((2, 3, 4, 4), np.uint8), 0),
        (np.broadcast_to(np.uint8(0), (1, 3, MAX_PIXELS, 2)), 1),
    ],
    ids=lambda x: str(getattr(x, "shape", x)),
)
def test_other_images_are_not_supported(images, num_ops):
    with emulated():
        assert supports(RandAugment(num_ops=1), pictures(0, 1, 4, 4), Generator(0))
        assert not supports(RandAugment(num_ops=num_ops), images, Generator(0))
